"""Declared vectors, as embeddings of images, as inputs of a network."""

import torch
from torch import Tensor, nn

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import VectorEntry


class VectorProjection(nn.Module):
    """One declared vector, centred, scaled to one length and projected: `Batch` -> [C, out_dim].

    The scaling is that of a layer norm without weights: it needs no statistics of the train rows, is the same when a
    row is served alone, and brings encoders of any scale to the one that the linear layer starts from. A missing vector
    has a learned output of its own, which no vector is mapped to.
    """

    def __init__(self, entry: VectorEntry, dim: int) -> None:
        super().__init__()
        self.columns = slice(entry.offset, entry.offset + entry.size)
        self.norm = nn.LayerNorm(entry.size, elementwise_affine=False)
        self.linear = nn.Linear(entry.size, dim)
        self.missing = nn.Parameter(torch.zeros(dim))
        self.out_dim = dim

    def forward(self, batch: Batch) -> Tensor:
        vectors = batch.vectors[:, self.columns]
        there = ~torch.isnan(vectors[:, :1])
        projected: Tensor = self.linear(self.norm(torch.where(there, vectors, 0.0)))
        return torch.where(there, projected, self.missing)
