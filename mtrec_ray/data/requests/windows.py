"""The window rule: how one user's candidates become requests of bounded length.

Half windows have H = `history.max_events` // 2 events. A candidate that may see e events belongs to the anchor
max(0, (e // H - 1) * H), and its request holds the events [anchor, anchor + 2H): so it sees at least min(e, H) events,
and the anchor depends on e alone, the same in training, evaluation and serving. With `history.max_events` 0 a request
holds no events, whatever its candidates' ends.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import History

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Window:
    """One request of a user."""

    first: int
    """Its first event"""
    stop: int
    """One past the last event that any of its candidates sees"""
    candidates: Array
    """int64 [C]: which of the given candidates, in their order"""
    seen: Array
    """int64 [C]: how many of the request's events each of them sees"""


def anchor(ends: Array, max_events: int) -> Array:
    """int64 [C]: first event of the window of candidates that may see `ends` events; `max_events` is at least 2."""
    half = max_events // 2
    return np.maximum(0, (ends // half - 1) * half)


def windows(ends: Array, history: History, shared_end: bool) -> list[Window]:
    """The requests of one user's candidates, all of one split, whose history ends are `ends` (int64 [C], any order).

    With `shared_end` every request has candidates of one end only, and the last `max_events` events before it.
    """
    if history.max_events == 0:
        ends = np.zeros_like(ends)
        first = ends
    else:
        first = np.maximum(0, ends - history.max_events) if shared_end else anchor(ends, history.max_events)
    group = ends if shared_end else first
    order = np.argsort(group, kind="stable")
    borders = np.flatnonzero(np.diff(group[order])) + 1
    result = []
    for members in np.split(order, borders) if len(order) else []:
        for start in range(0, len(members), history.max_candidates):
            chosen = members[start : start + history.max_candidates]
            begin, stop = int(first[chosen[0]]), int(ends[chosen].max())
            result.append(Window(begin, stop, chosen, ends[chosen] - begin))
    return result
