"""One network per task, each of whose layers may take over from the others."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mtrec_ray import config
from mtrec_ray.config import Part
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, StatelessDropout
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.towers.base import TOWERS, Towers
from mtrec_ray.model.towers.experts import BatchedLinear, drop
from mtrec_ray.model.towers.tower import output_layer
from mtrec_ray.tasks.kind import TaskKind


class Stitch(nn.Module):
    """Mixes the columns of T tasks: [C, T, D] -> [C, D] for each of `rows`, out[t] = Σ_u weight[t, u] x[u]."""

    def __init__(self, tasks: int, own: float) -> None:
        super().__init__()
        others = (1 - own) / max(tasks - 1, 1)
        self.weight = nn.Parameter(torch.full((tasks, tasks), others).fill_diagonal_(own if tasks > 1 else 1.0))

    def forward(self, x: Tensor, rows: Sequence[int]) -> list[Tensor]:
        return [torch.einsum("u,cud->cd", self.weight[t], x) for t in rows]  # row by row: bits do not depend on `rows`


@TOWERS.register("cross_stitch")
class CrossStitch(Towers):
    """Cross-stitch networks: after each hidden layer, x̃_t = Σ_u α_tu x_u over the tasks' columns.

    Misra et al. 2016, "Cross-stitch Networks for Multi-task Learning" (arXiv 1604.03539). The paper stitches two
    convolutional networks after pooling and fully connected layers; here T columns are stitched after each layer of
    `towers.hidden`, by one matrix a layer. As there, a row of α starts as a convex combination, most of it the task's
    own. The paper gives α a learning rate 100 to 1000 times that of the weights; here it has that of the towers. A
    task's logits depend on the columns of all tasks.
    """

    class Params(Part):
        own: Annotated[float, Field(gt=0, le=1)] = 0.9
        """A task's first weight for its own column; the other tasks share the rest equally."""

    params: Params

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        super().__init__(tasks, config, context, domains)
        if not config.hidden:
            raise ConfigError(
                "towers.hidden is [], but 'cross_stitch' mixes the tasks after hidden layers: give it a layer or more, "
                "as [64], or choose towers.kind 'shared_bottom'."
            )
        count, widths = len(self.tasks), [config.z_dim, *config.hidden]
        shapes = zip(widths[:-1], config.hidden, strict=True)
        self.layers = nn.ModuleList(BatchedLinear(count, *shape) for shape in shapes)
        self.dropouts = nn.ModuleList(
            StatelessDropout(config.dropout, f"columns.{i}", context) for i in range(len(config.hidden))
        )
        self.stitches = nn.ModuleList(Stitch(count, self.params.own) for _ in config.hidden)
        self.outs = nn.ModuleList(output_layer(config.hidden[-1], task) for task in self.tasks)

    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        everyone, rows = range(len(self.tasks)), [self.place[name] for name in wanted]
        mixed = [z] * len(self.tasks)
        for i, (layer, dropout, stitch) in enumerate(zip(self.layers, self.dropouts, self.stitches, strict=True)):
            columns = drop(torch.relu(layer(torch.stack(mixed, dim=1))), dropout)
            mixed = stitch(columns, rows if i == len(self.layers) - 1 else everyone)
        return {name: self.outs[t](x) for name, t, x in zip(wanted, rows, mixed, strict=True)}

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        found: dict[str, Sequence[Axis]] = {"outs": [self.names]}
        for i in range(len(self.layers)):
            found |= {f"layers.{i}.weight": [self.names], f"layers.{i}.bias": [self.names]}
            found |= {f"stitches.{i}.weight": [self.names, self.names]}
        return found
