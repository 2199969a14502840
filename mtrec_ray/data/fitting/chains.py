"""Tasks that are steps after a parent: how their train labels go together."""

from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def chain_counts(labels: Array, run: Run) -> Array:
    """float64 [T, 4] over train labels [N, T]: of the rows on which a task's and its parent's label are observed, how
    many there are, on how many the parent's is 1, on how many the own one is, and on how many that alone.

    Zeros for tasks without a parent.
    """
    place = {name: t for t, name in enumerate(run.tasks)}
    counts = np.zeros((len(place), 4))
    for t, task in enumerate(run.tasks.values()):
        if task.parent is not None:
            own, before = labels[:, t], labels[:, place[task.parent]]
            own, before = (column[~np.isnan(own) & ~np.isnan(before)] for column in (own, before))
            counts[t] = len(own), (before == 1).sum(), (own == 1).sum(), ((own == 1) & (before == 0)).sum()
    return counts


def parent_mean(name: str, counts: Array, run: Run) -> float | None:
    """How often the parent's label is 1 where this task's is observed too, from the counts [4] of all train rows.

    Raises:
        DataError: more than `data.max_bad_share` of the steps happened without the parent.
    """
    rows, before, happened, alone = counts
    if alone > run.data.max_bad_share * happened:
        parent = run.tasks[name].parent
        raise DataError(
            f"tasks.{name}: {alone:,.0f} of {happened:,.0f} train rows with label 1 have label 0 of its parent "
            f"'{parent}', more than data.max_bad_share ({run.data.max_bad_share}); a step cannot happen without the "
            "one before it. Correct one of the two labels (as `clicked or bought` for a click), or raise "
            "data.max_bad_share."
        )
    return float(before / rows) if rows else None
