"""Tasks that follow one another, as click and purchase: each takes over what its parent's tower knows."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtrec_ray import config
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, StatelessDropout
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.features import mlp
from mtrec_ray.model.towers.base import TOWERS, Towers
from mtrec_ray.model.towers.gates import GateMeter
from mtrec_ray.model.towers.tower import output_layer
from mtrec_ray.tasks.kind import TaskKind


class Transfer(nn.Module):
    """The adaptive information transfer to one task: parent's state and own one, each [C, D] -> [C, D].

    With p = dropout(relu(linear(parent))), u over {p, own}: Σ_u w_u h_1(u), w = softmax_u(<h_2(u), h_3(u)> / √D),
    h_1, h_2, h_3 linear without bias.
    """

    def __init__(self, name: str, width: int, dropout: float, context: DropoutContext) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), StatelessDropout(dropout, f"transfer.{name}", context)
        )
        self.value, self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.meter = GateMeter(name)

    def forward(self, parent: Tensor, own: Tensor) -> Tensor:
        both = torch.stack([self.project(parent), own], dim=1)  # [C, 2, D]
        fit = (self.query(both) * self.key(both)).sum(-1) / own.shape[1] ** 0.5
        weights: Tensor = self.meter(torch.softmax(fit, dim=1))
        return (weights[..., None] * self.value(both)).sum(1)


@TOWERS.register("aitm")
class AdaptiveTransfer(Towers):
    """Adaptive information transfer multi-task: q_t = hidden_t(z), s_t = AIT(s_parent, q_t), logits_t = out_t(s_t).

    Xi et al. 2021, "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning
    in Targeted Display Advertising" (arXiv 2105.08489). Tasks are chained by `tasks.<name>.parent`; a task without
    parent has an ordinary tower, s_t = q_t. The paper has one chain; here a parent may have several children, each
    with a transfer of its own. Its behavioural expectation calibrator is a term of the loss, so it is not here. Its
    towers have batch normalisation, which would let a candidate's logits depend on its batch; ours have none. A gate
    of a task with a parent has two entries: the parent's information, its own.
    """

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        super().__init__(tasks, config, context, domains)
        self.parents = {task.task.name: task.parent.task.name for task in self.tasks if task.parent is not None}
        if not self.parents:
            raise ConfigError(
                "towers.kind 'aitm' passes on what is known of a task's parent, but no task has one: name one, as in "
                "tasks.purchase.parent: click, or choose towers.kind 'shared_bottom'."
            )
        self.hidden = nn.ModuleList()
        self.transfers = nn.ModuleList()
        self.outs = nn.ModuleList()
        for task in self.tasks:
            name = task.task.name
            hidden, width = mlp(config.z_dim, config.hidden, config.dropout, f"tower.{name}", context)
            self.hidden.append(hidden)
            self.transfers.append(
                Transfer(name, width, config.dropout, context) if name in self.parents else nn.Identity()
            )
            self.outs.append(output_layer(width, task))

    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        states: dict[str, Tensor] = {}
        for name in wanted:
            self._reach(name, z, states)
        return {name: self.outs[self.place[name]](states[name]) for name in wanted}

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"hidden": [self.names], "transfers": [self.names], "outs": [self.names]}

    def _reach(self, name: str, z: Tensor, states: dict[str, Tensor]) -> Tensor:
        """Adds s of the task and of its ancestors to `states`, each once, and gives the task's [C, D]."""
        if name not in states:
            own: Tensor = self.hidden[self.place[name]](z)
            if name in self.parents:
                own = self.transfers[self.place[name]](self._reach(self.parents[name], z, states), own)
            states[name] = own
        return states[name]
