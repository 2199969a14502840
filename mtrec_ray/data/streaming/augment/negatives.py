"""Fewer of the candidates that nothing came of, without a change of what is learned in the mean."""

from typing import Any

import numpy as np

from mtrec_ray.data.requests.ragged import spans
from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.rows import RequestRows
from mtrec_ray.data.streaming.augment.thinning import thinned

Array = np.ndarray[Any, np.dtype[Any]]


def sample_negatives(rows: RequestRows, share: float, draws: Draws) -> RequestRows:
    """Keeps candidates with a label other than 0, or none, and of the others each with probability `share`.

    Of the n others of a request share * n stay, rounded up or down: a loss is divided by the sum of the weights that
    its step happens to have, and where that sum varies, the mean of the quotients is not the quotient of the means.
    Decided for each candidate by itself, a step of n such candidates would promise (1 - share) / (share * n) too much.
    Whether a candidate stays is one decision for all tasks, since what it costs is to be read at all.
    """
    row_ids = rows.values("row_id")
    labels = rows.values("labels").reshape(len(row_ids), -1)
    negative = (~np.isnan(labels)).any(axis=1) & (np.isnan(labels) | (labels == 0)).all(axis=1)
    return thinned(rows, np.where(negative, share, 1.0), _spread(rows, negative, share, draws))


def _spread(rows: RequestRows, chosen: Array, share: float, draws: Draws) -> Array:
    """float64 [C] draws in [0, 1), of which, among the `chosen` [C] of a request, as many as can be expected are below
    `share`: systematic sampling (Madow and Madow 1944), with a random order and a random start.
    """
    request = rows.request_of_candidate
    order = np.lexsort((draws.uniform("negatives", rows.values("row_id")), ~chosen, request))
    place = np.empty(len(order))
    place[order] = spans(np.zeros(len(rows.candidates), dtype=np.int64), rows.candidates)
    start: Array = draws.uniform("negatives.start", rows.uids)[request]
    return (start + share * place) % 1.0
