"""Declared vectors, as embeddings of images, as inputs of a network."""

import torch
from torch import Tensor, nn

from mtrec_ray.data.manifest import VectorEntry


class VectorProjection(nn.Module):
    """One of the declared vectors that stand side by side, centred, scaled to one length and projected: [N, V] ->
    [N, out_dim].

    The scaling is that of a layer norm without weights: it needs no statistics of the train rows, is the same when a
    row is served alone, and brings encoders of any scale to the one that the linear layer starts from. A missing vector
    has a learned output of its own, which no vector is mapped to.
    """

    first_deviation = 3**-0.5
    """Of the elements of the first outputs: `nn.Linear` draws uniform weights up to 1 / sqrt(its inputs)."""

    def __init__(self, entry: VectorEntry, dim: int) -> None:
        super().__init__()
        self.name = f"vector.{entry.scope}.{entry.name}"
        self.columns = slice(entry.offset, entry.offset + entry.size)
        self.norm = nn.LayerNorm(entry.size, elementwise_affine=False)
        self.linear = nn.Linear(entry.size, dim)
        self.missing = nn.Parameter(torch.zeros(dim))
        self.out_dim = dim

    def forward(self, vectors: Tensor) -> Tensor:
        own = vectors[:, self.columns]
        there = ~torch.isnan(own[:, :1])
        projected: Tensor = self.linear(self.norm(torch.where(there, own, 0.0)))
        return torch.where(there, projected, self.missing)
