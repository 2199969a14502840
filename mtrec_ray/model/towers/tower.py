"""The tower of one task: a small network and a linear layer."""

import torch
from torch import Tensor, nn

from mtrec_ray.config import Towers
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.features import mlp
from mtrec_ray.tasks.kind import TaskKind

UNTRAINED = 0.1
"""Factor of the first weights of what gives logits: an untrained tower predicts the base rate, nearly."""


class Tower(nn.Module):
    """[C, width] -> [C, outputs of the task]: layers of `hidden` with ReLU and dropout, then a linear one."""

    def __init__(self, task: TaskKind, width: int, config: Towers, context: DropoutContext) -> None:
        super().__init__()
        self.hidden, width = mlp(width, config.hidden, config.dropout, f"tower.{task.task.name}", context)
        self.out = output_layer(width, task)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.hidden(x))
        return logits


def output_layer(width: int, task: TaskKind) -> nn.Linear:
    """[C, width] -> logits [C, outputs of the task], at first near those of the base rate."""
    layer = nn.Linear(width, task.outputs)
    with torch.no_grad():
        layer.weight.mul_(UNTRAINED)
        layer.bias.copy_(torch.tensor(task.initial_bias()))
    return layer
