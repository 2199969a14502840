"""Towers: from z, which all tasks share, to the logits of one task."""

import torch
from torch import Tensor, nn

from mtrec_ray.config import Towers
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.features import mlp
from mtrec_ray.multitask.losses import KindedTask
from mtrec_ray.tasks import KINDS


class Tower(nn.Module):
    """[C, z_dim] -> [C, outputs of the task's kind]; untrained it predicts the base rate, nearly."""

    def __init__(self, task: KindedTask, config: Towers, context: DropoutContext) -> None:
        super().__init__()
        kind = KINDS[task.kind]
        self.hidden, width = mlp(config.z_dim, config.hidden, config.dropout, f"tower.{task.name}", context)
        self.out = nn.Linear(width, kind.outputs(task))
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.copy_(torch.tensor(kind.initial_bias(task)))

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.out(self.hidden(z))
        return logits
