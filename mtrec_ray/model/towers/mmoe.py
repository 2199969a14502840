"""Experts that all tasks share, and a gate for each task."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mtrec_ray import config
from mtrec_ray.config import Part
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.towers.base import TOWERS, Towers
from mtrec_ray.model.towers.experts import Experts
from mtrec_ray.model.towers.gates import Gate
from mtrec_ray.model.towers.tower import Tower
from mtrec_ray.tasks.kind import TaskKind


@TOWERS.register("mmoe")
class MultiGateMixture(Towers):
    """Multi-gate mixture of experts: logits_t = tower_t(Σ_i g_t(z)_i f_i(z)), g_t(z) = softmax(W_t z).

    Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts" (KDD 2018,
    doi 10.1145/3219819.3220007, no arXiv number). The experts f_i read z, which is learned itself, where the paper's
    read the input features; dropout is ours.
    """

    class Params(Part):
        experts: Annotated[int, Field(ge=2)] = 4
        expert_hidden: list[PositiveInt] = Field(default=[64], min_length=1)
        """Layers of each expert."""

    params: Params

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        super().__init__(tasks, config, context, domains)
        count, hidden = self.params.experts, self.params.expert_hidden
        self.experts = Experts(count, config.z_dim, hidden, config.dropout, "experts", context)
        self.mixtures = nn.ModuleList(Gate(name, config.z_dim, count) for name in self.names)
        self.towers = nn.ModuleList(Tower(task, hidden[-1], config, context) for task in self.tasks)

    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        experts = self.experts(z)
        places = {name: self.place[name] for name in wanted}
        return {name: self.towers[t](self.mixtures[t](z, experts)) for name, t in places.items()}

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"mixtures": [self.names], "towers": [self.names]}
