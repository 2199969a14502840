"""Gates: softmax weights of experts, and how much each expert was used."""

import torch
from torch import Tensor, nn


class GateMeter(nn.Module):
    """Gives the weights [C, experts] on unchanged, and keeps their sums over the candidates: see `Towers.gates`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.sums: Tensor | None = None

    def forward(self, weights: Tensor) -> Tensor:
        self.sums = weights.detach().sum(0)
        return weights


class Gate(nn.Module):
    """The mean of the experts, weighted by a softmax of a linear map: [C, width], [C, experts, H] -> [C, H]."""

    def __init__(self, name: str, width: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)
        self.meter = GateMeter(name)

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        weights: Tensor = self.meter(torch.softmax(self.linear(x), dim=1))
        return (weights[..., None] * experts).sum(1)
