"""Everything that is fitted: on the train candidates, and the events of the train period, of all buckets.

`collect` sums up one bucket, `fit` adds the sums up. Neither depends on how the users were dealt to buckets.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.aggregates import declared
from mtrec_ray.data.features.attributes import (
    Cells,
    Tables,
    category_columns,
    number_columns,
    read_cells,
    read_numbers,
    table_width,
)
from mtrec_ray.data.features.signals import label_signals, signals
from mtrec_ray.data.features.statistics import (
    Interactions,
    Statistics,
    category_statistics,
    item_factors,
    item_statistics,
    value_factors,
)
from mtrec_ray.data.fitting.chains import chain_counts, parent_mean
from mtrec_ray.data.fitting.delays import delay_entry, delayed
from mtrec_ray.data.fitting.durations import duration_entry, watched
from mtrec_ray.data.fitting.tally import Tally, Vocabulary, earliest, in_order, merge
from mtrec_ray.data.fitting.texts import distinct_feedback
from mtrec_ray.data.manifest import SPLITS, TaskEntry
from mtrec_ray.data.reading.context import context_numbers, row_weights, weighs
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.ids import fold_of, stable_hash
from mtrec_ray.data.requests.rows import NEVER, Rows
from mtrec_ray.errors import DataError
from mtrec_ray.tasks.labels import labels_of

Array = np.ndarray[Any, np.dtype[Any]]

MOST_INTERACTIONS = 20_000_000
"""Rows that the item factors are fitted on: all, or those of users drawn by hash."""
_NUMBER_SCALE = 0.2


@dataclass(frozen=True)
class Collected:
    """What one bucket adds. S signals, T tasks, K folds."""

    users: Tally
    """[., 1] train rows"""
    items: Tally
    """[., K, 1 + 3S] train rows; labels, their sum and sum of squares per signal"""
    user_times: Array
    """int64, of each key of `users` its first `features.min_count` train rows; `item_times` likewise"""
    item_times: Array
    categories: dict[str, Tally]
    """[., K, 1 + 2S]"""
    domains: Tally
    """[., 1] train rows"""
    policies: Tally
    """[., 1]"""
    widths: dict[str, int]
    """Most values in one cell of a train row"""
    numbers: dict[str, Array]
    """float64 [3] count, sum, sum of squares over the train rows"""
    labels: Array
    """float64 [T, 3] count, sum, sum of squares of the observed train labels, each with the weight of its row"""
    log_labels: Array
    """float64 [T, 3] the same of log(1 + label), of labels above -1"""
    chains: Array
    """float64 [T, 4] see `chain_counts`"""
    watched: dict[str, Array]
    """Task -> [n, 2] see `durations.watched`"""
    delayed: dict[str, Array]
    """Task -> [n, 2] see `delays.delayed`"""
    classes: list[Array]
    """[T] float64 [classes] train rows of each class, with their weights"""
    observed: Array
    """int64 [3, T] observed labels per split"""
    positives: Array
    """int64 [3, T]"""
    event_items: list[str]
    """Items with an event in the train period"""
    event_versions: Array
    """int64: rows of an item table with versions that these events have"""
    words: list[str]
    """Feedback words of the train period"""
    queries: list[str]
    """Distinct ones of the train rows"""
    interactions: dict[str, Any]


@dataclass(frozen=True)
class Fitted:
    """What encoding needs to know of the train period."""

    users: Vocabulary
    items: Vocabulary
    categories: dict[str, Vocabulary]
    domains: Vocabulary
    policies: Vocabulary
    widths: dict[str, int]
    statistics: list[Statistics]
    """One per fold of users, which it leaves out, and the last over all"""
    tasks: list[TaskEntry]


def collect(bucket: Bucket, run: Run, tables: Tables, most_interactions: int) -> Collected:
    """The sums of one bucket; of at most about `most_interactions` rows it keeps the rows themselves."""
    rows, train = bucket.rows, bucket.train
    chosen = bucket.candidates.row[train]
    folds = np.array([fold_of(user, run.features.folds) for user in rows.users], dtype=np.int64)
    fold = folds[bucket.candidates.user[train]]
    values = label_signals(bucket.labels[train], signals(run))
    known, zeros = (~np.isnan(values)).astype(np.float64), np.nan_to_num(values)
    columns = np.concatenate([np.ones((len(chosen), 1)), known, zeros, zeros**2], axis=1)
    items = _tally(rows.items, rows.item[chosen], fold, run.features.folds, columns)
    categories, widths = {}, {}
    for scope, category in category_columns(run):
        cells = read_cells(scope, category, rows, tables)
        counted = columns[:, : 1 + 2 * values.shape[1]]
        categories[category.column], widths[category.column] = _category_tally(
            cells.values, cells.cell[chosen], fold, run.features.folds, counted
        )
    train_events = bucket.events.row[bucket.train_events]
    names = context_numbers(run.data.columns)
    weights = row_weights(rows.context[chosen].astype(np.float64), names) if weighs(names) else None
    return Collected(
        users=_user_tally(bucket),
        items=items,
        user_times=_first_times(bucket.candidates.user[train], rows.time[chosen], run),
        item_times=_first_times(rows.item[chosen], rows.time[chosen], run),
        categories=categories,
        domains=_text_tally(rows.domain[chosen]),
        policies=_text_tally(rows.policy[chosen]),
        widths=widths,
        numbers={n.feature: _moments(read_numbers(s, n, rows, tables)[chosen]) for s, n in number_columns(run)},
        labels=np.array([_moments(label, weights) for label in bucket.labels[train].T]),
        log_labels=np.array([_moments(_logs(label), weights) for label in bucket.labels[train].T]),
        chains=chain_counts(bucket.labels[train], run),
        watched=watched(bucket, run, tables),
        delayed=delayed(bucket, run),
        classes=_class_counts(bucket.labels[train], run, weights),
        observed=_per_split(~np.isnan(bucket.labels), bucket.split),
        positives=_per_split(bucket.labels > 0, bucket.split),
        event_items=[rows.items[i] for i in np.unique(rows.item[train_events])],
        event_versions=tables.versions(rows, train_events),
        words=distinct_feedback(bucket.events.feedback[bucket.train_events], run)[0],
        queries=_text_tally(rows.query[chosen]).keys,
        interactions=_interactions(bucket, values, fold, most_interactions, _taste_cells(rows, run, tables)),
    )


def fit(parts: Sequence[Collected], run: Run, tables: Tables, with_factors: bool) -> Fitted:
    """What was fitted on the train rows of all buckets.

    Raises:
        DataError: no train rows, or a task with labels of which none is observed among them.
    """
    tasks = _task_entries(parts, run)
    users = in_order(merge([p.users for p in parts]), [(p.users.keys, p.user_times) for p in parts])
    items = in_order(merge([p.items for p in parts]), [(p.items.keys, p.item_times) for p in parts])
    vocabulary = Vocabulary.of(items, run.features.min_count)
    categories = {c.column: merge([part.categories[c.column] for part in parts]) for _, c in category_columns(run)}
    vocabularies = {c.column: Vocabulary.of(categories[c.column], c.min_count) for _, c in category_columns(run)}
    widths = _widths(parts, run, tables)
    interactions = join_interactions(parts, vocabulary, vocabularies, widths)
    return Fitted(
        users=Vocabulary.of(users, run.features.min_count),
        items=vocabulary,
        categories=vocabularies,
        domains=Vocabulary.of(merge([part.domains for part in parts]), min_count=1),
        policies=Vocabulary.of(merge([part.policies for part in parts]), min_count=1),
        widths=widths,
        statistics=[
            _statistics(left_out, items, categories, vocabularies, interactions, parts, run, with_factors)
            for left_out in [*range(run.features.folds), None]
        ],
        tasks=tasks,
    )


def join_interactions(
    parts: Sequence[Collected], items: Vocabulary, categories: dict[str, Vocabulary], widths: dict[str, int]
) -> Interactions:
    """The kept rows of all buckets in the order of (hash of the user, row id), with the rows of items and values."""
    user = np.concatenate([part.interactions["user"] for part in parts])
    row_id = np.concatenate([part.interactions["row_id"] for part in parts])
    item = np.concatenate([items.rank(part.interactions["items"])[part.interactions["item"]] for part in parts])
    fold = np.concatenate([part.interactions["fold"] for part in parts])
    values = np.concatenate([part.interactions["values"] for part in parts])
    order = np.lexsort((row_id, user))
    codes = {}
    for name in parts[0].interactions["cells"]:
        cells = [part.interactions["cells"][name] for part in parts]
        codes[name] = np.concatenate([c.codes(categories[name], widths[name])[c.cell] for c in cells])[order]
    return Interactions(user[order], item[order], fold[order], values[order], codes)


def _statistics(
    left_out: int | None,
    items: Tally,
    categories: dict[str, Tally],
    vocabularies: dict[str, Vocabulary],
    interactions: Interactions,
    parts: Sequence[Collected],
    run: Run,
    with_factors: bool,
) -> Statistics:
    """Statistics without the rows of one fold's users, or (None) of all."""
    folds = [fold for fold in range(run.features.folds) if fold != left_out]
    fields = item_statistics(_with_unknown(items.sums[:, folds].sum(axis=1)))
    names = [signal.name for signal in signals(run)]
    count = len(items.keys) + 1
    factors = {name: np.zeros((count, 1), dtype=np.float32) for name in ["shown", *names]}
    if with_factors:
        factors = item_factors(interactions, interactions.fold != left_out, count, fields["mean"], names)
    kept = interactions.fold != left_out
    tastes = {
        name: value_factors(interactions, kept, name, vocabularies[name].size, fields["mean"], fields["spread"])
        for name in interactions.codes
    }
    return Statistics(
        **fields,
        categories={
            name: category_statistics(
                _with_unknown(tally.sums[: vocabularies[name].known, folds].sum(axis=1)), fields["prior"]
            )
            for name, tally in categories.items()
        },
        factors=factors,
        scales=_scales(parts, run),
        tastes=tastes,
    )


def _task_entries(parts: Sequence[Collected], run: Run) -> list[TaskEntry]:
    labels = np.sum([part.labels for part in parts], axis=0)
    log_labels = np.sum([part.log_labels for part in parts], axis=0)
    chains = np.sum([part.chains for part in parts], axis=0)
    observed = np.sum([part.observed for part in parts], axis=0)
    positives = np.sum([part.positives for part in parts], axis=0)
    if not sum(float(part.users.rows().sum()) for part in parts):
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


def _tally(keys: list[str], which: Array, fold: Array, folds: int, columns: Array) -> Tally:
    """Sums of `columns` [N, m] per key and fold, of the keys that occur."""
    cell = which * folds + fold
    sums = np.stack([np.bincount(cell, c, minlength=len(keys) * folds) for c in columns.T], axis=1)
    sums = sums.reshape(len(keys), folds, columns.shape[1])
    present = np.flatnonzero(sums[:, :, 0].sum(axis=1) > 0)
    return Tally([keys[k] for k in present], sums[present])


def _first_times(which: Array, times: Array, run: Run) -> Array:
    """int64 [., min_count] of the keys that occur, see `earliest`."""
    present, place = np.unique(which, return_inverse=True)
    return earliest(place.ravel(), times, len(present), run.features.min_count)


def _category_tally(cells: list[list[str]], cell: Array, fold: Array, folds: int, columns: Array) -> tuple[Tally, int]:
    """Sums per value of multi-valued cells, and the most values of a cell that occurs."""
    per_cell = _tally([str(k) for k in range(len(cells))], cell, fold, folds, columns)
    used = [cells[int(k)] for k in per_cell.keys]
    values = sorted({value for cell_values in used for value in cell_values})
    place = {value: k for k, value in enumerate(values)}
    sums = np.zeros((len(values), folds, columns.shape[1]))
    for row, cell_values in zip(per_cell.sums, used, strict=True):
        for value in set(cell_values):
            sums[place[value]] += row
    return Tally(values, sums), max((len(cell_values) for cell_values in used), default=0)


def _text_tally(texts: Array) -> Tally:
    """Rows per text of [N], without the empty one."""
    counts = Counter(text for text in texts.tolist() if text)
    keys = sorted(counts)
    return Tally(keys, np.array([counts[key] for key in keys], dtype=np.float64)[:, None])


def _user_tally(bucket: Bucket) -> Tally:
    counts = np.bincount(bucket.candidates.user[bucket.train], minlength=len(bucket.rows.users)).astype(np.float64)
    present = np.flatnonzero(counts)
    return Tally([bucket.rows.users[u] for u in present], counts[present, None])


def _taste_cells(rows: Rows, run: Run, tables: Tables) -> dict[str, Cells]:
    """The values of the categories with a `taste`, in all rows."""
    wanted = {aggregate.of for aggregate in declared(run) if aggregate.kind == "taste"}
    return {c.column: read_cells(scope, c, rows, tables) for scope, c in category_columns(run) if c.column in wanted}


def _interactions(bucket: Bucket, values: Array, fold: Array, most: int, cells: dict[str, Cells]) -> dict[str, Any]:
    """Train rows of users in the order of their hash, as long as they are not too many."""
    user_hash = np.array([stable_hash(user, "factors") >> 1 for user in bucket.rows.users], dtype=np.int64)
    user = user_hash[bucket.candidates.user[bucket.train]]
    order = np.argsort(user, kind="stable")
    limit = user[order[most]] if len(order) > most else NEVER
    kept = user < limit
    chosen = bucket.candidates.row[bucket.train][kept]
    used, item = np.unique(bucket.rows.item[chosen], return_inverse=True)
    return {
        "user": user[kept],
        "row_id": bucket.rows.row_id[chosen],
        "items": [bucket.rows.items[i] for i in used],
        "item": item.ravel(),
        "fold": fold[kept],
        "values": values[kept],
        "cells": {name: Cells(column.values, column.cell[chosen]) for name, column in cells.items()},
    }


def _moments(values: Array, weights: Array | None = None) -> Array:
    known = ~np.isnan(values)
    seen = values[known].astype(np.float64)
    if weights is None:
        return np.array([len(seen), seen.sum(), (seen**2).sum()])
    counted = weights[known]
    return np.array([counted.sum(), counted @ seen, counted @ seen**2])


def _logs(labels: Array) -> Array:
    """log(1 + label), NaN for labels that have none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log1p(labels.astype(np.float64))
    return np.where(np.isfinite(logs), logs, np.nan)


def _deviation(count: float, total: float, squares: float) -> float:
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0)))


def _scales(parts: Sequence[Collected], run: Run) -> dict[str, float]:
    scales = {}
    for _, number in number_columns(run):
        count, total, squares = np.sum([part.numbers[number.feature] for part in parts], axis=0)
        spread = np.sqrt(max(squares / count - (total / count) ** 2, 0)) if count else 0.0
        scales[number.feature] = float(_NUMBER_SCALE * spread) or 1.0
    return scales


def _widths(parts: Sequence[Collected], run: Run, tables: Tables) -> dict[str, int]:
    widths = {}
    for scope, category in category_columns(run):
        table = {"item": tables.items, "user": tables.users, "log": None}[scope]
        in_train = max([1, *(part.widths[category.column] for part in parts)])
        widths[category.column] = in_train if table is None else table_width(table, category.column)
    return widths


def _class_counts(labels: Array, run: Run, weights: Array | None) -> list[Array]:
    found = []
    for t, task in enumerate(run.tasks.values()):
        known = ~np.isnan(labels[:, t]) if task.classes else np.zeros(len(labels), dtype=bool)
        counted = None if weights is None else weights[known]
        found.append(np.bincount(labels[known, t].astype(np.int64), counted, task.classes or 0).astype(np.float64))
    return found


def _per_split(mask: Array, split: Array) -> Array:
    return np.stack([mask[split == s].sum(axis=0) for s in range(len(SPLITS))]).astype(np.int64)


def _with_unknown(sums: Array) -> Array:
    return np.concatenate([np.zeros((1, *sums.shape[1:])), sums])
