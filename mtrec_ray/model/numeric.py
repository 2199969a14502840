"""Numbers as inputs of a network: standardised, with a flag for missing, and piecewise-linear between quantiles."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import NumberEntry
from mtrec_ray.model.entries import Axis, numbered

_LIMIT = 4.0
"""Standardised values are cut here: one wild value must not own a step."""


class NumberEncoder(nn.Module):
    """`Batch` -> [C, F * (2 + dim)]: standardised value, missing flag and `dim` learned features of each number.

    The learned features are a linear map, one per number, of the piecewise-linear encoding over the train quantiles
    (Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning"): bin k is 0 below its edge
    q_k, 1 above q_k+1 and linear between, so that small networks can bend where the data lie.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, numbers: Sequence[NumberEntry], dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([n.mean for n in numbers]), persistent=False)
        self.register_buffer("std", torch.tensor([n.std if n.std > 0 else 1.0 for n in numbers]), persistent=False)
        self.learned = PiecewiseLinear([n.quantiles for n in numbers], dim) if dim else None
        self.out_dim = len(numbers) * (2 + dim)
        self._dim = dim
        self._names = [f"{n.kind} {n.name}" for n in numbers]
        self._bins = [max(len(n.quantiles) - 1, 0) for n in numbers]

    def forward(self, batch: Batch) -> Tensor:
        numbers = batch.numbers
        missing = torch.isnan(numbers)
        standard = torch.where(missing, 0.0, (numbers - self.mean) / self.std).clamp(-_LIMIT, _LIMIT)
        parts = [standard, missing.float()]
        if self.learned is not None:
            parts.append(self.learned(numbers))
        return torch.cat(parts, dim=1)

    def columns(self) -> list[str]:
        """Names of the output's columns."""
        learned = [column for name in self._names for column in numbered(f"learned of {name}", self._dim)]
        return [*(f"value of {name}" for name in self._names), *(f"missing {name}" for name in self._names), *learned]

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        """A bin lies between two quantiles, and of a number with more or fewer of them between other ones."""
        names = [f"{name} in {bins} bins" for name, bins in zip(self._names, self._bins, strict=True)]
        bins = numbered("bin", max([1, *self._bins]))
        return {"learned.weight": [names, bins], "learned.bias": [names]}


class PiecewiseLinear(nn.Module):
    """float [C, F], NaN = missing, and ascending edges per number -> [C, F * dim]."""

    low: Tensor
    width: Tensor
    present: Tensor

    def __init__(self, edges: Sequence[Sequence[float]], dim: int) -> None:
        super().__init__()
        bins = max([1, *(len(e) - 1 for e in edges)])
        low, width, present = torch.zeros(len(edges), bins), torch.ones(len(edges), bins), torch.zeros(len(edges), bins)
        for f, edge in enumerate(edges):
            count = max(len(edge) - 1, 0)
            at = torch.tensor(edge)
            low[f, :count], width[f, :count], present[f, :count] = at[:-1], at.diff(), 1
        for name, value in (("low", low), ("width", width), ("present", present)):
            self.register_buffer(name, value, persistent=False)
        self.weight = nn.Parameter(torch.randn(len(edges), bins, dim) * 0.3 / bins**0.5)
        self.bias = nn.Parameter(torch.zeros(len(edges), dim))

    def forward(self, numbers: Tensor) -> Tensor:
        features = torch.einsum("cfk,fkd->cfd", self.encode(numbers), self.weight) + self.bias
        return torch.relu(features).flatten(1)

    def encode(self, numbers: Tensor) -> Tensor:
        """[C, F, bins], each in 0..1; zeros where missing."""
        inside = ((torch.nan_to_num(numbers)[:, :, None] - self.low) / self.width).clamp(0, 1)
        return inside * self.present * (~torch.isnan(numbers))[:, :, None]
