"""Fewer of the candidates that nothing came of, without a change of what is learned in the mean."""

import numpy as np
import pyarrow as pa

from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.rows import RequestRows

WEIGHT = "weight"
"""Column over candidates that is added: how much the candidate's losses count."""


def sample_negatives(rows: RequestRows, share: float, draws: Draws) -> RequestRows:
    """Keeps candidates with a label other than 0, or none, and of the others each with probability `share`.

    A kept one of the others counts 1 / share: the inverse of the probability with which it is there (Horvitz and
    Thompson 1952), so that sums of losses over kept candidates are those over all candidates in expectation, for every
    task, and predicted rates need no correction. That of He et al. 2014 ("Practical Lessons from Predicting Clicks on
    Ads at Facebook", Sec. 6.3) is for negatives that count 1. Whether a candidate stays is one decision for all tasks,
    since what it costs is to be read at all.
    """
    row_ids = rows.values("row_id")
    labels = rows.values("labels").reshape(len(row_ids), -1)
    negative = (~np.isnan(labels)).any(axis=1) & (np.isnan(labels) | (labels == 0)).all(axis=1)
    weight = np.where(negative, 1 / share, 1.0).astype(np.float32)
    kept = ~negative | (draws.uniform("negatives", row_ids) < share)
    return rows.with_column(WEIGHT, pa.array(weight)).with_candidates(kept)
