"""Inner products of the embedded parts of the side features."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from mtrec_ray.model.entries import Axis


class Interactions(nn.Module):
    """Vectors [C, width] of ids, categories, declared vectors -> [C, pairs]: the inner product of every two.

    The second-order term of factorization machines (Rendle 2010, eq. 1) between fields, as in DLRM (Naumov et al. 2019,
    arXiv 1906.00091, section 2.1.3); a network that reads the same vectors side by side needs much more data to learn
    products (Rendle et al. 2020, arXiv 2005.09683). What is wider than the narrowest is projected to its width. Unlike
    theirs the products are scaled, so that they begin with a deviation near 1 as the numbers beside them have: tables
    begin with short vectors, and products of these would be too small to be learned from in few steps.
    """

    def __init__(self, widths: Mapping[str, int], deviations: Sequence[float]) -> None:
        """`widths`: by name. `deviations`: of each, of the elements of its first vectors."""
        super().__init__()
        dim = min(widths.values())
        self.projections = nn.ModuleList(
            nn.Identity() if width == dim else nn.Linear(width, dim, bias=False) for width in widths.values()
        )
        self._names = list(widths)
        pairs = list(combinations(range(len(widths)), 2))
        self._first, self._second = [a for a, _ in pairs], [b for _, b in pairs]
        scale = torch.tensor([dim**-0.5 / (deviations[a] * deviations[b]) for a, b in pairs])
        self.register_buffer("scale", scale, persistent=False)
        self.out_dim = len(pairs)

    scale: Tensor
    """[pairs]"""

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """`vectors`: in the order of the names."""
        fields = torch.stack([project(v) for project, v in zip(self.projections, vectors, strict=True)], dim=1)
        return self.scale * (fields[:, self._first] * fields[:, self._second]).sum(2)

    def columns(self) -> list[str]:
        """Names of the output's columns."""
        return [f"{self._names[a]} with {self._names[b]}" for a, b in zip(self._first, self._second, strict=True)]

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"projections": [self._names]}
