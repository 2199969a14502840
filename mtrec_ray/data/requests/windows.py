"""The window rule: how users' candidates become requests of bounded length.

Half windows have H = `history.max_events` // 2 events. A candidate that may see e events belongs to the anchor
max(0, (e // H - 1) * H), and its request holds the events [anchor, anchor + 2H): so it sees at least min(e, H) events,
and the anchor depends on e alone, the same in training, evaluation and serving. With `history.max_events` 0 a request
holds no events, whatever its candidates' ends.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import History
from mtrec_ray.data.requests.ragged import Ragged

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Windows:
    """R requests of some users, user by user, and the C candidates in them."""

    user: Array
    """int64 [R]"""
    first: Array
    """int64 [R] the first event of the user that a request holds"""
    stop: Array
    """int64 [R] one past the last event that any of its candidates sees"""
    candidates: Ragged
    """Which of the given candidates are in each request, in their order"""
    seen: Array
    """int64 [C]: how many of its request's events each candidate sees, in the order of `candidates.values`"""


def anchor(ends: Array, max_events: int) -> Array:
    """int64 [C]: first event of the window of candidates that may see `ends` events; `max_events` is at least 2."""
    half = max_events // 2
    return np.maximum(0, (ends // half - 1) * half)


def windows(user: Array, ends: Array, history: History, shared_end: bool) -> Windows:
    """The requests of candidates, all of one split, of users `user` (int64 [C]) with history ends `ends` (int64 [C]).

    With `shared_end` every request has candidates of one end only, and the last `max_events` events before it.
    """
    if history.max_events == 0:
        ends = np.zeros_like(ends)
        first = ends
    else:
        first = np.maximum(0, ends - history.max_events) if shared_end else anchor(ends, history.max_events)
    group = ends if shared_end else first
    order = np.lexsort((group, user))
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(user[order]) != 0) | (np.diff(group[order]) != 0)
    within = np.arange(len(order)) - np.flatnonzero(begins)[np.cumsum(begins) - 1]
    starts = np.flatnonzero(within % history.max_candidates == 0)
    offsets = np.append(starts, len(order))
    own = order[starts]
    return Windows(
        user=user[own],
        first=first[own],
        stop=np.maximum.reduceat(ends[order], starts) if len(starts) else starts,
        candidates=Ragged(order, offsets),
        seen=ends[order] - np.repeat(first[own], np.diff(offsets)),
    )
