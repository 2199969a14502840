"""The reference engine: torch alone, whole replicas, one all-reduce of the summed gradients per step (of tables see
`engine.tables`)."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.engine.base import learnable, trained
from mtrec_ray.engine.optimizer import build_optimizer, load_whole_state, scale_learning_rates, whole_state
from mtrec_ray.engine.tables import TableSteps
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.balancing.point import Point
from mtrec_ray.tasks.kind import Logits


class PlainEngine:
    """`Engine` with replicated parameters; with several ranks a process group must exist."""

    def __init__(self, run: Run, model: nn.Module, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.gradient_scale = 1.0
        self.world_rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._clip = run.train.clip_norm
        self._tables = TableSteps(self.model, run, device, self.gradient_scale)
        self._optimizer = build_optimizer(model, run, device)
        self._trained = dict(trained(model))  # once: walking through the modules of a deep model takes milliseconds

    def forward(self, batch: Batch, key: DropoutKey | None = None, point: Point | None = None) -> list[Logits]:
        logits: list[Logits] = self.model(batch, key, point)
        return logits

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()
        self._tables.collect()
        if last:
            self._sum_gradients()
            self._tables.exchange()

    def step(self, lr_scale: float) -> Tensor:
        gradients = [p.grad for p in self._trained.values() if p.grad is not None]
        norm = self._tables.norm_with(torch.nn.utils.get_total_norm(gradients))
        if self._clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained.values(), self._clip, norm)
        scale_learning_rates(self._optimizer, lr_scale)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._tables.step(lr_scale, norm)
        return norm

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        values = values.clone()
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gradients(self) -> dict[str, Tensor]:
        dense = {name: _gradient(p).detach().cpu().clone() for name, p in self._trained.items()}
        return dense | self._tables.gradients()

    def parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in learnable(self.model)}

    @torch.no_grad()
    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in learnable(self.model):
            parameter.copy_(values[name])

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        return whole_state(self._optimizer, self._trained) | self._tables.state()

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        load_whole_state(self._optimizer, self._trained, state)
        self._tables.load_state(state)

    def close(self) -> None:
        pass

    def _sum_gradients(self) -> None:
        """One collective over the gradients of all parameters, those that got none on this rank included."""
        if self.world_size == 1 or not self._trained:
            return
        parameters = list(self._trained.values())
        flat = torch.cat([_gradient(p).flatten() for p in parameters])
        dist.all_reduce(flat)
        for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = summed.view_as(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
