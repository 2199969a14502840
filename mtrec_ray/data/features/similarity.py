"""Residuals of a user's earlier events, pooled with weights by likeness of the earlier event's item to the candidate.

A kernel is a function of a block of candidates and a block of events -> weights in [0, 1]. The pooled residual is
(sum of weight * (label - fitted item mean) + base) / (sum of weights + 1), base being the user's mean residual so far:
without like events it says what the user's level says. Only the last 2048 visible events count, which bounds the cost.
Neighbourhood models on residuals: Bell and Koren, "Scalable collaborative filtering with jointly derived neighborhood
interpolation weights" (2007).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mtrec_ray.data.features.running import Asked, Past, base_residual
from mtrec_ray.data.features.signals import Signal
from mtrec_ray.data.features.statistics import Statistics

Array = np.ndarray[Any, np.dtype[Any]]

_MOST_EVENTS = 2048
_BLOCK = 512
_FADE_HALF_LIFE = 20.0


class Kernel(NamedTuple):
    """Likeness of events to candidates."""

    name: str
    weights: Callable[[slice, slice], Array]
    """(candidates, events) -> float32 [c, e], an array of its own"""
    only: int | None = None
    """The one signal it is meant for; None: all"""


def same_item_kernel(past: Past, asked: Asked) -> list[Kernel]:
    """1 for the same item."""
    return [Kernel("", lambda c, e: (asked.identity[c, None] == past.identity[None, e]).astype(np.float32))]


def category_kernels(past: Past, asked: Asked, column: str, shared: bool) -> list[Kernel]:
    """Squared cosine of the sets of values; `shared`: 1 if they have one in common."""
    ours, theirs = _one_hot(asked.categories[column], past.categories[column])
    if shared:
        return [Kernel("", lambda c, e: np.minimum(ours[c] @ theirs[e].T, 1))]
    ours, theirs = _unit(ours), _unit(theirs)
    return [Kernel("", lambda c, e: (ours[c] @ theirs[e].T) ** 2)]


def number_kernels(past: Past, asked: Asked, feature: str, scale: float) -> list[Kernel]:
    """exp(-|difference| / scale); 0 where either is missing."""
    return [Kernel("", _near(asked.numbers[feature], past.numbers[feature], scale))]


def item_kernels(
    past: Past, asked: Asked, statistics: Statistics, signals: Sequence[Signal], chosen: list[int]
) -> list[Kernel]:
    """Squared positive cosine of item factors (seen by the same users; liked by the same users), nearness in popularity
    and in mean label."""
    kernels = [Kernel(".seen", _cosine(statistics.factors["shown"], past, asked))]
    for s in chosen:
        name = signals[s].name
        kernels.append(Kernel(f".{name}", _cosine(statistics.factors[name], past, asked), s))
    popularity = np.log1p(statistics.shown)
    kernels.append(Kernel(".popularity", _near(popularity[asked.item], popularity[past.item], 0.3)))
    for s in chosen:
        level = statistics.mean[:, s]
        scale = max(0.2 * float(statistics.spread[s]), 1e-9)
        kernels.append(Kernel(f".level.{signals[s].name}", _near(level[asked.item], level[past.item], scale), s))
    return kernels


class Pools:
    """What the pools of all kernels share: the events of one user, and which of them each candidate may see."""

    def __init__(self, past: Past, asked: Asked, statistics: Statistics) -> None:
        self.past, self.asked, self._statistics = past, asked, statistics
        self._columns: dict[tuple[int, ...], tuple[Array, Array, Array]] = {}

    @cached_property
    def blocks(self) -> list["_Block"]:
        return [_block(self.asked.end, first) for first in range(0, len(self.asked.end), _BLOCK)]

    def of(self, signals: Sequence[int]) -> tuple[Array, Array, Array]:
        """Of some signals: float32 [E, s] residual, float32 [E, s] weight, float64 [C, s] base."""
        if tuple(signals) not in self._columns:
            self._columns[tuple(signals)] = tuple(np.asfortranarray(a[:, signals]) for a in self._all)  # type: ignore[assignment]
        return self._columns[tuple(signals)]

    @cached_property
    def _all(self) -> tuple[Array, Array, Array]:
        residual = self.past.residual(self._statistics).astype(np.float32)
        base = base_residual(self.past, self.asked, self._statistics)
        return residual, self.past.weight.astype(np.float32), base


class _Block(NamedTuple):
    """Some candidates and the events that any of them uses."""

    c: slice
    e: slice
    hidden: Array
    """bool [c, e] events that the candidate may not see, or that are too long ago"""
    fade: Array
    """float32 [c, e] halves every 20 events"""


def pooled_features(
    name: str, kernels: list[Kernel], pools: Pools, signals: Sequence[Signal], chosen: list[int], fading: bool
) -> dict[str, Array]:
    """Per kernel the log of the summed weights and the pooled residual of each signal; with `fading` the latter also
    with weights that halve every 20 events, without it the log of the seconds since the last like event."""
    count = len(pools.asked.end)
    features: dict[str, Array] = {}
    for kernel in kernels:
        mine = chosen if kernel.only is None else [kernel.only]
        residual, weight, base = pools.of(mine)
        total, last = np.zeros(count), np.full(count, np.nan)
        pooled = {part: np.zeros((count, len(mine))) for part in (["residual", "fading"] if fading else ["residual"])}
        for c, e, hidden, fade in pools.blocks:
            likeness = kernel.weights(c, e)
            likeness[hidden] = 0
            total[c] = likeness.sum(axis=1)
            for part, pool in pooled.items():
                if part == "fading":
                    likeness = likeness * fade
                pool[c] = (likeness @ residual[e] + base[c]) / (likeness @ weight[e] + 1)
            if not fading:
                last[c] = _last(likeness, pools.past.time[e])
        features[f"{name}{kernel.name}.weight"] = np.log1p(total)
        if not fading:
            features[f"{name}{kernel.name}.gap"] = np.log1p((pools.asked.time - last) / 1e6)
        for part, pool in pooled.items():
            features |= {f"{name}{kernel.name}.{signals[s].name}.{part}": pool[:, i] for i, s in enumerate(mine)}
    return features


def _block(ends: Array, first: int) -> _Block:
    c = slice(first, min(first + _BLOCK, len(ends)))
    e = slice(max(0, int(ends[c].min()) - _MOST_EVENTS), int(ends[c].max()))
    position = ends[c, None] - 1 - np.arange(e.start, e.stop)[None]  # how far back an event lies, 0 = the last visible
    fade = np.exp2(-np.maximum(position, 0).astype(np.float32) / _FADE_HALF_LIFE)
    return _Block(c, e, (position < 0) | (position >= _MOST_EVENTS), fade)


def _last(likeness: Array, times: Array) -> Array:
    """float64 [c] time of the last like event, NaN without one."""
    if not likeness.shape[1]:
        return np.full(len(likeness), np.nan)
    latest = np.where(likeness > 0, times[None].astype(np.float64), -np.inf).max(axis=1)
    return np.where(np.isfinite(latest), latest, np.nan)


def _one_hot(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """float32 [C, U], [E, U] over the U known values that this user met."""
    known, codes = np.unique(np.concatenate([ours.ravel(), theirs.ravel()]), return_inverse=True)
    parts = []
    for codes_of, shape in ((codes[: ours.size], ours.shape), (codes[ours.size :], theirs.shape)):
        table = np.zeros((shape[0], len(known)), dtype=np.float32)
        table[np.arange(shape[0])[:, None], codes_of.reshape(shape)] = 1
        parts.append(table[:, known > 0])
    return parts[0], parts[1]


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _cosine(factors: Array, past: Past, asked: Asked) -> Callable[[slice, slice], Array]:
    ours, theirs = factors[asked.item], factors[past.item]
    return lambda c, e: np.maximum(ours[c] @ theirs[e].T, 0) ** 2


def _near(ours: Array, theirs: Array, scale: float) -> Callable[[slice, slice], Array]:
    def weights(c: slice, e: slice) -> Array:
        distance = np.abs(ours[c, None] - theirs[None, e]) / scale  # large values (years) lose too much in float32
        likeness = np.exp(-distance.astype(np.float32))
        likeness[np.isnan(likeness)] = 0
        return likeness

    return weights
