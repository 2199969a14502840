"""What happened to a user, an item or a session before, after, and over the whole log; and how well a column knows it.

A column that is known when an item is shown may know how active a user is, or how good an item. It cannot know what
chance will add: given their rate, counts of what is still to come vary at least as a Poisson variable does, sums and
means of labels at least as much as labels vary within a key. So of the squared error with which a column tells a count
or a mean, in units of that variance (`Closeness.value`), 1 is the least that is honest, however good the column; users
who come in bursts leave more. A column counted over the whole log leaves about 0. Where counts are less random than
Poisson (everybody has ten rows), what was known before tells them as well, and the column must be clearly closer still.

How a target follows from a column is learnt on one half of the keys (a monotone function, straight between its points)
and measured on the other: on the same keys a flexible function would learn the chance, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from mtrec_ray.check.examined import SESSION_US, View, groups
from mtrec_ray.data.requests.ids import hashed

Array = np.ndarray[Any, np.dtype[Any]]

HONEST = 0.5
"""Half of what chance leaves, and half of what the best known-before count leaves: no honest column comes so close."""
MOST_KEYS, LEAST_KEYS = 5_000, 30
LEAST_LABELS = 4
"""Other labels of a key, below which their mean says nothing."""
LATER_SHARE = 0.2
"""The last part of the log's rows, for columns of tables that know that part."""
_DAY_US = 86_400_000_000
_WINDOWS = {"the next day": _DAY_US, "the next 7 days": 7 * _DAY_US}


class Closeness(NamedTuple):
    """How closely a column tells a target; 0 = exactly, 1 = as closely as the rate itself would."""

    value: float
    high: float
    """Its upper end, three standard errors above"""
    keys: int


@dataclass(frozen=True)
class Target:
    """Something of K keys, one row each, that nobody knows at the time of that row."""

    name: str
    chosen: Array
    """int64 [K] candidates"""
    value: Array
    """float64 [K]"""
    weight: Array | None
    """float64 [K]; None of counts, which weigh less the larger they are expected"""
    variance: Array | None
    """float64 [K] by chance alone; None of counts, whose variance is what is expected"""
    before: list[Array]
    """float64 [K] each: what was known before, time, counts and labels so far"""

    @cached_property
    def known(self) -> float:
        """Closeness of the best of what was known before, or of nothing."""
        found = [closeness(values, self) for values in [*self.before, np.zeros(len(self.chosen))]]
        return min(f.value for f in found if f is not None)


def closeness(values: Array, target: Target) -> Closeness | None:
    """`values` [K] of a column against the target, by the better of a rising and a falling function; None: too few keys
    with a value. Keys outside the range of the other half are left out."""
    there = np.flatnonzero(np.isfinite(values))
    if len(there) < LEAST_KEYS:
        return None
    order = there[np.argsort(values[there], kind="stable")]
    halves = order[::2], order[1::2]
    parts = [
        [_errors(values, target, fitted, asked, rising) for fitted, asked in (halves, halves[::-1])]
        for rising in (True, False)
    ]
    return min((_ratio(*(np.concatenate(both) for both in zip(*part, strict=True))) for part in parts), key=_value)


def _errors(values: Array, target: Target, fitted: Array, asked: Array, rising: bool) -> tuple[Array, Array]:
    """Weighted squared errors and variances by chance of the keys `asked`, as those `fitted` tell them."""
    weight = np.ones(len(values)) if target.weight is None else target.weight
    steps, place = np.unique(values[fitted], return_inverse=True)
    total = np.bincount(place, weight[fitted])
    mean = np.bincount(place, weight[fitted] * target.value[fitted]) / total
    asked = asked[(values[asked] >= steps[0]) & (values[asked] <= steps[-1])]
    told = np.interp(values[asked], steps, isotonic_regression(mean, weights=total, increasing=rising).x)
    error = np.square(target.value[asked] - told)
    if target.weight is None or target.variance is None:
        weight = 1 / (told + target.value.mean())
        return weight * error, weight * told
    return weight[asked] * error, weight[asked] * target.variance[asked]


def _ratio(error: Array, chance: Array) -> Closeness:
    total = float(chance.sum())
    if total <= 0:
        return Closeness(np.inf, np.inf, len(error))
    value = float(error.sum()) / total
    spread = 3 * float(np.sqrt(np.square(error - value * chance).sum())) / total
    return Closeness(value, value + spread, len(error))


def _value(found: Closeness) -> float:
    return found.value


def is_dishonest(found: Closeness, target: Target) -> bool:
    """Whether the column knows more than could be known."""
    return found.high < HONEST and found.high < HONEST * target.known


def keys_of(view: View, scope: str) -> dict[str, Array]:
    """int64 [N] names per key: what a column of this scope may have been counted by."""
    rows = view.rows
    if scope in ("user", "item"):
        return {scope: rows.user if scope == "user" else rows.item}
    begins = np.ones(rows.num_rows, dtype=bool)
    begins[1:] = (np.diff(rows.user) != 0) | (np.diff(rows.time) > SESSION_US)
    day = groups(rows.user, rows.time // _DAY_US)
    return {"user": rows.user, "session": np.cumsum(begins) - 1, "day of the user": day}


def targets(view: View, key: Array, by: str, tasks: list[str]) -> Iterator[Target]:
    """What a column counted by `key` (int64 [N], called `by`) may know; `tasks`: the names of the T tasks."""
    line = _Timeline(key, view.rows.time, view.candidates.row, view.row_id)
    ones = np.ones(view.rows.num_rows)
    shown = np.zeros(view.rows.num_rows)
    shown[view.candidates.row] = 1
    counted = {"rows": ones} if shown.all() else {"rows": ones, "candidates": shown}
    for what, value in counted.items():
        sums = line.sums(value)
        yield from _count(
            f"the number of {what} of the {by} in the whole log", line, sums.others, [sums.before, sums.until]
        )
        yield from _count(
            f"the number of {what} of the {by} still to come", line, sums.after, [sums.before, sums.until]
        )
        for window, length in _WINDOWS.items() if by in ("user", "item") else ():
            within = line.within(value, length)
            yield from _count(f"the number of {what} of the {by} in {window}", line, within, [sums.before, sums.until])
    for t, task in enumerate(tasks):
        label = np.full(view.rows.num_rows, np.nan)
        label[view.candidates.row] = view.labels[:, t]
        yield from _labels(f"'{task}' of the {by}", line, label)


def later_targets(view: View, key: Array, by: str, tasks: list[str]) -> Iterator[Target]:
    """The same of the last `LATER_SHARE` of the rows alone: what a table taken in between would not know."""
    begins = np.quantile(view.rows.time, 1 - LATER_SHARE)
    later = view.rows.time > begins
    line = _Timeline(key, view.rows.time, view.candidates.row, view.row_id)
    part = f"in the last {LATER_SHARE:.0%} of the log"
    yield from _count(
        f"the number of rows of the {by} {part}",
        line,
        line.totals(later.astype(float)),
        [line.totals((~later).astype(float))],
    )
    for t, task in enumerate(tasks):
        label = np.full(view.rows.num_rows, np.nan)
        label[view.candidates.row] = view.labels[:, t]
        seen = later & ~np.isnan(label)
        value = np.where(seen, label, 0)
        count, total, square = (line.totals(v) for v in (seen.astype(float), value, value**2))
        before = ~later & ~np.isnan(label)
        known = line.totals(np.where(before, label, 0)) / np.maximum(line.totals(before.astype(float)), 1)
        yield from _mean_and_sum(f"'{task}' of the {by} {part}", line, count, total, square, [known])


def _count(name: str, line: "_Timeline", value: Array, known: list[Array]) -> Iterator[Target]:
    if len(value) >= LEAST_KEYS and value.sum() >= LEAST_KEYS:
        yield _target(name, line, np.arange(len(value)), value, None, None, known)


def _labels(what: str, line: "_Timeline", label: Array) -> Iterator[Target]:
    seen = ~np.isnan(label)
    value = np.where(seen, label, 0)
    count, total, square = (line.sums(v) for v in (seen.astype(float), value, value**2))
    rate = total.before / np.maximum(count.before, 1)
    known = [total.before, count.before, rate, count.until]
    for part, name in (("others", "in the whole log"), ("after", "still to come")):
        n, s, q = (getattr(sums, part) for sums in (count, total, square))
        yield from _mean_and_sum(f"{what} {name}", line, n, s, q, known)


def _mean_and_sum(
    what: str, line: "_Timeline", n: Array, total: Array, square: Array, known: list[Array]
) -> Iterator[Target]:
    """Of `n` labels with these sums and sums of squares [K]: the sum and the mean."""
    kept = np.flatnonzero(n >= LEAST_LABELS)
    if len(kept) < LEAST_KEYS:
        return
    n, total, square = n[kept], total[kept], square[kept]
    variance = np.maximum(square - total**2 / n, 0) / (n - 1)
    if variance.mean() > 0:
        before = [values[kept] for values in known]
        yield _target(f"the sum of {what}", line, kept, total, 1 / n, n * variance, before)
        yield _target(f"the mean of {what}", line, kept, total / n, n, variance / n, before)


def _target(
    name: str,
    line: "_Timeline",
    kept: Array,
    value: Array,
    weight: Array | None,
    variance: Array | None,
    known: list[Array],
) -> Target:
    time = line.time[line.place[kept]].astype(np.float64)
    return Target(name, line.chosen[kept], value, weight, variance, [*known, time])


class _Sums(NamedTuple):
    """Of the key of each of K chosen rows."""

    before: Array
    """Strictly before the row's time"""
    until: Array
    """Up to its time, itself and what was shown with it included"""
    after: Array
    """Strictly after"""
    others: Array
    """All but the row itself"""


class _Timeline:
    """N rows sorted by key and time, and one candidate of each key, the choice being by the hash of the row id."""

    def __init__(self, key: Array, time: Array, candidates: Array, row_id: Array) -> None:
        self.order = np.lexsort((time, key))
        self.key, self.time = key[self.order], time[self.order]
        n = np.arange(len(key))
        new_key = np.ones(len(key), dtype=bool)
        new_key[1:] = np.diff(self.key) != 0
        new_time = new_key.copy()
        new_time[1:] |= np.diff(self.time) != 0
        keys, times = np.append(n[new_key], len(key)), np.append(n[new_time], len(key))
        of_key, of_time = np.cumsum(new_key) - 1, np.cumsum(new_time) - 1
        self.start, self.stop = keys[of_key], keys[of_key + 1]
        self.left, self.right = times[of_time], times[of_time + 1]
        place = np.empty(len(key), dtype=np.int64)
        place[self.order] = n
        drawn = hashed(row_id)
        by_key = np.lexsort((drawn, key[candidates]))
        first = np.ones(len(by_key), dtype=bool)
        first[1:] = np.diff(key[candidates][by_key]) != 0
        chosen = by_key[first]
        self.chosen = chosen[np.argsort(drawn[chosen])[:MOST_KEYS]]
        """int64 [K] candidates"""
        self.place = place[candidates[self.chosen]]

    def sums(self, value: Array) -> _Sums:
        """Of `value` [N]."""
        own = value[self.order][self.place]
        total = self._between(value, self.start, self.stop)
        until = self._between(value, self.start, self.right)
        return _Sums(self._between(value, self.start, self.left), until, total - until, total - own)

    def totals(self, value: Array) -> Array:
        return self._between(value, self.start, self.stop)

    def within(self, value: Array, length: int) -> Array:
        """The sum of what comes after a row, but at most `length` µs later."""
        seconds = (self.time - self.time.min(initial=0)) // 1_000_000
        span = int(seconds.max(initial=0)) + length // 1_000_000 + 2
        places = self.key * span + seconds
        ends = np.searchsorted(places, places[self.place] + length // 1_000_000, side="right")
        running = np.concatenate([[0.0], np.cumsum(value[self.order])])
        return running[np.maximum(ends, self.right[self.place])] - running[self.right[self.place]]

    def _between(self, value: Array, first: Array, stop: Array) -> Array:
        running = np.concatenate([[0.0], np.cumsum(value[self.order])])
        return running[stop[self.place]] - running[first[self.place]]
