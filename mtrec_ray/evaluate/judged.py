"""What a metric may see, and the registry that built-in and guest metrics share; numpy only.

A metric that is not built in is a function in a module that `plugins` names:

    from mtrec_ray.evaluate.judged import METRICS, Judged

    @METRICS.register("spread")
    def spread(rows: Judged) -> float | None: ...

It gets rows whose label is observed, and gives None where they do not define it. Where rows have weights, it is to be
the metric of the log in which each row stands so many times. What is measured of each list, and then averaged over
lists, is registered in `evaluate.lists`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtrec_ray.errors import DataError
from mtrec_ray.registry import Registry


class Judged(NamedTuple):
    """N rows of one task, one row = one candidate."""

    labels: np.ndarray
    """float64 [N], NaN = not observed; an objective over lists, which has no labels, has zeros, so all rows count"""
    scores: np.ndarray
    """[N] in the label's unit, or [N, classes] (probabilities); of an objective over lists, those of its parent"""
    users: np.ndarray
    """[N] any sortable ids"""
    train_mean: float
    """Mean of the task's observed train labels."""
    shown: np.ndarray
    """int64 [N]: rows with the same number were shown together and are one list"""
    parent_labels: np.ndarray | None = None
    """Labels [N] of the parent task; None where there is none"""
    parent_scores: np.ndarray | None = None
    items: np.ndarray | None = None
    """[N] any sortable ids of the items"""
    traits: np.ndarray | None = None
    """[N, ...] what an objective over lists tells rows apart by; see `tasks.lists.ListObjective.traits`"""
    ranks: np.ndarray | None = None
    """[N] of a task that matches users with items: the place of each positive's item among all items, from 1, and 0 for
    other rows. Then `ndcg`, `mrr` and `recall` are means over the positives, and not over what was shown together."""
    weights: np.ndarray | None = None
    """float64 [N] how much each row counts, as in the loss (`data.reading.context.row_weights`); None = all the same"""

    @property
    def counts(self) -> np.ndarray:
        """float64 [N]: `weights`, ones where there are none."""
        return np.ones(len(self.labels)) if self.weights is None else self.weights

    def take(self, rows: np.ndarray) -> "Judged":
        """Some of the rows: a mask, or places, which may repeat."""
        columns = {name: column[rows] for name, column in self._asdict().items() if isinstance(column, np.ndarray)}
        return self._replace(**columns)

    def observed(self) -> "Judged":
        """The rows whose label is not NaN and whose weight is not 0. Raises `DataError`: a score of theirs that is not
        finite."""
        rows = self._replace(labels=np.asarray(self.labels, dtype=np.float64), users=np.asarray(self.users))
        rows = rows.take(~np.isnan(rows.labels) & (rows.counts > 0))
        bad = int((~np.isfinite(rows.scores)).sum())
        if bad:
            raise DataError(
                f"{bad:,} of {rows.scores.size:,} scores are not finite numbers; the model that gave them diverged."
            )
        return rows


Metric = Callable[[Judged], float | None]


class Metrics(Registry[Metric]):
    """Metrics by name; of those that look at the head of a list also by `name@k`, its first k rows."""

    def __init__(self) -> None:
        super().__init__("metric")
        self._of_heads: dict[str, Callable[[int | None], Metric]] = {}

    def register_head(self, name: str, of_head: Callable[[int | None], Metric]) -> None:
        """`of_head(k)`: the metric of the first k rows of a list, or of whole lists (None)."""
        self.register(name)(of_head(None))
        self._of_heads[name] = of_head

    def __contains__(self, name: str) -> bool:
        return self._depth(name) is not None or super().__contains__(name)

    def __getitem__(self, name: str) -> Metric:
        depth = self._depth(name)
        return super().__getitem__(name) if depth is None else self._of_heads[base_name(name)](depth)

    def names(self) -> list[str]:
        return sorted([*super().names(), *(f"{name}@10" for name in self._of_heads)])

    def _depth(self, name: str) -> int | None:
        base, _, k = name.partition("@")
        return int(k) if base in self._of_heads and k.isdecimal() and int(k) > 0 else None


def base_name(name: str) -> str:
    """`ndcg@10` -> `ndcg`."""
    return name.partition("@")[0]


METRICS = Metrics()
