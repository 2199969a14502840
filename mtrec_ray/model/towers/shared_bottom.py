"""A tower of its own for each task, on what all tasks share."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mtrec_ray import config
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.towers.base import TOWERS, Towers
from mtrec_ray.model.towers.tower import Tower
from mtrec_ray.tasks.kind import TaskKind


@TOWERS.register("shared_bottom")
class SharedBottom(Towers):
    """Hard parameter sharing: logits_t = tower_t(z).

    Caruana 1997, "Multitask Learning" (Machine Learning 28). The shared part is all that comes before z.
    """

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        super().__init__(tasks, config, context, domains)
        self.towers = nn.ModuleList(Tower(task, config.z_dim, config, context) for task in self.tasks)

    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        return {name: self.towers[self.place[name]](z) for name in wanted}

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"towers": [self.names]}
