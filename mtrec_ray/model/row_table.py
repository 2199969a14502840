"""Tables of vectors of which a step reads few rows, and changes no others: of ids and of categories.

A table is a buffer and no parameter. What a step reads is copied out of it, and the copies get the gradients, so no
tensor of the table's own size is made in a step, and no engine splits, exchanges or steps it with the parameters:
`engine.tables` does.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.model.entries import Axis, Rows

_BLOCK = 4096
"""Rows that are drawn together."""


class RowTable(nn.Module):
    """Rows int64 [...] -> their vectors [..., dim].

    The first vectors are normal with deviation `std`, a function of torch's seed, `name` and the row alone: a table
    that grew has in its new rows what it would have had in them from the start.
    """

    weight: Tensor
    """[rows, dim]"""

    def __init__(self, name: str, rows: int, dim: int, std: float) -> None:
        super().__init__()
        self.name = name
        self.is_trained = True
        """Whether what is read in training gets a gradient."""
        self.register_buffer("weight", torch.empty(rows, dim))
        for first in range(0, rows, _BLOCK):
            part = self.weight[first : first + _BLOCK]
            part.copy_(_drawn(torch.initial_seed(), name, first // _BLOCK, dim)[: len(part)] * std)
        self._read: list[tuple[Tensor, Tensor]] = []

    def forward(self, rows: Tensor) -> Tensor:
        vectors = functional.embedding(rows, self.weight)
        if self.is_trained and torch.is_grad_enabled():
            vectors.requires_grad_()
            self._read.append((rows, vectors))
        return vectors

    def take_gradients(self) -> tuple[Tensor, Tensor]:
        """Rows int64 [N] that were read since the last call, as often as they were, and the gradient of each [N, dim].

        Only of passes that a backward pass has gone through.
        """
        read = [
            (rows.flatten(), vectors.grad.flatten(0, -2)) for rows, vectors in self._read if vectors.grad is not None
        ]
        self._read.clear()
        if not read:
            return torch.zeros(0, dtype=torch.int64, device=self.weight.device), self.weight[:0]
        rows, gradients = zip(*read, strict=True)
        return torch.cat(rows), torch.cat(gradients)

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"weight": [Rows(self.name)]}

    def extra_repr(self) -> str:
        return f"{self.name}, {self.weight.shape[0]}, {self.weight.shape[1]}"


def row_tables(model: nn.Module) -> dict[str, RowTable]:
    """All tables of a model by the names of their weights, in the model's order."""
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, RowTable)}


def _drawn(seed: int, name: str, block: int, dim: int) -> Tensor:
    """Standard normal [_BLOCK, dim]: always a whole block, for what a generator gives depends on how much is asked."""
    digest = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(_BLOCK, dim, generator=generator)
