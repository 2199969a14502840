"""The numbers and categories of every candidate: tables, time, and aggregates, each known strictly before its time."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.aggregates import Aggregate, compute, declared, feature_names
from mtrec_ray.data.features.attributes import (
    Cells,
    Tables,
    category_columns,
    number_columns,
    read_cells,
    read_numbers,
)
from mtrec_ray.data.features.matches import declared_matches, match_numbers
from mtrec_ray.data.features.moments import TIME_FEATURES, published_of, time_features, zones_of
from mtrec_ray.data.features.running import Asked, Past
from mtrec_ray.data.features.signals import Signal, event_signals, signals
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.requests.bucket import Bucket, lag_us
from mtrec_ray.data.requests.ids import fold_of

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["number", "time", "match", "aggregate"]


def asks_item_past(run: Run) -> bool:
    """Whether a number is of what happened to items with all users (`features.item_past`)."""
    return run.features.time or _has_running(run)


def asked_of_items(item_past: Array, run: Run) -> Array:
    """What the numbers read of it: all, or without a running aggregate the time of the first event alone. So requests
    stay as they are whatever else happens to their items."""
    return item_past if _has_running(run) else item_past[:, :1]


def _has_running(run: Run) -> bool:
    return any(aggregate.kind == "running" for aggregate in declared(run))


def number_names(run: Run) -> list[tuple[str, Kind]]:
    """Names and kinds of the numbers, in their order."""
    names: list[tuple[str, Kind]] = [(n.feature, "number") for _, n in number_columns(run)]
    if run.features.time:
        names += [(name, "time") for name in TIME_FEATURES]
    names += [(match.name, "match") for match in declared_matches(run)]
    columns = [c.column for _, c in category_columns(run)]
    return names + [(name, "aggregate") for name in feature_names(declared(run), signals(run), columns)]


@dataclass(frozen=True)
class Described:
    """A bucket's rows in the terms of what was fitted."""

    item: Array
    """int64 [N] row of the item statistics"""
    categories: dict[str, Array]
    """int32 [N, w]"""
    cells: dict[str, Cells]
    """The values that these are the codes of"""
    numbers: dict[str, Array]
    """float64 [N]"""
    zones: Array
    """object [N] see `moments.zones_of`"""
    published: Array
    """int64 [N] see `moments.published_of`"""


def describe(bucket: Bucket, run: Run, tables: Tables, fitted: Fitted) -> Described:
    """Looks up items, categories and numbers of every row, also of those that are only history."""
    rows = bucket.rows
    cells = {category.column: read_cells(scope, category, rows, tables) for scope, category in category_columns(run)}
    categories = {name: of.codes(fitted.categories[name], fitted.widths[name])[of.cell] for name, of in cells.items()}
    numbers = {number.feature: read_numbers(scope, number, rows, tables) for scope, number in number_columns(run)}
    return Described(
        fitted.items.rank(rows.items)[rows.item],
        categories,
        cells,
        numbers,
        zones_of(rows, run, tables),
        published_of(rows, tables),
    )


def candidate_categories(bucket: Bucket, described: Described) -> Array:
    """int32 [C, G]"""
    chosen = bucket.candidates.row
    parts = [codes[chosen] for codes in described.categories.values()]
    return np.concatenate([np.zeros((len(chosen), 0), dtype=np.int32), *parts], axis=1)


def candidate_numbers(bucket: Bucket, described: Described, run: Run, fitted: Fitted, item_past: Array) -> Array:
    """float32 [C, F] in the order of `number_names`, NaN = missing; `item_past`: see `Asked`."""
    chosen = bucket.candidates.row
    columns = [values[chosen] for values in described.numbers.values()]
    if run.features.time:
        columns += time_features(bucket, described.zones, described.published, item_past)
    parts = [np.stack(columns, axis=1) if columns else np.zeros((len(chosen), 0))]
    matches = declared_matches(run)
    if matches:
        parts.append(match_numbers(matches, described.cells, chosen, _statistics_of(bucket, run), fitted))
    aggregates = declared(run)
    if aggregates:
        parts.append(_aggregates(bucket, described, run, fitted, aggregates, item_past))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _statistics_of(bucket: Bucket, run: Run) -> Array:
    """int64 [C] which statistics each candidate is given: in train those that leave out the user's fold, else all."""
    folds = np.array([fold_of(name, run.features.folds) for name in bucket.rows.users], dtype=np.int64)
    return np.where(bucket.train, folds[bucket.candidates.user], run.features.folds)


def _aggregates(
    bucket: Bucket, described: Described, run: Run, fitted: Fitted, aggregates: list[Aggregate], item_past: Array
) -> Array:
    """float64 [C, F]"""
    which = signals(run)
    value, weight = event_signals(bucket.events, which)
    width = len(feature_names(aggregates, which, list(described.categories)))
    result = np.full((len(bucket.candidates.row), width), np.nan)
    given = _statistics_of(bucket, run)
    for user in range(len(bucket.rows.users)):
        events = slice(bucket.events.starts[user], bucket.events.starts[user + 1])
        past = _past(bucket, described, events, value, weight)
        mine = np.arange(bucket.candidates.starts[user], bucket.candidates.starts[user + 1])
        for k in np.unique(given[mine]).tolist():
            chosen = mine[given[mine] == k]
            asked = _asked(bucket, described, chosen, run, item_past)
            result[chosen] = user_features(aggregates, past, asked, fitted.statistics[k], which)
    return result


def user_features(aggregates: list[Aggregate], past: Past, asked: Asked, statistics: Any, which: list[Signal]) -> Array:
    """float64 [C, F] of one user's candidates; what no candidate may know is taken away first."""
    visible = past.first(int(asked.end.max()))
    return np.stack(list(compute(aggregates, visible, asked, statistics, which).values()), axis=1)


def _past(bucket: Bucket, described: Described, events: slice, value: Array, weight: Array) -> Past:
    row = bucket.events.row[events]
    return Past(
        time=bucket.events.time[events],
        item=described.item[row],
        identity=bucket.rows.item[row],
        value=value[events],
        weight=weight[events],
        categories={name: codes[row] for name, codes in described.categories.items()},
        numbers={name: values[row] for name, values in described.numbers.items()},
    )


def _asked(bucket: Bucket, described: Described, chosen: Array, run: Run, item_past: Array) -> Asked:
    row = bucket.candidates.row[chosen]
    return Asked(
        time=bucket.candidates.asof[chosen],
        end=bucket.ends[chosen],
        item=described.item[row],
        identity=bucket.rows.item[row],
        lag=lag_us(run),
        categories={name: codes[row] for name, codes in described.categories.items()},
        numbers={name: values[row] for name, values in described.numbers.items()},
        item_past=item_past[chosen] if len(item_past) else item_past,
    )
