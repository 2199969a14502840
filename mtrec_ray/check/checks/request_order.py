"""The order of a request's rows in the file, where it tells which of them got the label."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.finding import CHECKS, Finding
from mtrec_ray.check.statistics import Estimate, clustered_mean, either_way
from mtrec_ray.evaluate.metrics import user_aucs

_SUSPICIOUS = 0.75
"""AUC within requests that no order of a page reaches: the clicked one of two rows stands first in three of four."""
_SORTED = 0.95
"""The same where a position column says that the order is the page's: then only a sorting by label is left."""
_LEAST = 30
_SAME = 0.02


@CHECKS.register("request_order")
def request_order(log: Examined) -> Iterator[Finding]:
    """An order of a request's rows in the file that reveals the label.

    The order of the page does so a little, too; where the log has positions that say as much, only a complete sorting
    counts.
    """
    view = log.by_user
    for task in log.tasks:
        label = log.positive(task)
        order = _within(log, label, view.row_id.astype(np.float64))
        if order is None:
            continue
        limit = _SORTED if _is_position(log, label, order) else _SUSPICIOUS
        if max(order.low, 1 - order.high) > limit:
            first = "first" if order.value < 0.5 else "last"
            mixed = np.flatnonzero(_mixed(view.shown, label))
            rows = mixed[np.argsort(view.shown[mixed], kind="stable")]
            yield Finding(
                "error",
                "request_order",
                f"In a request's rows, those with '{task}' stand {first}: the order in the file tells the label with "
                f"AUC {either_way(order.value):.3f}.",
                {"AUC within requests": round(either_way(order.value), 4), "suspicious above": limit},
                log.places(view, rows, [f"{task} {label[c]:g}" for c in rows[:8]]),
                "Write a request's rows in the order of the page, or shuffle them. If this is the order of the page, "
                "name its column as data.columns.position.",
            )


def _within(log: Examined, label: Array, scores: Array) -> Estimate | None:
    """Mean AUC within the requests that have both labels; None: too few of them."""
    view = log.by_user
    seen = ~np.isnan(label) & ~np.isnan(scores)
    if not seen.any():
        return None
    areas, _ = user_aucs(label[seen], scores[seen], view.shown[seen])
    _, first = np.unique(view.shown[seen], return_index=True)
    mixed = ~np.isnan(areas)
    if mixed.sum() < _LEAST:
        return None
    return clustered_mean(areas[mixed], view.user[seen][first][mixed])


def _is_position(log: Examined, label: Array, order: Estimate) -> bool:
    data = log.run.data
    names = {"position", *(number.feature for number in data.numbers if number.column == data.columns.position)}
    for feature in log.by_user.features:
        if feature.name in names and feature.values is not None:
            position = _within(log, label, feature.values)
            return position is not None and abs(position.value - order.value) < _SAME
    return False


def _mixed(shown: Array, label: Array) -> Array:
    """bool [C]: rows of requests with both labels."""
    size = int(shown.max()) + 1
    positive, negative = (np.bincount(shown, label == value, minlength=size) > 0 for value in (1, 0))
    return (positive & negative)[shown]
