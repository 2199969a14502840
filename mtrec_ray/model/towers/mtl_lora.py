"""One network for all tasks, whose layers have a small update for each task."""

from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray import config
from mtrec_ray.config import Part
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, StatelessDropout
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.towers.base import TOWERS, Towers
from mtrec_ray.model.towers.tower import output_layer
from mtrec_ray.tasks.kind import TaskKind


class TaskUpdatedLinear(nn.Module):
    """[C, width] -> [C, out] for task t: W x + b + alpha / rank · Σ_i softmax_i(w_t / temperature) B_i Λ_t A x."""

    def __init__(self, tasks: int, width: int, out: int, sizes: "TaskUpdates.Params") -> None:
        super().__init__()
        rank, ups = sizes.rank, sizes.up_projections
        self.temperature, self.scaling = sizes.temperature, sizes.alpha / rank
        self.shared = nn.Linear(width, out)
        self.down = nn.Parameter(_uniform(width, rank, width))
        self.transforms = nn.Parameter(torch.eye(rank).repeat(tasks, 1, 1))
        self.ups = nn.Parameter(torch.zeros(ups, out, rank))
        self.choices = nn.Parameter(_uniform(ups, tasks, ups))  # not equal, or the zeros in `ups` would stay equal

    def forward(self, x: Tensor, task: int) -> Tensor:
        shares = torch.softmax(self.choices[task] / self.temperature, dim=0)
        up = torch.einsum("n,nor->or", shares, self.ups)
        low = functional.linear(functional.linear(x, self.down), self.transforms[task])
        result: Tensor = self.shared(x) + self.scaling * functional.linear(low, up)
        return result


@TOWERS.register("mtl_lora")
class TaskUpdates(Towers):
    """One network of `towers.hidden` over z; task t's updates ΔW_t = Σ_i softmax_i(w_t / τ) B_i Λ_t A of its layers.

    After Yang et al. 2024, "MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning" (arXiv 2410.09437): A and the B_i
    are shared, Λ_t (rank x rank, at first the identity) and w_t belong to the task, and B_i start at zero. The paper
    updates the frozen layers of a language model. There a row of text belongs to one task; here a candidate has all
    tasks at once, and updates inside the backbone would take one backbone pass per task. So they are here, after z,
    where W is trained too. Each task's last layer is its own.
    """

    class Params(Part):
        rank: PositiveInt = 8
        alpha: Annotated[float, Field(gt=0)] = 16.0
        """The updates are multiplied by alpha / rank."""
        up_projections: PositiveInt = 3
        """Among which the tasks share what they learn."""
        temperature: Annotated[float, Field(gt=0)] = 0.5
        """Of the softmax over the up-projections: lower ones make a task choose."""

    params: Params

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        super().__init__(tasks, config, context, domains)
        if not config.hidden:
            raise ConfigError(
                "towers.hidden is [], but 'mtl_lora' updates hidden layers: give it a layer or more, as [64], or "
                "choose towers.kind 'shared_bottom'."
            )
        shapes = list(zip([config.z_dim, *config.hidden[:-1]], config.hidden, strict=True))
        self.layers = nn.ModuleList(TaskUpdatedLinear(len(self.tasks), *shape, self.params) for shape in shapes)
        self.dropouts = nn.ModuleList(
            nn.ModuleList(StatelessDropout(config.dropout, f"tower.{name}.{i}", context) for i in range(len(shapes)))
            for name in self.names
        )
        self.outs = nn.ModuleList(output_layer(config.hidden[-1], task) for task in self.tasks)

    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        return {name: self._logits(z, self.place[name]) for name in wanted}

    def _logits(self, x: Tensor, task: int) -> Tensor:
        dropouts = cast(nn.ModuleList, self.dropouts[task])
        for layer, dropout in zip(self.layers, dropouts, strict=True):
            x = dropout(torch.relu(layer(x, task)))
        logits: Tensor = self.outs[task](x)
        return logits

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        found: dict[str, Sequence[Axis]] = {"outs": [self.names]}
        for i in range(len(self.layers)):
            found |= {f"layers.{i}.transforms": [self.names], f"layers.{i}.choices": [self.names]}
        return found


def _uniform(fan_in: int, *shape: int) -> Tensor:
    """Between ±1 / √fan_in, as the first weights of `nn.Linear`."""
    return torch.empty(*shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)
