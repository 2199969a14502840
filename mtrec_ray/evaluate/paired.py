"""What changes from one score column to another on the same rows: over seeds, with intervals by resampling users.

All columns are measured on the same resamples of users, whatever the seed, the task and the metric, so differences are
paired and may be averaged. The interval of a mean over seeds is that of other users with these very seeds; it says
nothing of other seeds, for which the values of each seed stand beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.errors import DataError
from mtrec_ray.evaluate import bootstrap, metrics
from mtrec_ray.evaluate.bootstrap import Interval
from mtrec_ray.evaluate.facts import Facts, judged
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.evaluate.predictions import Rows
from mtrec_ray.tasks.kind import TaskKind

RESAMPLES = 1000
CHANCE = {"auc": 0.5, "gauc": 0.5}
"""What a metric is where nothing was learned, if that is not 0."""


@dataclass(frozen=True)
class Measured:
    """One metric of one score column."""

    value: float | None
    replicates: np.ndarray
    """float64 [B] the metric on each resample of users; NaN = not defined there"""


@dataclass(frozen=True)
class Change:
    """What changed, per seed and on average."""

    seeds: list[float | None]
    mean: float | None
    """None where a seed has none."""
    interval: Interval | None


@dataclass(frozen=True)
class Term:
    """One task's metric before and after, for an average over tasks."""

    before: Measured
    after: Measured
    sign: int
    """+1 where higher is better, -1 where lower is."""
    floor: float = 0.0
    """What `before` is counted from; see `CHANCE`."""


def judged_rows(kind: TaskKind, rows: Rows) -> Judged:
    """What the metrics of a task with labels see of a run's predictions."""
    facts = Facts(rows.users, rows.shown, rows.items, ranks=rows.ranks, weights=rows.weights)
    found = judged(kind, rows.labels, rows.scores, facts)
    assert found is not None, "a run scores all of its tasks with labels"
    return found


def measured(names: Iterable[str], rows: Judged, count: int = RESAMPLES, seed: int = 0) -> dict[str, Measured]:
    """Each named metric of one task, whose unobserved rows are among `rows` too: the resamples [count] draw from the
    users of all rows, so that they are the same for all tasks."""
    names = list(names)
    values = metrics.measure(names, rows)
    drawn = bootstrap.replicates(names, rows, count, seed, pool=rows.users)
    return {name: Measured(values[name], drawn[name]) for name in names}


def difference(pairs: Sequence[tuple[Measured, Measured]]) -> Change:
    """The second minus the first of each pair; a pair is a seed."""
    values = [
        None if first.value is None or second.value is None else second.value - first.value for first, second in pairs
    ]
    return _change(values, [second.replicates - first.replicates for first, second in pairs])


def relative_change(seeds: Sequence[Sequence[Term]]) -> Change:
    """Mean over tasks of sign * (after - before) / (before - floor), for each seed the terms of all tasks.

    With floors of 0 this is Δm of Maninis et al. 2019, "Attentive Single-Tasking of Multiple Tasks"
    (arXiv 1904.08918); they have one run, we take the mean over seeds. Not defined where a denominator is not above 0;
    where that happens in a resample there is no interval, for one over the other resamples would be too good.
    """
    values = [_mean([_ratio(term) for term in terms]) for terms in seeds]
    if any((term.before.replicates <= term.floor).any() for terms in seeds for term in terms):
        return Change(values, _mean(values), None)
    return _change(values, [np.mean([_ratios(term) for term in terms], axis=0) for terms in seeds])


def check_same_rows(first: Rows, second: Rows, names: tuple[str, str]) -> None:
    """Raises `DataError` if two runs were not evaluated on the same rows."""
    if not np.array_equal(first.row_id, second.row_id):
        raise DataError(
            f"{names[0]} and {names[1]} were not evaluated on the same rows ({len(first.row_id):,} and "
            f"{len(second.row_id):,}), so they cannot be paired. Both must come from the same prepared data."
        )


def _change(values: list[float | None], drawn: Sequence[np.ndarray]) -> Change:
    mean = _mean(values)
    return Change(values, mean, None if mean is None else bootstrap.interval(np.mean(drawn, axis=0)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _ratio(term: Term) -> float | None:
    before, after = term.before.value, term.after.value
    if before is None or after is None or before <= term.floor:
        return None
    return term.sign * (after - before) / (before - term.floor)


def _ratios(term: Term) -> np.ndarray:
    """[B]"""
    before, after = term.before.replicates, term.after.replicates
    return term.sign * (after - before) / (before - term.floor)
