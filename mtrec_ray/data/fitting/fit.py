"""Everything that is fitted, from the sums of all buckets: the same however the users were dealt to buckets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.aggregates import asks_factors
from mtrec_ray.data.features.attributes import (
    Tables,
    category_columns,
    number_columns,
    table_width,
)
from mtrec_ray.data.features.factors import Interactions, item_factors
from mtrec_ray.data.features.signals import signals
from mtrec_ray.data.features.statistics import Statistics, category_statistics, item_statistics
from mtrec_ray.data.features.value_factors import SignalStatistics, value_factors
from mtrec_ray.data.fitting.chains import parent_mean
from mtrec_ray.data.fitting.collect import Moments
from mtrec_ray.data.fitting.delays import delay_entry
from mtrec_ray.data.fitting.durations import duration_entry
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.fitting.tally import Tally, Vocabulary
from mtrec_ray.data.manifest import SPLITS, TaskEntry
from mtrec_ray.errors import DataError
from mtrec_ray.tasks.labels import labels_of

Array = np.ndarray[Any, np.dtype[Any]]

MOST_INTERACTIONS = 20_000_000
"""Rows that the item factors are fitted on: all, or those of users drawn by hash."""
_NUMBER_SCALE = 0.2


def fit(gathered: Gathered, run: Run, tables: Tables) -> Fitted:
    """What was fitted on the train rows of all buckets.

    Raises:
        DataError: no train rows, or a task with labels of which none is observed among them.
    """
    tasks = _task_entries(gathered, run)
    users, items = gathered.users.by_time(), gathered.items.by_time()
    vocabulary = Vocabulary.of(items, run.features.min_count)
    categories = {c.column: gathered.categories[c.column].by_count() for _, c in category_columns(run)}
    vocabularies = {c.column: Vocabulary.of(categories[c.column], c.min_count) for _, c in category_columns(run)}
    widths = _widths(gathered.moments, run, tables)
    interactions = gathered.interactions(vocabulary, vocabularies, widths)
    return Fitted(
        users=Vocabulary.of(users, run.features.min_count),
        items=vocabulary,
        categories=vocabularies,
        domains=Vocabulary.of(gathered.domains.by_count(), min_count=1),
        policies=Vocabulary.of(gathered.policies.by_count(), min_count=1),
        widths=widths,
        statistics=_with_value_factors(
            [
                _statistics(left_out, items, categories, vocabularies, interactions, gathered.moments, run)
                for left_out in _folds(run)
            ],
            interactions,
            vocabularies,
            run,
        ),
        tasks=tasks,
    )


def _statistics(
    left_out: int | None,
    items: Tally,
    categories: dict[str, Tally],
    vocabularies: dict[str, Vocabulary],
    interactions: Interactions | None,
    moments: Sequence[Moments],
    run: Run,
) -> Statistics:
    """Statistics without the rows of one fold's users, or (None) of all."""
    folds = [fold for fold in range(run.features.folds) if fold != left_out]
    fields = item_statistics(_with_unknown(items.sums[:, folds].sum(axis=1)))
    names = [signal.name for signal in signals(run)]
    count = len(items.keys) + 1
    factors = {name: np.zeros((count, 1), dtype=np.float32) for name in ["shown", *names]}
    if interactions is not None and asks_factors(run):
        factors = item_factors(interactions, interactions.fold != left_out, count, fields["mean"], names)
    return Statistics(
        **fields,
        categories={
            name: category_statistics(
                _with_unknown(tally.sums[: vocabularies[name].known, folds].sum(axis=1)), fields["prior"]
            )
            for name, tally in categories.items()
        },
        factors=factors,
        scales=_scales(moments, run),
        value_factors={},
    )


def _folds(run: Run) -> list[int | None]:
    """The folds that statistics leave out; None: those of all rows."""
    return [*range(run.features.folds), None]


def _with_value_factors(
    statistics: list[Statistics], interactions: Interactions | None, vocabularies: dict[str, Vocabulary], run: Run
) -> list[Statistics]:
    if interactions is None or not interactions.codes:
        return statistics
    binary = np.array([signal.binary for signal in signals(run)])
    fits = [(fold, SignalStatistics(s.mean, s.spread, binary)) for fold, s in zip(_folds(run), statistics, strict=True)]
    found = {name: value_factors(interactions, name, vocabularies[name].size, fits) for name in interactions.codes}
    return [replace(s, value_factors={name: found[name][k] for name in found}) for k, s in enumerate(statistics)]


def _task_entries(gathered: Gathered, run: Run) -> list[TaskEntry]:
    parts = gathered.moments
    labels = np.sum([part.labels for part in parts], axis=0)
    log_labels = np.sum([part.log_labels for part in parts], axis=0)
    chains = np.sum([part.chains for part in parts], axis=0)
    observed = np.sum([part.observed for part in parts], axis=0)
    positives = np.sum([part.positives for part in parts], axis=0)
    if not gathered.train_rows:
        raise DataError(
            "No candidate is in the train split. The log may be too small, or split.train_until (or the split column) "
            "leaves nothing for training; see the time range of the log and change `split`."
        )
    entries = []
    for t, (name, task) in enumerate(run.tasks.items()):
        count, total, squares = labels[t]
        if not count and task.labelled:
            said = {key: getattr(task, key) for key in ("label", "observed", "event", "value")}
            source = ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None)
            raise DataError(
                f"tasks.{name}: all labels of the train split are missing ({source}). "
                "Correct the expression, move split boundaries so that train rows have labels, or remove the task."
            )
        classes = np.sum([part.classes[t] for part in parts], axis=0)
        rows = count or 1  # a task without labels has a mean of 0
        of_labels = labels_of(task.kind, run.plugins)
        logs = of_labels == "number" and log_labels[t, 0] == count
        watching = [part.watched[name] for part in parts if name in part.watched]
        late = [part.delayed[name] for part in parts if name in part.delayed]
        entries.append(
            TaskEntry(
                name=name,
                kind=task.kind,
                labels=of_labels,
                classes=task.classes or 1,
                observed={split: int(observed[s, t]) for s, split in enumerate(SPLITS)},
                positives={split: int(positives[s, t]) for s, split in enumerate(SPLITS)},
                mean=total / rows,
                std=_deviation(rows, total, squares),
                frequencies=(classes / rows).tolist(),
                log_mean=log_labels[t, 1] / rows if logs else None,
                log_std=_deviation(rows, *log_labels[t, 1:]) if logs else None,
                parent=task.parent,
                parent_mean=None if task.parent is None else parent_mean(name, chains[t], run),
                durations=duration_entry(name, watching, run) if watching else None,
                delays=None if task.window is None else delay_entry(task.window, late),
            )
        )
    return entries


def _deviation(count: float, total: float, squares: float) -> float:
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))


def _scales(parts: Sequence[Moments], run: Run) -> dict[str, float]:
    scales = {}
    for _, number in number_columns(run):
        count, total, squares = np.sum([part.numbers[number.feature] for part in parts], axis=0)
        spread = np.sqrt(max(squares / count - (total / count) ** 2, 0)) if count else 0.0
        scales[number.feature] = float(_NUMBER_SCALE * spread) or 1.0
    return scales


def _widths(parts: Sequence[Moments], run: Run, tables: Tables) -> dict[str, int]:
    widths = {}
    for scope, category in category_columns(run):
        table = {"item": tables.items, "user": tables.users, "log": None}[scope]
        in_train = max([1, *(part.widths[category.column] for part in parts)])
        widths[category.column] = in_train if table is None else table_width(table, category.column)
    return widths


def _with_unknown(sums: Array) -> Array:
    return np.concatenate([np.zeros((1, *sums.shape[1:])), sums])
