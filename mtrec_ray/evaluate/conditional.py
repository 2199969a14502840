"""Metrics of a step given its parent: of a purchase, among the rows that were clicked."""

import numpy as np

from mtrec_ray.evaluate.judged import Judged

CONDITIONAL = {"cvr_auc": "auc", "cvr_logloss": "logloss"}
"""Name -> the metric that it is of `given_parent`."""


def given_parent(rows: Judged) -> tuple[Judged, np.ndarray]:
    """The rows whose parent's label is 1, scored with P(step | parent) = score / parent's score; and their mask [N].

    The quotient is cut at 1, which scores that are no products may exceed, and 0 where the parent's score is. Without
    a parent, or scores of it, there are no such rows.
    """
    if rows.parent_labels is None or rows.parent_scores is None:
        happened = np.zeros(len(rows.labels), dtype=bool)
        return rows.take(happened), happened
    happened = np.asarray(rows.parent_labels) == 1
    given = rows.take(happened)
    before = np.asarray(given.parent_scores, dtype=np.float64)
    share = np.divide(given.scores, before, out=np.zeros(len(before)), where=before > 0)
    return given._replace(scores=np.minimum(share, 1.0)), happened
