"""What one bucket says of its train candidates, and of the events of the train period: sums, which `fit` adds up."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.aggregates import asks_factors, declared
from mtrec_ray.data.features.attributes import (
    Cells,
    Tables,
    category_columns,
    number_columns,
    read_cells,
    read_numbers,
)
from mtrec_ray.data.features.matches import likened
from mtrec_ray.data.features.signals import label_signals, signals
from mtrec_ray.data.fitting.chains import chain_counts
from mtrec_ray.data.fitting.delays import delayed
from mtrec_ray.data.fitting.durations import watched
from mtrec_ray.data.fitting.tally import Tally, earliest
from mtrec_ray.data.fitting.texts import distinct_feedback
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.reading.context import context_numbers, row_weights, weighs
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.ids import fold_of, stable_hash
from mtrec_ray.data.requests.rows import NEVER, Rows

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Moments:
    """The small sums of one bucket, of labels and numbers. T tasks."""

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


@dataclass(frozen=True)
class KeptRows:
    """N train rows of one bucket, from which factors of items and of values are fitted; S signals."""

    user: Array
    """int64 [N] hash of the user"""
    row_id: Array
    """int64 [N]"""
    items: list[str]
    item: Array
    """int32 [N] which of these"""
    fold: Array
    """int32 [N] of the user"""
    values: Array
    """float32 [N, S], NaN = not observed"""
    cells: dict[str, Cells]
    """Of the categories whose values have factors"""


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
    moments: Moments
    event_items: list[str]
    """Items with an event in the train period"""
    event_versions: Array
    """int64: rows of an item table with versions that these events have"""
    words: list[str]
    """Feedback words of the train period"""
    queries: list[str]
    """Distinct ones of the train rows"""
    interactions: KeptRows | None
    """None if nothing needs factors"""


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
        moments=Moments(
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
        ),
        event_items=[rows.items[i] for i in np.unique(rows.item[train_events])],
        event_versions=tables.versions(rows, train_events),
        words=distinct_feedback(bucket.events.feedback[bucket.train_events], run)[0],
        queries=_text_tally(rows.query[chosen]).keys,
        interactions=_interactions(bucket, values, fold, most_interactions, run, tables),
    )


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


def _factored_cells(rows: Rows, run: Run, tables: Tables) -> dict[str, Cells]:
    """The values of the categories whose values have factors, in all rows."""
    wanted = {aggregate.of for aggregate in declared(run) if aggregate.kind == "taste"} | likened(run)
    return {c.column: read_cells(scope, c, rows, tables) for scope, c in category_columns(run) if c.column in wanted}


def _interactions(bucket: Bucket, values: Array, fold: Array, most: int, run: Run, tables: Tables) -> KeptRows | None:
    """Train rows of users in the order of their hash, unless they are too many; None if nothing needs factors."""
    cells = _factored_cells(bucket.rows, run, tables)
    if not cells and not asks_factors(run):
        return None
    user_hash = np.array([stable_hash(user, "factors") >> 1 for user in bucket.rows.users], dtype=np.int64)
    user = user_hash[bucket.candidates.user[bucket.train]]
    order = np.argsort(user, kind="stable")
    limit = user[order[most]] if len(order) > most else NEVER
    kept = user < limit
    chosen = bucket.candidates.row[bucket.train][kept]
    used, item = np.unique(bucket.rows.item[chosen], return_inverse=True)
    return KeptRows(
        user=user[kept],
        row_id=bucket.rows.row_id[chosen],
        items=[bucket.rows.items[i] for i in used],
        item=item.ravel().astype(np.int32),
        fold=fold[kept].astype(np.int32),
        values=values[kept].astype(np.float32),
        cells={name: Cells(column.values, column.cell[chosen].astype(np.int32)) for name, column in cells.items()},
    )


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


def _class_counts(labels: Array, run: Run, weights: Array | None) -> list[Array]:
    found = []
    for t, task in enumerate(run.tasks.values()):
        known = ~np.isnan(labels[:, t]) if task.classes else np.zeros(len(labels), dtype=bool)
        counted = None if weights is None else weights[known]
        found.append(np.bincount(labels[known, t].astype(np.int64), counted, task.classes or 0).astype(np.float64))
    return found


def _per_split(mask: Array, split: Array) -> Array:
    return np.stack([mask[split == s].sum(axis=0) for s in range(len(SPLITS))]).astype(np.int64)
