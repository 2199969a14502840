"""Several networks of the same shape, computed at once."""

import torch
from torch import Tensor, nn

from mtrec_ray.model.dropout import DropoutContext, StatelessDropout


class BatchedLinear(nn.Module):
    """`count` linear layers, each with an input of its own: [C, count, width] -> [C, count, out].

    Each starts as an `nn.Linear` does.
    """

    def __init__(self, count: int, width: int, out: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(count, out, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("cni,noi->cno", x, self.weight) + self.bias


class Experts(nn.Module):
    """`count` networks that all read the same: [C, width] -> [C, count, hidden[-1]].

    Layers of `hidden`, each a linear one, ReLU and dropout, whose masks are another expert's for each expert.
    """

    def __init__(
        self, count: int, width: int, hidden: list[int], dropout: float, name: str, context: DropoutContext
    ) -> None:
        super().__init__()
        self.count = count
        widths = [width, *hidden]
        self.layers = nn.ModuleList(BatchedLinear(count, *shape) for shape in zip(widths[:-1], hidden, strict=True))
        self.dropouts = nn.ModuleList(StatelessDropout(dropout, f"{name}.{i}", context) for i in range(len(hidden)))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, self.count, -1)
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            x = drop(torch.relu(layer(x)), dropout)
        return x


def drop(x: Tensor, dropout: nn.Module) -> Tensor:
    """Dropout of [C, count, D] as of count * D features of a candidate, so that no two of the networks share a mask."""
    dropped: Tensor = dropout(x.flatten(1))
    return dropped.view_as(x)
