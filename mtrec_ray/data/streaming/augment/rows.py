"""Request rows as flat arrays, from which events, candidates and requests can be taken."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa

from mtrec_ray.data.requests.ragged import Ragged, offsets_of, spans

Array = np.ndarray[Any, np.dtype[Any]]

_TOKENS = ("history_ids", "history_ends", "candidate_ids", "candidate_ends")
_SEEN = "candidate_events"
_OF_EVENTS = "event_"
"""How the names of lists over events begin; all other lists are over candidates."""


@dataclass(frozen=True)
class RequestRows:
    """R requests with E events and C candidates, one request after the other; see docs/ARCHITECTURE.md for columns."""

    requests: pa.Table
    """[R] the columns with one value per request"""
    events: Array
    """int64 [R] how many the request has"""
    candidates: Array
    """int64 [R]"""
    seen: Array
    """int64 [C]: how many events of its request each candidate sees"""
    event_tokens: Ragged
    """[E], empty lists where there are no tokens"""
    candidate_tokens: Ragged
    """[C]"""
    of_events: Mapping[str, pa.Array]
    """[E * width]"""
    of_candidates: Mapping[str, pa.Array]
    """[C * width]"""
    names: tuple[str, ...]
    """Of all columns, in their order"""

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """The inverse of `table`. Raises `ValueError` for a list that is neither over events nor over candidates."""
        single: list[str] = []
        lists: dict[str, tuple[Array, pa.Array]] = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            if pa.types.is_list(column.type):
                lists[name] = (np.diff(column.offsets.to_numpy()).astype(np.int64), column.flatten())
            else:
                single.append(name)
        events, candidates = lists["event_time"][0], lists[_SEEN][0]
        of_events: dict[str, pa.Array] = {}
        of_candidates: dict[str, pa.Array] = {}
        for name, (lengths, values) in lists.items():
            if name in (*_TOKENS, _SEEN):
                continue
            counts, into = (events, of_events) if name.startswith(_OF_EVENTS) else (candidates, of_candidates)
            if not np.array_equal(lengths, counts * _width(len(values), counts)):
                raise ValueError(f"column '{name}' of the request rows is a list neither over events nor candidates")
            into[name] = values
        ends = {name: lists[name][1].to_numpy().astype(np.int64) for name in ("history_ends", "candidate_ends")}
        return cls(
            requests=table.select(single),
            events=events,
            candidates=candidates,
            seen=lists[_SEEN][1].to_numpy().astype(np.int64),
            event_tokens=_tokens(lists["history_ids"][1], ends["history_ends"], events),
            candidate_tokens=_tokens(lists["candidate_ids"][1], ends["candidate_ends"], candidates),
            of_events=of_events,
            of_candidates=of_candidates,
            names=tuple(table.column_names),
        )

    def table(self) -> pa.Table:
        """Request rows as they are prepared, with further columns over candidates at the end."""
        lists: dict[str, pa.Array] = {
            "history_ids": self.event_tokens.regroup(self.events).to_arrow(),
            "history_ends": _lists(_ends(self.event_tokens, self.events), self.events),
            "candidate_ids": self.candidate_tokens.regroup(self.candidates).to_arrow(),
            "candidate_ends": _lists(_ends(self.candidate_tokens, self.candidates), self.candidates),
            _SEEN: _lists(pa.array(self.seen.astype(np.int32)), self.candidates),
        }
        lists |= {name: _lists(values, self.events) for name, values in self.of_events.items()}
        lists |= {name: _lists(values, self.candidates) for name, values in self.of_candidates.items()}
        names = [*self.names, *(name for name in self.of_candidates if name not in self.names)]
        return pa.table({name: lists[name] if name in lists else self.requests.column(name) for name in names})

    @property
    def uids(self) -> Array:
        """int64 [R]"""
        return self.requests.column("request_uid").to_numpy()

    @property
    def tokens(self) -> Array:
        """int64 [R]"""
        history, own = self.event_tokens.regroup(self.events), self.candidate_tokens.regroup(self.candidates)
        return history.lengths + own.lengths

    @property
    def request_of_event(self) -> Array:
        """int64 [E]"""
        return np.repeat(np.arange(len(self.events)), self.events)

    @property
    def request_of_candidate(self) -> Array:
        """int64 [C]"""
        return np.repeat(np.arange(len(self.candidates)), self.candidates)

    @property
    def event_places(self) -> Array:
        """int64 [E]: number of each event in its request"""
        return spans(np.zeros(len(self.events), dtype=np.int64), self.events)

    def values(self, name: str) -> Array:
        """[C * width] of a column over candidates, or [E * width] of one over events."""
        column = (self.of_events if name.startswith(_OF_EVENTS) else self.of_candidates)[name]
        return column.to_numpy(zero_copy_only=False)

    def with_events(self, chosen: Array, seen: Array) -> Self:
        """Only these events, in this order, which must be request after request. `seen` [C]: as the field."""
        return replace(
            self,
            events=np.bincount(self.request_of_event[chosen], minlength=len(self.events)),
            seen=seen,
            event_tokens=self.event_tokens.take(chosen),
            of_events={name: _take(values, chosen, self.events) for name, values in self.of_events.items()},
        )

    def with_candidates(self, kept: Array) -> Self:
        """Only the candidates of bool [C], and only the requests that have one."""
        chosen = np.flatnonzero(kept)
        candidates = np.bincount(self.request_of_candidate[chosen], minlength=len(self.candidates))
        left = np.flatnonzero(candidates)
        events = spans(offsets_of(self.events)[left], self.events[left])
        return replace(
            self,
            requests=self.requests.take(pa.array(left)),
            events=self.events[left],
            candidates=candidates[left],
            seen=self.seen[chosen],
            event_tokens=self.event_tokens.take(events),
            candidate_tokens=self.candidate_tokens.take(chosen),
            of_events={name: _take(values, events, self.events) for name, values in self.of_events.items()},
            of_candidates={name: _take(values, chosen, self.candidates) for name, values in self.of_candidates.items()},
        )

    def with_column(self, name: str, values: pa.Array) -> Self:
        """With one more column over candidates."""
        return replace(self, of_candidates={**self.of_candidates, name: values})


def _width(values: int, counts: Array) -> int:
    return values // max(1, int(counts.sum()))


def _take(values: pa.Array, chosen: Array, counts: Array) -> pa.Array:
    """The entries with these numbers, of as many values each as there are for one of `counts`."""
    width = _width(len(values), counts)
    return values.take(pa.array((chosen[:, None] * width + np.arange(width)).ravel()))


def _tokens(ids: pa.Array, ends: Array, counts: Array) -> Ragged:
    """The tokens of each entry, from running ends that start anew with each request."""
    if not len(ends):
        return Ragged(np.zeros(0, dtype=np.int32), np.zeros(int(counts.sum()) + 1, dtype=np.int64))
    before = np.roll(ends, 1)
    before[(np.cumsum(counts) - counts)[counts > 0]] = 0
    return Ragged(ids.to_numpy(), offsets_of(ends - before))


def _ends(texts: Ragged, counts: Array) -> pa.Array:
    """int32: running ends of the texts, which start anew with each request."""
    before = np.repeat(texts.offsets[offsets_of(counts)[:-1]], counts)
    return pa.array((texts.offsets[1:] - before).astype(np.int32))


def _lists(values: pa.Array, counts: Array) -> pa.Array:
    offsets = offsets_of(counts * _width(len(values), counts)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
