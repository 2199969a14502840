"""DeepSpeed: ZeRO 0-3 with torch's optimizers, and what has to be known about it.

- DeepSpeed averages gradients over ranks and micro-steps; ours are sums. `DeepSpeedEngine.backward` undoes both, and
  is the only place that does.
- Precision is the model's business (frozen weights and autocast in bfloat16, trained weights in float32), so
  DeepSpeed runs in its float32 mode at every stage and there is no second set of weights.
- On CPU it would compile a C++ extension at start; nothing here needs a compiler (`_without_compiled_ops`).
- It makes nothing of sparse gradients beyond stage 1 and would split a table over the ranks at stage 3. So the row
  tables are no parameters, and it never sees them (`engine.tables`); but their gradients count in the norm that all
  are clipped by, so clipping is ours too (`DeepSpeedEngine._clip`).
- Whole tensors come from its `safe_get_full_*`. Of the setters those for parts of ZeRO-3 are used, since the whole
  ones fail on sizes that the number of ranks does not divide.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.engine.base import BuildModel, learnable, trained
from mtrec_ray.engine.optimizer import (
    build_optimizer,
    first_state,
    load_whole_state,
    scale_learning_rates,
    whole_state,
)
from mtrec_ray.engine.tables import TableSteps
from mtrec_ray.errors import BackboneError
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.balancing.point import Point
from mtrec_ray.progress import verbose
from mtrec_ray.tasks.kind import Logits


def deepspeed_config(run: Run) -> dict[str, Any]:
    """DeepSpeed's config, derived from ours; the optimizer is built by us and handed over."""
    engine = run.engine
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.offload == "cpu":
        pin = torch.cuda.is_available()
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
        if engine.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    return {
        # For DeepSpeed a micro-step is one row; what it holds, and how many there are, varies (see `backward`).
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # `DeepSpeedEngine._clip` does it, by the norm of all gradients, those of tables too
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }


def loading_config(run: Run) -> dict[str, Any]:
    """DeepSpeed's config while weights are loaded at stage 3: here bf16 means the precision of the frozen weights."""
    bf16 = run.engine.precision == "bf16" and run.adapter.kind != "full"
    return deepspeed_config(run) | {"bf16": {"enabled": bf16}}


class DeepSpeedEngine:
    """`Engine` on DeepSpeed. Makes a process group of one if there is none.

    Raises:
        BackboneError: at stage 3 the weights that were loaded are not those of the file.
    """

    def __init__(self, run: Run, build_model: BuildModel, device: torch.device) -> None:
        deepspeed = _import(device)
        _ensure_process_group(device)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        self.device = device
        self.world_rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.gradient_scale = float(self.world_size)  # see `backward`
        self.stage: int = run.engine.zero_stage
        model: Any = _load_sharded(run, build_model, self.world_rank) if self.stage == 3 else build_model()
        self._nothing = None
        if not any(p.requires_grad for p in model.parameters()):
            # A stage may train row tables alone, but DeepSpeed needs something to step.
            self._nothing = nn.Parameter(torch.zeros(1, device=device))
            model.register_parameter("nothing", self._nothing)
        self._optimizer = build_optimizer(model, run, device)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=deepspeed_config(run), dist_init_required=False
        )
        self.model: nn.Module = self._engine.module
        self._tables = TableSteps(self.model, run, device, self.gradient_scale)
        self._limit = run.train.clip_norm
        self._optimizer.register_step_pre_hook(lambda *_: self._clip())
        if self.stage in (1, 2):
            # DeepSpeed links state and parameters after the first group's first step, when the others have none yet.
            self._create_state()

    def forward(self, batch: Batch, key: DropoutKey | None = None, point: Point | None = None) -> list[Logits]:
        # Its own forward hooks the outputs, so that a backward pass which is not its own is an error.
        looks_only = point is not None and not point.trains_below
        logits: list[Logits] = (self.model if looks_only else self._engine)(batch, key, point)
        return logits

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        if self._nothing is not None and self.stage < 3:
            loss = loss + 0 * self._nothing.sum()  # at stages 1 and 2 it also needs a gradient
        # DeepSpeed divides by the number of ranks in its reduction, and by the micro-steps only if asked to.
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)
        self._tables.collect()
        if last:
            self._tables.exchange()

    def step(self, lr_scale: float) -> Tensor:
        scale_learning_rates(self._optimizer, lr_scale)
        zero = self._engine.optimizer
        self._unpartitioned_norm = (
            None if self.stage else get_total_norm([p.grad for _, p in self._trained() if p.grad is not None])
        )
        self._engine.step()
        if self.stage and zero.overflow:  # then it has left out the step
            self._tables.drop()
            return torch.tensor(torch.inf)
        norm = self._norm()
        self._tables.step(lr_scale, norm)
        return norm

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gradients(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_grad

        dense = {name: safe_get_full_grad(p).detach().cpu().clone() for name, p in self._trained()}
        return dense | self._tables.gradients()

    def parameters(self) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        found = {}
        for name, parameter in learnable(self.model):
            with GatheredParameters([parameter], enabled=self.stage == 3 and not parameter.requires_grad):
                trained_in_parts = self.stage == 3 and parameter.requires_grad
                whole = safe_get_full_fp32_param(parameter) if trained_in_parts else parameter
                found[name] = whole.detach().cpu().clone()
        return found

    @torch.no_grad()
    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        for name, parameter in learnable(self.model):
            value = values[name].to(self.device)
            with GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                parameter.copy_(value)
            if parameter.requires_grad and self.stage == 3:
                safe_set_local_fp32_param(parameter, self._own_part(value, parameter))
            elif parameter.requires_grad:
                safe_set_full_fp32_param(parameter, value)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        parameters = dict(self._trained())
        of_tables = self._tables.state()
        if self.stage == 0:
            return whole_state(self._optimizer, parameters) | of_tables
        return {name: state for name, p in parameters.items() if (state := self._state_of(p))} | of_tables

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        parameters = dict(self._trained())
        self._tables.load_state(state)
        if self.stage == 0:
            load_whole_state(self._optimizer, parameters, state)
            return
        state = {name: values for name, values in state.items() if name in parameters}
        if not state:
            return
        self._create_state(next(iter(state.values())).get("step"))
        for name, values in state.items():
            for key, value in values.items():
                if key != "step":
                    self._set_state(parameters[name], key, value.to(self.device))

    def close(self) -> None:
        self._engine.destroy()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in trained(self.model) if p is not self._nothing)

    def _flat_parameters(self) -> list[Tensor]:
        """What the torch optimizer steps at stages 1-3: of each of its groups, this rank's part as one vector."""
        zero = self._engine.optimizer
        flat: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        )
        return flat

    def _create_state(self, step: Tensor | None = None) -> None:
        """Gives the torch optimizer the state that it would make in its first step, `step` steps on."""
        for flat in self._flat_parameters():
            self._optimizer.state[flat] = first_state(self._optimizer, flat)
            if step is not None:
                self._optimizer.state[flat]["step"] = step.clone()
        if self.stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Whole state of a parameter on the host; empty before the first step. A collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state = self._optimizer.state.get(self._flat_parameters()[0], {})  # the others have the same, but for values
        whole = {}
        for key, value in state.items():
            if key != "step":
                value = safe_get_full_optimizer_state(parameter, key)
            whole[key] = value.detach().cpu().clone()
        return whole

    def _set_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage == 3:
            safe_set_local_optimizer_state(parameter, self._own_part(value, parameter), key)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def _own_part(self, value: Tensor, parameter: Tensor) -> Tensor:
        """This rank's part of a whole tensor at stage 3; the last rank's is padded with zeros."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        return padded[self.world_rank * size : (self.world_rank + 1) * size]

    def _norm(self) -> Tensor:
        """Of all gradients of the step. DeepSpeed has summed up those that it has before it steps; not at stage 0."""
        found = self._unpartitioned_norm
        return self._tables.norm_with(self._engine.optimizer._global_grad_norm if found is None else found)

    def _clip(self) -> None:
        """Before each step of the torch optimizer, which at stages 1-3 are several, of parts of the weights."""
        if self._limit is not None:
            stepped = [p for group in self._optimizer.param_groups for p in group["params"]]
            clip_grads_with_norm_(stepped, self._limit, self._norm())


def _import(device: torch.device) -> Any:
    """deepspeed for this device; of its output errors remain, or with `--verbose` everything."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if not verbose():
        # A filter, for it sets the level of its logger itself.
        logging.getLogger("DeepSpeed").addFilter(_errors_only)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
    # DeepSpeed still calls what torch has renamed.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if device.type == "cpu":
        _without_compiled_ops(deepspeed)
    return deepspeed


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _without_compiled_ops(deepspeed: Any) -> None:
    """On CPU DeepSpeed builds a shared-memory collective for inference when it starts (tens of seconds, with g++).

    It asks this table, which it fills by running compilers, whether it can. An empty one means no to all of them.
    """
    vars(deepspeed.ops)["__compatible_ops__"] = {}


def _ensure_process_group(device: torch.device) -> None:
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))


def _load_sharded(run: Run, build_model: BuildModel, world_rank: int) -> nn.Module:
    """The model with its backbone split over the ranks while it is loaded, so that it need not fit on any of them.

    Transformers may leave weights unloaded then (transformers #45313); so rank 0 also loads them whole, on the host,
    and both are compared.
    """
    expected = _checksum(build_model()) if world_rank == 0 else None
    with _sharded_loading(run):
        model = build_model()
    found = _checksum(model)
    if world_rank == 0 and found != expected:
        raise BackboneError(
            f"backbone '{run.backbone.name}': the weights loaded for ZeRO stage 3 have checksum {found:.12}, those of "
            f"the file {expected:.12}. Use engine.zero_stage: 2 or lower with these versions."
        )
    return model


def _checksum(model: nn.Module) -> str:
    backbone: Any = model.backbone
    return "none" if backbone is None else str(backbone.checksum())


@contextmanager
def _sharded_loading(run: Run) -> Iterator[None]:
    """Tells transformers to partition weights as they are made; holds only inside."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(loading_config(run))  # transformers holds it weakly: it works while it lives
    try:
        yield
    finally:
        del config
