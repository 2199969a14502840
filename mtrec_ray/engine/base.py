"""What carries out a training step: the interface of the two engines, and what both need.

An engine owns the model's placement, the optimizer and the exchange between ranks. Its gradients are *summed* over
ranks and micro-steps: the normaliser is part of the loss (`multitask.losses`). `plain` is the reference in a few
lines of torch; `deepspeed` must give the same gradients.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.row_table import row_tables
from mtrec_ray.multitask.balancing.point import Point
from mtrec_ray.tasks.kind import Logits


class TrainedModel(Protocol):
    """The part of `model.recommender.Recommender` that engines use, beside `nn.Module`."""

    learnable: frozenset[str]
    """Names of all parameters and tables that are trained at some time of the run."""

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trained parameters by group (`adapters`, `towers`, `tables`) and name; row tables are no parameters."""
        ...


class Engine(Protocol):
    """One optimizer over all ranks. Every rank calls every method equally often and in the same order."""

    model: nn.Module
    device: torch.device
    world_rank: int
    world_size: int
    gradient_scale: float
    """What gradients inside the model are multiplied with on their way; undone before they reach the weights."""

    def forward(self, batch: Batch, key: DropoutKey | None = None, point: Point | None = None) -> list[Logits]:
        """Logits {task: [C, K]} of a batch on `device`; with a `key` in training mode (dropout is drawn from it).

        One mapping for all tasks, or with a balance `point` one for each.
        """
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds this micro-step's gradients; `last` marks the last micro-step of the optimizer step."""
        ...

    def step(self, lr_scale: float) -> Tensor:
        """Exchanges (if not done), clips and applies the gradients; gives the global norm before clipping."""
        ...

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks, the same on each."""
        ...

    def gradients(self) -> dict[str, Tensor]:
        """Whole gradients by parameter name, summed over ranks: after the last `backward`, before `step`."""
        ...

    def parameters(self) -> dict[str, Tensor]:
        """Whole learnable parameters by name, on the host, those of other stages included."""
        ...

    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """The inverse of `parameters`; names and shapes have been checked."""
        ...

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Whole optimizer state {parameter name: {`step`, `exp_avg`, ...}} on the host, without any partition."""
        ...

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of `optimizer_state`, from any engine and any number of ranks."""
        ...

    def close(self) -> None:
        """Gives back what the engine holds outside the model."""
        ...


BuildModel = Callable[[], nn.Module]


def build_engine(run: Run, build_model: BuildModel, device: torch.device) -> Engine:
    """The engine that `run.engine.name` asks for, around the model that `build_model` gives.

    The model is built inside, because ZeRO-3 has to be there when weights are loaded. A process group must exist
    if there are several ranks.
    """
    if run.engine.name == "plain":
        from mtrec_ray.engine.plain import PlainEngine

        return PlainEngine(run, build_model(), device)
    # Not at the top: importing deepspeed takes seconds, and the plain engine works where it is not installed.
    from mtrec_ray.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(run, build_model, device)


def learnable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and weights that are trained at some time of the run: parameters in the model's order, then tables."""
    names = cast(TrainedModel, model).learnable
    tables = ((name, table.weight) for name, table in row_tables(model).items())
    return ((name, weight) for name, weight in chain(model.named_parameters(), tables) if name in names)


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that get gradients, in the model's order; tables are `engine.tables`' business."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
