"""Labels that follow from where a row stands, or from an id, and from nothing that the row says."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mtrec_ray.check.asof import encoded
from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.finding import CHECKS, Finding
from mtrec_ray.check.statistics import Estimate, clustered_auc, either_way
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.requests.ids import hashed, order_keys

_SUSPICIOUS = 0.75
"""AUC of a file, a place in it, or the size of an id: honest logs have rates that drift or differ by surface, and reach
about .6."""
_DECIDED = 0.95
"""AUC of the other rows of the same user, or item: tastes differ, but nobody's are decided so."""


class _Order(NamedTuple):
    what: str
    scores: Array
    limit: float
    remedy: str


@CHECKS.register("row_order")
def row_order(log: Examined) -> Iterator[Finding]:
    """Labels that can be told from a row's place or file, or from the user's or item's id alone.

    Sorted by label, one file for each label, negatives drawn from other users: then a model learns how the log was
    made. Intervals are by users and by items, the wider counts.
    """
    view = log.by_user
    for task in log.tasks:
        label = log.positive(task)
        seen = ~np.isnan(label)
        if not seen.any():
            continue
        time = clustered_auc(label[seen], view.time[seen].astype(np.float64), view.user[seen])
        drift = 0.5 if time is None else either_way(time.value)
        for order in _orders(log, label):
            found = _area(log, label, order.scores)
            if found is None or max(found.low, 1 - found.high) <= max(order.limit, drift + 0.1):
                continue
            ranked = np.flatnonzero(seen)[np.argsort(order.scores[seen], kind="stable")]
            rows = np.concatenate([ranked[:4], ranked[-4:]])
            yield Finding(
                "error",
                "row_order",
                f"{order.what} tells '{task}' with AUC {either_way(found.value):.3f}.",
                {
                    "AUC": round(either_way(found.value), 4),
                    "at least": round(max(found.low, 1 - found.high), 4),
                    "suspicious above": order.limit,
                    "AUC of the time": round(drift, 4),
                },
                log.places(view, rows, [f"{task} {label[c]:g}" for c in rows]),
                order.remedy,
            )
            break


def _orders(log: Examined, label: Array) -> Iterator[_Order]:
    view = log.by_user
    file, place = view.row_id >> ROW_BITS, (view.row_id & ((1 << ROW_BITS) - 1)).astype(np.float64)
    drawn = hashed(view.user.astype(np.int64)) % np.uint64(2) == 0
    by_file = np.where(drawn, encoded(file, label, ~drawn), encoded(file, label, drawn))
    mixed = "Shuffle the rows, or sort them by time, when the log is written; all labels must come from one source."
    yield _Order("The file that a row is in", by_file, _SUSPICIOUS, mixed)
    longest = np.zeros(int(file.max()) + 1)
    np.maximum.at(longest, file, place)
    yield _Order("The place of a row in its file", place / longest[file], _SUSPICIOUS, mixed)
    source = "Take positives and negatives from the same {0}s: a model that knows the {0}'s id needs nothing else."
    for what, ids, code, integers in (
        ("user", view.rows.users, view.user, log.read.ids.users),
        ("item", view.rows.items, view.item, log.read.ids.items),
    ):
        size = np.argsort(np.argsort(order_keys(ids, integers)))[code].astype(np.float64)
        yield _Order(f"The size of the {what}'s id", size, _SUSPICIOUS, source.format(what))
        yield _Order(f"The {what}'s other rows", _others(code, label), _DECIDED, source.format(what))


def _others(code: Array, label: Array) -> Array:
    """float64 [C] mean label of all other rows of a code; the mean of all where there is none."""
    seen = ~np.isnan(label)
    value = np.where(seen, label, 0)
    total, count = np.bincount(code, value)[code] - value, np.bincount(code, seen)[code] - seen
    return np.divide(total, count, out=np.full(len(code), float(np.nanmean(label))), where=count > 0)


def _area(log: Examined, label: Array, scores: Array) -> Estimate | None:
    seen = ~np.isnan(label)
    view = log.by_user
    both = [clustered_auc(label[seen], scores[seen], key[seen]) for key in (view.user, view.item)]
    found = [estimate for estimate in both if estimate is not None]
    return max(found, key=lambda estimate: estimate.error) if len(found) == 2 else None
