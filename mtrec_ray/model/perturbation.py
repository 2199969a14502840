"""Something added to what a model reads, between its inputs and the first layer that mixes them.

It enters by a hook and changes no weight, so it works with frozen and with trained embeddings, and where an engine has
split the weights over the ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mtrec_ray.data.batch import Batch
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.tasks.groups import group_sums

Place = Literal["tokens", "features"]
"""`tokens`: the rows are the L tokens of a batch, with what the embedding layer gives for each; a unit is a request.
`features`: the rows are its C candidates, with all that the network of the side features reads; each is a unit."""


@dataclass
class Reading:
    """One forward pass's inputs [N, D] of N rows, and what was added to them."""

    added: Tensor | None = None
    """[N, D]; None = zeros, which the pass makes, together with `values`"""
    values: Tensor | None = None
    """[N, D] the inputs; zero for rows that nothing read"""

    def read(self, inputs: Tensor, rows: Tensor, count: int) -> Tensor:
        """Inputs [..., D] of the rows int64 [...], out of `count`, with what is added to them."""
        width = inputs.shape[-1]
        if self.added is None:
            dtype = torch.promote_types(inputs.dtype, torch.float32)
            self.added = inputs.new_zeros(count, width, dtype=dtype).requires_grad_()
            self.values = inputs.new_zeros(count, width)
            self.values[rows.flatten()] = inputs.detach().reshape(-1, width)
        # not `added[rows]`, whose gradient is summed up in the order in which threads come
        return inputs + functional.embedding(rows, self.added).to(inputs.dtype)


@contextmanager
def reading(model: Recommender, batch: Batch, place: Place, found: Reading) -> Iterator[None]:
    """Inside, a forward pass over `batch` is the one that `found` is of."""
    with _token_hook(model, batch, found) if place == "tokens" else _feature_hook(model, batch, found):
        yield


@contextmanager
def _token_hook(model: Any, batch: Batch, found: Reading) -> Iterator[None]:
    backbone, layout = model.backbone, batch.layout
    device = batch.ids.device
    if layout.num_candidates == 0:  # the backbone reads one token, of which nothing is used
        rows = torch.zeros(1, 1, dtype=torch.int64, device=device)
    elif backbone.mode == "packed":
        rows = torch.arange(layout.length, device=device)[None]
    else:
        rows = layout.separate().tokens

    def add(module: Any, arguments: Any, embeddings: Tensor) -> Tensor:
        return found.read(embeddings, rows, max(1, layout.length))

    handle = backbone.model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _feature_hook(model: Recommender, batch: Batch, found: Reading) -> Iterator[None]:
    rows = torch.arange(batch.num_candidates, device=batch.row_ids.device)

    def add(module: Any, arguments: Any) -> tuple[Tensor]:
        return (found.read(arguments[0], rows, len(rows)),)

    handle = model.side.network.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


def units(batch: Batch, place: Place) -> tuple[Tensor, int]:
    """int64 [N] the unit of each row, and how many units there are."""
    if place == "features":
        return torch.arange(batch.num_candidates, device=batch.row_ids.device), batch.num_candidates
    requests = batch.layout.token_requests()
    missing = max(1, batch.layout.length) - batch.layout.length
    return functional.pad(requests, (0, missing)), max(1, batch.layout.num_requests)


def unit_norms(rows: Tensor, unit: Tensor, count: int) -> Tensor:
    """[N, D], unit int64 [N] -> float64 [count]: the Euclidean norm of all that each unit has."""
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return group_sums(lengths**2, unit, count).sqrt()
