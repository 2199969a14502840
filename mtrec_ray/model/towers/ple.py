"""Experts of single tasks beside shared ones, in one or several levels."""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mtrec_ray import config
from mtrec_ray.config import Part
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.entries import Axis, numbered
from mtrec_ray.model.towers.base import TOWERS, Towers
from mtrec_ray.model.towers.experts import Experts
from mtrec_ray.model.towers.gates import Gate
from mtrec_ray.model.towers.tower import Tower
from mtrec_ray.tasks.kind import TaskKind


class Extraction(nn.Module):
    """One level: from a state per task and a shared one to the next ones, each [C, width] -> [C, expert_hidden[-1]].

    Experts of task t read its state, shared ones the shared state. Task t's gate reads its state and mixes its own
    experts and the shared ones; the shared gate reads the shared state and mixes the experts of all. The last level
    has no shared gate.
    """

    def __init__(
        self,
        level: int,
        last: bool,
        names: Sequence[str],
        width: int,
        sizes: "CustomizedGateControl.Params",
        dropout: float,
        context: DropoutContext,
    ) -> None:
        """`level` counts from 1. Gates below the last level are named `level1/<task>`, the shared one `level1`."""
        super().__init__()
        own, common, hidden = sizes.experts, sizes.shared_experts, sizes.expert_hidden
        prefix = f"experts.{level}"
        self.place, self._own = {name: index for index, name in enumerate(names)}, own
        self.shared = Experts(common, width, hidden, dropout, f"{prefix}.shared", context)
        self.own = nn.ModuleList(Experts(own, width, hidden, dropout, f"{prefix}.of.{n}", context) for n in names)
        self.mixtures = nn.ModuleList(Gate(n if last else f"level{level}/{n}", width, own + common) for n in names)
        self.shared_mixture = None if last else Gate(f"level{level}", width, own * len(names) + common)

    def forward(
        self, states: dict[str, Tensor], shared: Tensor, wanted: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The next states of the `wanted` tasks, and the next shared state; in the last level that is as it was."""
        common = self.shared(shared)
        readers = wanted if self.shared_mixture is None else list(self.place)
        experts = {name: self.own[self.place[name]](states[name]) for name in readers}
        found = {
            name: self.mixtures[self.place[name]](states[name], torch.cat([experts[name], common], dim=1))
            for name in wanted
        }
        if self.shared_mixture is not None:
            shared = self.shared_mixture(shared, torch.cat([*experts.values(), common], dim=1))
        return found, shared

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        names = list(self.place)
        own = [expert for name in names for expert in numbered(f"expert of {name}", self._own)]
        mixed = [*own, *numbered("shared expert", self.shared.count)]
        return {"own": [names], "mixtures": [names], "shared_mixture.linear.weight": [mixed]}


@TOWERS.register("cgc")
class CustomizedGateControl(Towers):
    """Customised gate control: logits_t = tower_t(w_t(z) S_t(z)), w_t(z) = softmax(W_t z).

    S_t are the outputs of the task's own experts and of the shared ones. Tang et al. 2020, "Progressive Layered
    Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized Recommendations" (RecSys 2020, doi
    10.1145/3383313.3412236, no arXiv number). The experts read z, where the paper's read the input features; dropout
    is ours.
    """

    class Params(Part):
        experts: PositiveInt = 2
        """Of each task."""
        shared_experts: PositiveInt = 2
        expert_hidden: list[PositiveInt] = Field(default=[64], min_length=1)
        """Layers of each expert."""

    params: Params

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        super().__init__(tasks, config, context, domains)
        depth, out = self.depth(), self.params.expert_hidden[-1]
        self.levels = nn.ModuleList(
            Extraction(
                level,
                level == depth,
                self.names,
                config.z_dim if level == 1 else out,
                self.params,
                config.dropout,
                context,
            )
            for level in range(1, depth + 1)
        )
        self.towers = nn.ModuleList(Tower(task, out, config, context) for task in self.tasks)

    def depth(self) -> int:
        """How many extraction networks there are."""
        return 1

    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        states, shared = dict.fromkeys(self.names, z), z
        for above, level in enumerate(self.levels, start=1):
            # A level that has a shared gate reads the states of all tasks; the last one those of the wanted alone.
            read = self.names if above < len(self.levels) - 1 else wanted
            states, shared = level(states, shared, read)
        return {name: self.towers[self.place[name]](states[name]) for name in wanted}

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"towers": [self.names]}


@TOWERS.register("ple")
class ProgressiveLayeredExtraction(CustomizedGateControl):
    """Progressive layered extraction: `levels` extraction networks, each reading the states that the one below gave.

    Tang et al. 2020, as `cgc`, which is `ple` with one level: g_{t,j} = w_{t,j}(g_{t,j-1}) S_{t,j}, g_{t,0} = z, and
    logits_t = tower_t(g_{t,levels}). Below the last level there is also a shared state, mixed from the experts of all
    tasks and the shared ones. So with two levels or more a task's logits depend on all tasks' experts below the last.
    """

    class Params(CustomizedGateControl.Params):
        levels: PositiveInt = 2

    params: Params

    def depth(self) -> int:
        return self.params.levels
