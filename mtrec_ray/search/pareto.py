"""The trade-off between objectives: which trials no other one beats in everything, and how much they cover.

N trials, M objectives: values [N, M] in the objectives' own units, signs [M] (+1 higher is better, -1 lower). NaN marks
a trial without that objective; it is on no front and covers nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.search.objectives import Objective, Report, best_report
from mtrec_ray.search.records import TrialRecord

MARGIN = 0.1
"""How far beyond the worst value the reference point lies, as a share of the range (Ishibuchi et al. 2018, "How to
specify a reference point in hypervolume calculation"): so the ends of the front cover something too."""
FAR = 3.0
"""Values this many interquartile ranges off the middle half are far off (Tukey's outer fences)."""


def signs(objectives: Sequence[Objective]) -> np.ndarray:
    """[M]"""
    return np.array([objective.sign for objective in objectives], dtype=np.float64)


def best_values(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> np.ndarray:
    """[N, M] of each trial's best report, which is that of one model; NaN where no report has every objective."""
    return values([best_report(objectives, record.reports) for record in records], objectives)


def values(reports: Sequence[Report | None], objectives: Sequence[Objective]) -> np.ndarray:
    """[N, M] in the objectives' own units; NaN where there is no report, or it does not define the objective."""
    rows = [[None if report is None else report.get(o.key) for o in objectives] for report in reports]
    return np.array(rows, dtype=np.float64).reshape(len(reports), len(objectives))


def non_dominated(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Front as bool [N]: no other row is at least as good in all objectives and better in one.

    Of equal rows the first one stands for all. A row with a value that is not finite is not on the front.
    """
    gain = values * signs
    front = np.zeros(len(gain), dtype=bool)
    for n in np.flatnonzero(np.isfinite(gain).all(axis=1)):
        others = gain[np.arange(len(gain)) != n]
        beaten = (others >= gain[n]).all(axis=1) & (others > gain[n]).any(axis=1)
        front[n] = not beaten.any() and not (gain[:n] == gain[n]).all(axis=1).any()
    return front


def far_off(values: np.ndarray) -> np.ndarray:
    """Bool [N] of finite values [N]; the best ones may be among them."""
    first, third = np.quantile(values, [0.25, 0.75])
    reach = FAR * (third - first)
    return (values < first - reach) | (values > third + reach)


@dataclass(frozen=True)
class Box:
    """The part of objective space in which hypervolume is measured; its volume counts as 1.

    `ideal` [M]: the best value of each objective. `reference` [M]: `MARGIN` beyond the worst that is not far off: one
    diverged trial would make the box so large that all else fills it. What lies beyond the reference covers nothing.
    Two searches are compared in one box: `Box.of(np.concatenate([a, b]), signs)`.
    """

    reference: np.ndarray
    ideal: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, signs: np.ndarray) -> "Box | None":
        """Around all complete rows [N, M]; None without one."""
        gain = (values * signs)[np.isfinite(values).all(axis=1)]
        if not len(gain):
            return None
        best = gain.max(axis=0)
        worst = np.array([column[~far_off(column)].min() for column in gain.T])
        return cls((worst - MARGIN * (best - worst)) * signs, best * signs)

    def scale(self, values: np.ndarray) -> np.ndarray:
        """[N, M] from 0 (reference, and all beyond it) to 1 (ideal); 1 where an objective does not vary."""
        width = self.ideal - self.reference
        varies = width != 0
        scaled = np.ones_like(values, dtype=np.float64)
        scaled[:, varies] = (values[:, varies] - self.reference[varies]) / width[varies]
        return np.clip(scaled, 0, None)


def hypervolume(values: np.ndarray, signs: np.ndarray, box: Box) -> float:
    """Share of the box that the rows dominate: 0 = none, 1 = one trial is best in everything. Exact.

    Zitzler & Thiele 1999. Above 1 where rows lie beyond the box's ideal.
    """
    front = values[non_dominated(values, signs)]
    return _volume(box.scale(front)) if len(front) else 0.0


def _volume(points: np.ndarray) -> float:
    """Volume of the union of the boxes from 0 to each row [N, M], sliced along the last axis.

    Hypervolume by slicing objectives (While et al. 2006): O(N^(M-1)), exact for any M, fast for the few objectives
    and some hundred trials of a search. Libraries offer it only behind private names or as packages of their own.
    """
    points = points[(points > 0).all(axis=1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1], kind="stable")]
    depths = np.append(points[:, -1], 0.0)
    thickness = depths[:-1] - depths[1:]
    return float(sum(t * _volume(points[: n + 1, :-1]) for n, t in enumerate(thickness) if t > 0))


def hypervolume_history(values: np.ndarray, signs: np.ndarray, box: Box) -> list[float]:
    """[N]: hypervolume of the first 1, 2, ... trials, in their order."""
    found, front = [], values[:0]
    for row in values:
        front = np.concatenate([front, row[None]])
        front = front[non_dominated(front, signs)]
        found.append(hypervolume(front, signs, box))
    return found
