"""Which candidates are train, validation and test: 0, 1, 2.

By time, the candidates are ordered by (time, user, item, row id) and cut at exact places of that order, also inside a
second. With many shards nobody holds that order, so the place is found by counting: candidates per hour, then per
second of the hour that holds it, then the candidates of that second themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from mtrec_ray.config import Run, Split
from mtrec_ray.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]

TRAIN, VALID, TEST = 0, 1, 2
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_WIDTHS = (3_600_000_000, 1_000_000)


class Key(NamedTuple):
    """A candidate's place in the order by time; user and item are integers or strings, alike in all keys."""

    time: int
    user: Any = None
    item: Any = None
    row_id: int = -1


class TimeSplit(NamedTuple):
    """The first candidates that are no longer train, and no longer validation."""

    train_until: Key
    valid_until: Key


def sizes(total: int, split: Split) -> tuple[int, int]:
    """How many of `total` ordered candidates are train, and train or validation."""
    exact = 1e-9  # (1 - .1 - .1) * 10 must not fall below 8
    return int(total * (1 - split.valid - split.test) + exact), int(total * (1 - split.test) + exact)


def split_by_user(starts: Array, split: Split) -> Array:
    """int8 [C]: of each user's n candidates, ordered by (time, item), the last max(1, floor(test * n)) are test, those
    before them validation. Users with fewer than 3 candidates are train only. `starts`: int64 [U + 1]."""
    codes = np.zeros(int(starts[-1]), dtype=np.int8)
    for first, stop in pairwise(starts.tolist()):
        n = stop - first
        if n >= 3:
            test = max(1, int(n * split.test + 1e-9))
            valid = max(1, int(n * split.valid + 1e-9))
            codes[stop - test : stop] = TEST
            codes[max(first, stop - test - valid) : stop - test] = VALID
    return codes


def split_by_time(times: Array, keys: Callable[[int], Key], boundaries: TimeSplit) -> Array:
    """int8 [C] for candidates with these times; `keys(c)` is asked only for those at the time of a boundary."""
    codes = np.zeros(len(times), dtype=np.int8)
    for boundary in boundaries:
        after = times > boundary.time
        for c in np.flatnonzero(times == boundary.time):
            after[c] = boundary.user is None or keys(int(c)) >= boundary
        codes += after.astype(np.int8)
    return codes


def histogram(times: Array, width: int, low: int | None = None) -> Counter[int]:
    """Candidates per bin of `width` microseconds, by bin number; only those of `[low, low + larger width)` if given."""
    if low is not None:
        larger = _WIDTHS[_WIDTHS.index(width) - 1]
        times = times[(times >= low) & (times < low + larger)]
    bins, counts = np.unique(times // width, return_counts=True)
    return Counter(dict(zip(bins.tolist(), counts.tolist(), strict=True)))


class Locator:
    """Finds the candidate at a place of the global order from counts, in three rounds over the data.

    `count(width, lows)` gives the merged histogram of the hours (lows = None) or of the seconds of some hours;
    `members(lows)` gives the keys of the candidates of some seconds.
    """

    def __init__(
        self,
        count: Callable[[int, list[int] | None], Counter[int]],
        members: Callable[[list[int]], Iterable[Key]],
    ) -> None:
        self.count, self.members = count, members

    def find(self, places: list[int]) -> list[Key]:
        """The candidates at these places, counted from 0."""
        hours, seconds = _WIDTHS
        rest = [_descend(self.count(hours, None), place) for place in places]
        lows = [bin * hours for bin, _ in rest]
        inside = self.count(seconds, sorted(set(lows)))
        for i, (low, (_, place)) in enumerate(zip(lows, rest, strict=True)):
            bins = range(low // seconds, (low + hours) // seconds)
            rest[i] = _descend(Counter({b: inside[b] for b in bins if inside[b]}), place)
        lows = [bin * seconds for bin, _ in rest]
        keys = sorted(self.members(sorted(set(lows))))
        return [
            [key for key in keys if low <= key.time < low + seconds][place]
            for low, (_, place) in zip(lows, rest, strict=True)
        ]


def explicit_boundaries(run: Run) -> TimeSplit | None:
    """`split.train_until` and `valid_until`, if given. Raises `ConfigError` for no date, or the wrong order."""
    split = run.split
    if split.train_until is None or split.valid_until is None:
        return None
    train, valid = (_microseconds(getattr(split, key), key, run) for key in ("train_until", "valid_until"))
    if valid < train:
        raise ConfigError(
            f"split.valid_until {split.valid_until} lies before split.train_until {split.train_until}. Validation is "
            "what lies between the two: give valid_until the later time."
        )
    return TimeSplit(Key(train), Key(valid))


def fitted_until(run: Run, boundaries: TimeSplit | None) -> TimeSplit | None:
    """`split.fit_until` as a split of its own, whose train rows are those from which everything is fitted.

    Raises:
        ConfigError: no date, or one after the train period.
    """
    if run.split.fit_until is None:
        return None
    assert boundaries is not None
    key = Key(_microseconds(run.split.fit_until, "fit_until", run))
    if key.time > boundaries.train_until.time:
        last = datetime.fromtimestamp(boundaries.train_until.time / 1e6, UTC).isoformat(timespec="seconds")
        raise ConfigError(
            f"split.fit_until {run.split.fit_until} lies after the end of the train period, {last}, and what is fitted "
            "comes from train rows. Give an earlier time, or leave it out."
        )
    return TimeSplit(key, key)


def known_until(codes: Array, starts: Array, times: Array, run: Run, boundaries: TimeSplit | None) -> Array:
    """int64 [U]: the end of each user's train period in microseconds: the train boundary, by user the time of the first
    candidate that is not train; no end where the split is by column, or for users with train candidates only."""
    never = np.iinfo(np.int64).max
    if boundaries is not None:
        return np.full(len(starts) - 1, boundaries.train_until.time, dtype=np.int64)
    ends = np.full(len(starts) - 1, never, dtype=np.int64)
    if run.split.by == "user":
        user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        later = codes != TRAIN
        np.minimum.at(ends, user[later], times[later])
    return ends


def _descend(counts: Counter[int], place: int) -> tuple[int, int]:
    """The bin that holds a place, and the place within it."""
    for bin in sorted(counts):
        if place < counts[bin]:
            return bin, place
        place -= counts[bin]
    raise IndexError("place beyond the last candidate")


def _microseconds(value: str | float, key: str, run: Run) -> int:
    unit = run.data.time_unit
    if isinstance(value, str) and not _is_number(value):
        try:
            date = datetime.fromisoformat(value)
        except ValueError as error:
            raise ConfigError(f"split.{key}: '{value}' is neither a number nor an ISO date like 2024-05-31") from error
        date = date if date.tzinfo else date.replace(tzinfo=ZoneInfo(run.data.time_zone))
        return round(date.timestamp() * 1_000_000)
    if unit == "iso":
        raise ConfigError(f"split.{key}: {value} must be an ISO date like 2024-05-31, since data.time_unit is iso")
    if not abs(float(value)) < 2**62 / _MICROSECONDS.get(unit, 1):
        raise ConfigError(f"split.{key}: {value} is no time in data.time_unit '{unit}'; write it so, or as an ISO date")
    return int(float(value)) // 1_000 if unit == "ns" else round(float(value) * _MICROSECONDS[unit])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
