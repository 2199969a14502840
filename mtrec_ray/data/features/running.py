"""Running features of a user: sums over the events that a candidate may know, by prefix sums over the user's events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtrec_ray.data.features.signals import Signal
from mtrec_ray.data.features.statistics import PRIOR_WEIGHT, Statistics

Array = np.ndarray[Any, np.dtype[Any]]

_BASE_WEIGHT = 2.0
_RECENT = 5
SESSION_US = 3_600_000_000
_HALF_LIVES = (2, 8, 30)


@dataclass(frozen=True)
class Past:
    """E events of one user, sorted by time; S signals."""

    time: Array
    """int64 [E] microseconds"""
    item: Array
    """int64 [E] row of the item statistics, 0 = unknown"""
    identity: Array
    """int64 [E] names the item, also an unknown one"""
    value: Array
    """float64 [E, S] what the event adds to the sum of each signal"""
    weight: Array
    """float64 [E, S] what it adds to the denominator"""
    categories: dict[str, Array]
    """int64 [E, w] rows of the category's vocabulary, 0 unknown, -1 absent"""
    numbers: dict[str, Array]
    """float64 [E]"""

    def first(self, count: int) -> "Past":
        """The first `count` events: what is computed from them cannot depend on the others, not even in rounding."""
        arrays = {name: getattr(self, name)[:count] for name in ("time", "item", "identity", "value", "weight")}
        categories = {name: codes[:count] for name, codes in self.categories.items()}
        return Past(**arrays, categories=categories, numbers={n: values[:count] for n, values in self.numbers.items()})

    def residual(self, statistics: Statistics) -> Array:
        """float64 [E, S] label - the item's fitted mean (0 where nothing became known)."""
        return self.value - self.weight * statistics.mean[self.item]


@dataclass(frozen=True)
class Asked:
    """C candidates of the same user."""

    time: Array
    """int64 [C] microseconds"""
    end: Array
    """int64 [C] how many of the events may be known"""
    item: Array
    """int64 [C]"""
    identity: Array
    """int64 [C]"""
    lag: int
    """Microseconds by which knowledge is late"""
    categories: dict[str, Array]
    """int64 [C, w]"""
    numbers: dict[str, Array]
    """float64 [C]"""
    item_past: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """float64 [C, 2 + 4S] what the item has done so far (`item_past.answer`); empty if nothing running is declared"""


def prefix_sums(values: Array) -> Array:
    """[E + 1, ...]: element e is the sum of the first e values."""
    return np.concatenate([np.zeros((1, *values.shape[1:])), values]).cumsum(axis=0)


def base_residual(past: Past, asked: Asked, statistics: Statistics) -> Array:
    """float64 [C, S] the user's mean residual so far, drawn towards 0 as by 2 labels without residual."""
    total, count = prefix_sums(past.residual(statistics)), prefix_sums(past.weight)
    return total[asked.end] / (count[asked.end] + _BASE_WEIGHT)


def running_features(
    past: Past, asked: Asked, statistics: Statistics, signals: Sequence[Signal], chosen: list[int]
) -> dict[str, Array]:
    """How much the user did so far, and each signal's level: overall, in the last hour, in the last events."""
    value, weight, residual = past.value, past.weight, past.residual(statistics)
    sums, counts, squares, residuals = (prefix_sums(a) for a in (value, weight, value**2, residual))
    end, prior = asked.end, statistics.prior
    session = np.minimum(np.searchsorted(past.time, asked.time - asked.lag - SESSION_US, side="left"), end)
    recent = np.maximum(end - _RECENT, 0)
    base = base_residual(past, asked, statistics)
    mean = (sums[end] + PRIOR_WEIGHT * prior) / (counts[end] + PRIOR_WEIGHT)
    square = (squares[end] + PRIOR_WEIGHT * (prior**2 + statistics.spread**2)) / (counts[end] + PRIOR_WEIGHT)

    def since(first: Array) -> Array:
        total, count = residuals[end] - residuals[first], counts[end] - counts[first]
        return (total + _BASE_WEIGHT * base) / (count + _BASE_WEIGHT)

    levels = {"mean": mean, "residual": base, "hour": since(session), f"last{_RECENT}": since(recent)}
    levels |= {f"fading{h}": _fading(residual, weight, h, end, base) for h in _HALF_LIVES}
    features = {"user.events": np.log1p(end), "user.hour_events": np.log1p(end - session)}
    for s in chosen:
        features |= {f"user.{signals[s].name}.{level}": values[:, s] for level, values in levels.items()}
        if not signals[s].binary:
            features[f"user.{signals[s].name}.std"] = np.sqrt(np.maximum(square - mean**2, 0))[:, s]
    return features


def _fading(residual: Array, weight: Array, half_life: int, end: Array, base: Array) -> Array:
    """float64 [C, S] mean residual with weights that halve every `half_life` events."""
    from scipy.signal import lfilter  # loads for most of a second, which tasks without running features need not wait

    decay = [1.0, -(2.0 ** (-1 / half_life))]
    total, count = (
        np.concatenate([np.zeros((1, a.shape[1])), lfilter([1.0], decay, a, axis=0) if len(a) else a])
        for a in (residual, weight)
    )
    return (total[end] + base) / (count[end] + 1)
