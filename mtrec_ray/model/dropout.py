"""Dropout without a random state: what is dropped is a function of names, not of the order of computation.

The mask of an element is an integer hash of (seed, step, trial, module name, token uid, feature index). So it is the
same in a packed row and in a separate sequence, on one worker and on many, in a recomputed layer under activation
checkpointing, and in a run that was resumed. Random number generators give none of these.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class DropoutKey:
    """What the masks of one optimizer step depend on, beside the token and the place in the model."""

    seed: int
    step: int
    trial: int = 0

    def salt(self, name: str) -> int:
        """64 bits for the module called `name` (blake2b, so that neighbouring steps have nothing in common)."""
        text = f"{self.seed}/{self.step}/{self.trial}/{name}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@dataclass
class DropoutContext:
    """What the dropouts of one model share: the key of the step and the uids of the tokens that pass through."""

    key: DropoutKey | None = None
    uids: torch.Tensor | None = None
    """int64, of the shape of the activations without their last dimension"""

    @contextmanager
    def use(self, key: DropoutKey | None, uids: torch.Tensor | None) -> Iterator[None]:
        """Sets both for the forward passes inside."""
        before = self.key, self.uids
        self.key, self.uids = key, uids
        try:
            yield
        finally:
            self.key, self.uids = before

    def checkpoint_contexts(self) -> tuple[Any, Any]:
        """`context_fn` of `torch.utils.checkpoint`: the recomputation sees what the forward pass saw."""
        return self.use(self.key, self.uids), self.use(self.key, self.uids)


class StatelessDropout(nn.Module):
    """Inverted dropout of features [..., D] with masks from the shared context.

    Does nothing in evaluation mode; in training the context must hold a key. `name` must not be shared by two
    modules of a model, or both drop the same elements.
    """

    def __init__(self, p: float, name: str, context: DropoutContext) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout {p} is not in [0, 1)")
        self.p, self.name, self.context = p, name, context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        uids = self.context.uids
        if self.context.key is None:
            raise ValueError(f"dropout '{self.name}' needs a DropoutKey in training")
        if uids is None or uids.shape != x.shape[:-1]:
            found = None if uids is None else tuple(uids.shape)
            raise ValueError(f"dropout '{self.name}' needs uids of shape {tuple(x.shape[:-1])}, not {found}")
        dropped = dropped_elements(uids, x.shape[-1], self.context.key.salt(self.name), self.p)
        return x.masked_fill(dropped, 0.0) * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, name={self.name}"


@torch.no_grad()
def dropped_elements(uids: torch.Tensor, features: int, salt: int, p: float) -> torch.Tensor:
    """bool [..., features], true with probability `p`; a pure function of the arguments.

    Both indices are mixed apart (64 bits), then their exclusive or once more on 32 bits, where the work is: the
    finaliser "lowbias32" of C. Wellons' hash prospector.
    """
    signed = salt - (1 << 64) if salt >= 1 << 63 else salt
    tokens = mix64(uids ^ signed).to(torch.int32)
    columns = mix64(torch.arange(features, device=uids.device) - signed).to(torch.int32)
    x = tokens[..., None] ^ columns
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x < round(p * 2**32) - 2**31


def mix64(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int64 whose every output bit depends on every input bit (finaliser of splitmix64)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def token_uids(request_uids: torch.Tensor, requests: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """int64 [L]: a name for each token from its request's uid [R] and its place in the request.

    `requests` [L] and `offsets` [L] are `RequestLayout.token_requests()` and `.request_offsets()`.
    """
    return mix64(request_uids)[requests] + offsets


def feature_uids(row_ids: torch.Tensor) -> torch.Tensor:
    """int64 [C]: uids of candidates for dropout after the backbone, from their row ids."""
    return mix64(row_ids)
