"""Where requests, histories and candidates lie in one packed row of tokens.

A row holds R requests one after another, without padding; a request is its history tokens followed by the tokens of
each of its candidates:

    [history 0][candidate 0][candidate 1] [history 1][candidate 2] ...

A candidate sees the first `candidate_end` history tokens of its request and itself, and its positions go on from
there, so that it is the sequence `history[:end] + candidate` which the row need not repeat. Candidates shown together
share one end; ends that differ make a *staircase*.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mtrec_ray.errors import BackboneError

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class SeparateBatch:
    """C candidates as C sequences of at most T tokens, padded on the right: the layout without packing."""

    tokens: torch.Tensor
    """int64 [C, T] index into the packed row of each token; 0 where padded"""
    end: torch.Tensor
    """int64 [C] number of history tokens, so the index of the first own token"""
    length: torch.Tensor
    """int64 [C] number of tokens"""

    @property
    def present(self) -> torch.Tensor:
        """bool [C, T], false where padded."""
        steps = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return steps < self.length[:, None]


@dataclass(frozen=True)
class RequestLayout:
    """One packed row of L tokens: R requests, C candidates; each of them may be zero. Lengths are tokens.

    Build it with `from_lengths` or `from_arrays`. The tensors lie on `device`; a copy on the host is kept,
    so that planning the attention never waits for a GPU.
    """

    history_start: torch.Tensor
    """int64 [R] index of the request's first token"""
    history_length: torch.Tensor
    """int64 [R]"""
    candidate_request: torch.Tensor
    """int64 [C]"""
    candidate_start: torch.Tensor
    """int64 [C] index of the candidate's first token"""
    candidate_length: torch.Tensor
    """int64 [C], at least 1"""
    candidate_end: torch.Tensor
    """int64 [C] how many history tokens of its request the candidate sees"""
    length: int
    causal: bool
    host: dict[str, IntArray] = field(repr=False, compare=False)
    """The tensors above as numpy arrays."""
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What the attention derives from the layout once per row: masks by data type and device."""

    @classmethod
    def from_lengths(
        cls,
        history_lengths: Sequence[int],
        candidate_lengths: Sequence[Sequence[int]],
        candidate_ends: Sequence[Sequence[int]],
        causal: bool = True,
    ) -> "RequestLayout":
        """Layout of R requests from nested lists: one inner list of candidates per request."""
        counts = [len(lengths) for lengths in candidate_lengths]
        if counts != [len(ends) for ends in candidate_ends]:
            raise ValueError("candidate_lengths and candidate_ends differ in their numbers of candidates")
        flat_lengths = [n for lengths in candidate_lengths for n in lengths]
        flat_ends = [n for ends in candidate_ends for n in ends]
        return cls.from_arrays(history_lengths, counts, flat_lengths, flat_ends, causal)

    @classmethod
    def from_arrays(
        cls,
        history_length: Sequence[int] | IntArray,
        candidate_count: Sequence[int] | IntArray,
        candidate_length: Sequence[int] | IntArray,
        candidate_end: Sequence[int] | IntArray,
        causal: bool = True,
    ) -> "RequestLayout":
        """Layout from flat arrays: [R] history lengths and candidate counts, [C] candidate lengths and ends.

        Raises `BackboneError` for a bidirectional row (`causal=False`) with a candidate that does not see its whole
        history.
        """
        history, counts = _int64(history_length), _int64(candidate_count)
        lengths, ends = _int64(candidate_length), _int64(candidate_end)
        request = np.repeat(np.arange(len(history)), counts)
        _check(history, counts, lengths, ends, request, causal)
        before = np.cumsum(lengths) - lengths  # candidate tokens before this candidate
        request_candidates = np.bincount(request, weights=lengths, minlength=len(history)).astype(np.int64)
        request_length = history + request_candidates
        start = np.cumsum(request_length) - request_length
        candidate_start = before + np.cumsum(history)[request]
        host = {
            "history_start": start,
            "history_length": history,
            "candidate_request": request,
            "candidate_start": candidate_start,
            "candidate_length": lengths,
            "candidate_end": ends,
        }
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in host.items()}
        return cls(**tensors, length=int(request_length.sum()), causal=causal, host=host)

    def to(self, device: torch.device | str) -> "RequestLayout":
        """The same layout with its tensors on `device`."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in self.host}
        return replace(self, **moved, cache={})

    @property
    def device(self) -> torch.device:
        return self.history_start.device

    @property
    def num_requests(self) -> int:
        return len(self.host["history_length"])

    @property
    def num_candidates(self) -> int:
        return len(self.host["candidate_length"])

    @cached_property
    def largest_position(self) -> int:
        """Largest position id in the row, -1 if it is empty; known without asking the device."""
        history = self.host["history_length"].max(initial=0)
        own = (self.host["candidate_end"] + self.host["candidate_length"]).max(initial=0)
        return int(max(history, own)) - 1

    @cached_property
    def host_positions(self) -> IntArray:
        """int64 [L] as `positions`, on the host."""
        positions = np.arange(self.length)
        positions -= np.repeat(self.host["history_start"], self._request_lengths())
        first = self.host["candidate_start"]
        own, candidate = _ranges(first, self.host["candidate_length"])
        positions[own] = (own - first[candidate]) + self.host["candidate_end"][candidate]
        return positions

    def positions(self) -> torch.Tensor:
        """int64 [L]: a history counts from 0, a candidate from its history end."""
        return torch.from_numpy(self.host_positions).to(self.device)

    def last_tokens(self) -> torch.Tensor:
        """int64 [C]: index of each candidate's last token."""
        return self.candidate_start + self.candidate_length - 1

    def request_offsets(self) -> torch.Tensor:
        """int64 [L]: index of each token within its request; a name for it that no packing changes."""
        lengths = self._request_lengths()
        offsets = np.arange(self.length) - np.repeat(self.host["history_start"], lengths)
        return torch.from_numpy(offsets).to(self.device)

    def token_requests(self) -> torch.Tensor:
        """int64 [L]: the request each token belongs to."""
        return torch.from_numpy(np.repeat(np.arange(self.num_requests), self._request_lengths())).to(self.device)

    def dense_mask(self) -> torch.Tensor:
        """bool [L, L], query by key: the definition that every faster attention is tested against."""
        request = self.token_requests()
        candidate = torch.full((self.length,), -1, device=self.device)  # -1 = a history token
        own, of = _ranges(self.host["candidate_start"], self.host["candidate_length"])
        candidate[torch.from_numpy(own)] = torch.from_numpy(of).to(self.device)
        index = torch.arange(self.length, device=self.device)
        # A history token sees its request's history; a candidate token the history before its end, and itself.
        end = torch.full((self.length,), self.length, device=self.device)
        end[candidate >= 0] = self.candidate_end[candidate[candidate >= 0]]
        to_history = (candidate < 0)[None, :] & (self.request_offsets()[None, :] < end[:, None])
        to_own = (candidate[:, None] == candidate[None, :]) & (candidate >= 0)[:, None]
        mask = (request[:, None] == request[None, :]) & (to_history | to_own)
        return mask & (index[None, :] <= index[:, None]) if self.causal else mask

    def separate(self) -> SeparateBatch:
        """Every candidate as a sequence of its own: `history[:end] + candidate`, all in one padded batch."""
        end = self.host["candidate_end"][:, None]
        length = end[:, 0] + self.host["candidate_length"]
        steps = np.arange(length.max(initial=0))[None, :]
        history = self.host["history_start"][self.host["candidate_request"], None] + steps
        own = self.host["candidate_start"][:, None] + steps - end
        tokens = np.where(steps < end, history, own)
        tokens[steps >= length[:, None]] = 0
        arrays = (tokens, end[:, 0], length)
        return SeparateBatch(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def _request_lengths(self) -> IntArray:
        return np.diff(self.host["history_start"], append=self.length)


def joined(layouts: Iterable[RequestLayout]) -> RequestLayout:
    """The layout of rows laid one after the other, on the device of the first."""
    rows = list(layouts)
    if len(rows) == 1:
        return rows[0]
    counts = [np.bincount(row.host["candidate_request"], minlength=row.num_requests) for row in rows]
    whole = RequestLayout.from_arrays(
        np.concatenate([row.host["history_length"] for row in rows]),
        np.concatenate(counts),
        np.concatenate([row.host["candidate_length"] for row in rows]),
        np.concatenate([row.host["candidate_end"] for row in rows]),
        causal=rows[0].causal,
    )
    return whole.to(rows[0].device)


def _int64(values: Sequence[int] | IntArray) -> IntArray:
    return np.array(values, dtype=np.int64)


def _ranges(starts: IntArray, lengths: IntArray) -> tuple[IntArray, IntArray]:
    """The concatenated ranges [start, start + length), and for each entry which range it is from."""
    which = np.repeat(np.arange(len(lengths)), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[which] + offset, which


def _check(
    history: IntArray, counts: IntArray, lengths: IntArray, ends: IntArray, request: IntArray, causal: bool
) -> None:
    if not len(counts) == len(history) or not len(request) == len(lengths) == len(ends):
        raise ValueError(
            f"{len(history)} histories, {len(counts)} counts that sum to {len(request)}, "
            f"{len(lengths)} candidate lengths and {len(ends)} ends do not belong together"
        )
    if (history < 0).any() or (lengths < 1).any():
        raise ValueError("a history has at least 0 tokens and a candidate at least 1")
    if (ends < 0).any() or (ends > history[request]).any():
        raise ValueError("a candidate's history end lies between 0 and the length of its request's history")
    if not causal and (ends != history[request]).any():
        c = int(np.flatnonzero(ends != history[request])[0])
        raise BackboneError(
            f"an encoder reads its history in both directions, so every candidate of a request must see all of it: "
            f"candidate {c} sees {ends[c]} of {history[request[c]]} history tokens. "
            "Set history.layout: shared_end, or use a decoder."
        )
