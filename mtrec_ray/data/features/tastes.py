"""What a user would make of the candidate, judging by its values of a category: a regression of one's own.

Each user's residuals (label - the item's fitted mean) are regressed on the factors of the earlier items, by ridge
regression, with a level of the user's own beside the factors. The factors come from all users (`value_factors`), so
values that the same users like count for one another, and items that are new have factors as soon as their values are
known. This is the user's half of a factor model with the items' half given, "folding in", and the mean of a linear
Gaussian model's posterior; what is pooled by likeness (`similarity`) counts ten like events ten times, a regression
knows that they say the same. Where tastes drift, events may count half as much after every half-life: forgetting as in
recursive least squares, except that the prior stays as it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtrec_ray.data.features.running import SESSION_US, Asked, Past
from mtrec_ray.data.features.signals import Signal
from mtrec_ray.data.features.statistics import Statistics
from mtrec_ray.data.features.value_rows import LEVEL_WEIGHT, TASTE_WEIGHT, value_rows

Array = np.ndarray[Any, np.dtype[Any]]

_HOUR_WEIGHT = 20.0
"""Labels as by which the difference between the last hour's level and taste and all others' is drawn towards 0."""
_BLOCK, _BLOCK_HALF_LIVES = 512, 100


def taste_features(
    name: str,
    column: str,
    half_life: float,
    past: Past,
    asked: Asked,
    statistics: Statistics,
    signals: Sequence[Signal],
    chosen: list[int],
) -> dict[str, Array]:
    """Of each signal the expected residual: by all events, and with the last hour's drawn towards that; and how little
    is known of the candidate's like. `half_life`: microseconds, `inf` = events do not fade."""
    factors = statistics.value_factors[column]
    mine, theirs = value_rows(factors, asked.categories[column]), value_rows(factors, past.categories[column])
    known = np.eye(mine.shape[1]) * TASTE_WEIGHT
    known[0, 0] = LEVEL_WEIGHT
    recent = np.eye(mine.shape[1]) * _HOUR_WEIGHT
    begin = np.searchsorted(past.time, asked.time - asked.lag - SESSION_US, side="left")
    fading_from = asked.time - asked.lag if np.isfinite(half_life) else np.zeros_like(asked.time)
    moments = np.stack([np.minimum(begin, asked.end), asked.end, fading_from])
    moments, of_candidate = np.unique(moments, axis=1, return_inverse=True)
    ends, now, of_candidate = moments[:2], moments[2], of_candidate.ravel()
    residual = past.residual(statistics)
    found = {part: np.zeros((len(mine), len(signals))) for part in ("residual", "hour", "unknown")}
    for group in _alike(past.weight, chosen):
        weight = past.weight[:, group[0]]
        (seen_then, seen), (liked_then, liked) = _sums(
            theirs, weight, residual[:, group], past.time, ends, now, half_life
        )
        mean = np.linalg.solve(seen + known, liked)
        late = np.linalg.solve(seen - seen_then + recent, liked - liked_then - (seen - seen_then) @ mean)
        spread = np.linalg.solve((seen + known)[of_candidate], mine[:, :, None])[:, :, 0]
        found["residual"][:, group] = np.einsum("cd,cds->cs", mine, mean[of_candidate])
        found["hour"][:, group] = np.einsum("cd,cds->cs", mine, late[of_candidate])
        found["unknown"][:, group] = (mine * spread).sum(axis=1)[:, None]
    return {f"{name}.{signals[s].name}.{part}": values[:, s] for s in chosen for part, values in found.items()}


def _alike(weight: Array, chosen: list[int]) -> list[list[int]]:
    """The signals in groups that have the same denominators."""
    groups: list[list[int]] = []
    for s in chosen:
        same = next((group for group in groups if np.array_equal(weight[:, group[0]], weight[:, s])), None)
        if same is None:
            groups.append([s])
        else:
            same.append(s)
    return groups


def _sums(
    rows: Array, weight: Array, residual: Array, time: Array, ends: Array, now: Array, half_life: float
) -> tuple[Array, Array]:
    """Over the first `ends` [2, n] events: sums of weight x x', float64 [2, n, d, d], and of x residual', [2, n, d, s],
    in which an event counts 2^-((now - its time) / half-life); now: [n], none of these events is later.

    Blockwise, so that only the asked prefixes are held. In a block events count 2^((time - the block's start) /
    half-life), which must not become too large; what came before the block is carried along.
    """
    width = rows.shape[1]
    squares = np.zeros((*ends.shape, width, width))
    products = np.zeros((*ends.shape, width, residual.shape[1]))
    square, product = np.zeros((width, width)), np.zeros((width, residual.shape[1]))
    now = np.broadcast_to(now, ends.shape)
    first, before = 0, time[0] if len(time) else 0
    while first < len(rows):
        start = time[first]
        last = min(first + _BLOCK, int(np.searchsorted(time, start + _BLOCK_HALF_LIVES * half_life, side="right")))
        x, w, r = rows[first:last], weight[first:last], residual[first:last]
        carried = 2.0 ** ((before - start) / half_life)
        grown = 2.0 ** ((time[first:last] - start) / half_life)
        upto_square = carried * square + np.cumsum((grown * w)[:, None, None] * x[:, :, None] * x[:, None, :], axis=0)
        upto_product = carried * product + np.cumsum(grown[:, None, None] * x[:, :, None] * r[:, None, :], axis=0)
        here = (ends > first) & (ends <= last)
        place, fade = ends[here] - first - 1, 2.0 ** ((start - now[here]) / half_life)
        squares[here] = fade[:, None, None] * upto_square[place]
        products[here] = fade[:, None, None] * upto_product[place]
        square, product, first, before = upto_square[-1], upto_product[-1], last, start
    return squares, products
