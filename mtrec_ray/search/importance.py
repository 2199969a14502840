"""Which searched parameters an objective depends on, as far as the trials of one search can tell.

A random forest predicts the trials' ranks by the objective (one diverged trial must not count for all others) from
their parameters; a parameter matters as much as the predictions for trials
that the forest has not seen get worse when its values are shuffled (permutation importance, Breiman 2001, on held-out
folds: on the trials it was fitted to, a forest finds importance in noise). A conditional parameter that was not
active is missing, which the forest's splits treat as a side of their own. No dependence is claimed where the
forest predicts no better than the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtrec_ray.evaluate.metrics import midranks
from mtrec_ray.search import pareto
from mtrec_ray.search.objectives import Objective, best_report
from mtrec_ray.search.records import TrialRecord

MIN_TRIALS = 8
TREES = 100
FOLDS = 5
SHUFFLES = 20
MIN_EXPLAINED = 0.05
"""A forest that explains a smaller share of the held-out variance is taken to have found nothing."""


@dataclass(frozen=True)
class Importance:
    """What the trials say of one objective; without `shares` the `reason` says why."""

    objective: str
    trials: int
    evaluation: int | None = None
    """Trials are compared by their best report up to here: the last evaluation that enough of them reached."""
    explained: float | None = None
    """R² of the ranks of held-out trials: 1 = the parameters settle them, 0 = no better than the mean."""
    shares: dict[str, float] = field(default_factory=dict)
    """Path -> share of all importance, the largest first; they sum to 1."""
    spread: dict[str, float] = field(default_factory=dict)
    """Path -> standard deviation of its share over shuffles."""
    reason: str | None = None


def importance(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], of: int = 0, seed: int = 0
) -> Importance:
    """Importance of every searched path for objective number `of`; the same records and seed give the same figures."""
    objective = objectives[of]
    evaluation, compared = _comparable(records, objectives, of)
    if len(compared) < MIN_TRIALS:
        reason = f"{len(compared)} trials have a value of {objective.name}; at least {MIN_TRIALS} are needed"
        return Importance(objective.name, len(compared), evaluation, reason=reason)
    y = midranks(np.array([value for _, value in compared]))
    columns = _columns([record.values for record, _ in compared])
    if np.ptp(y) == 0:
        return Importance(objective.name, len(y), evaluation, reason=f"{objective.name} is the same in all trials")
    if not columns:
        return Importance(objective.name, len(y), evaluation, reason="no parameter differs between the trials")
    explained, drops = _held_out(np.stack(list(columns.values()), axis=1), y, seed)
    drops = np.clip(drops, 0, None)
    total = drops.mean(axis=0).sum()
    if explained < MIN_EXPLAINED or total == 0:
        reason = (
            f"the ranks of {len(y)} trials cannot be predicted from their parameters (R² {explained:.2f} on held-out "
            "trials): more trials are needed, or the parameters do not matter"
        )
        return Importance(objective.name, len(y), evaluation, explained, reason=reason)
    order = np.argsort(-drops.mean(axis=0), kind="stable")
    paths = list(columns)
    shares = {paths[j]: float(drops[:, j].mean() / total) for j in order}
    spread = {paths[j]: float(drops[:, j].std() / total) for j in order}
    return Importance(objective.name, len(y), evaluation, explained, shares, spread)


def _comparable(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], of: int
) -> tuple[int | None, list[tuple[TrialRecord, float]]]:
    """An evaluation, and each trial that reached it with its value by then.

    Values of trials that were stopped at different evaluations would tell of the scheduler. The evaluation is the last
    one that `MIN_TRIALS` and at least half of the trials reached. A trial that finished earlier counts as it ended, one
    that failed later as it was.
    """
    reported = [record for record in records if record.reports]
    needed = max(MIN_TRIALS, (len(reported) + 1) // 2)
    last = max((record.evaluations for record in reported), default=0)
    for evaluation in range(last, 0, -1):
        there = [r for r in reported if r.evaluations >= evaluation or r.status == "finished"]
        if len(there) >= needed or evaluation == 1:
            until = [[r for r in record.reports if r["evaluation"] <= evaluation] for record in there]
            values = pareto.values([best_report(objectives, reports) for reports in until], objectives)[:, of]
            return evaluation, [(r, float(v)) for r, v in zip(there, values, strict=True) if np.isfinite(v)]
    return None, []


def _columns(values: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Path -> float64 [N], NaN = not active; only paths that vary. What is no number becomes its place in the list."""
    columns = {}
    for path in dict.fromkeys(path for row in values for path in row):
        cells = [row.get(path) for row in values]
        if any(isinstance(cell, bool) or not isinstance(cell, int | float) for cell in cells if cell is not None):
            places = {
                text: place for place, text in enumerate(sorted({str(cell) for cell in cells if cell is not None}))
            }
            cells = [None if cell is None else places[str(cell)] for cell in cells]
        column = np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)
        if len(np.unique(column)) > 1:  # NaN is one more value
            columns[path] = column
    return columns


def _held_out(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """R² of predictions [N] of held-out rows of x [N, P], and its loss [SHUFFLES, P] when a column is shuffled."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    rng = np.random.default_rng(seed)
    donors = [rng.permutation(len(y)) for _ in range(SHUFFLES)]
    predicted, shuffled = np.empty(len(y)), np.empty((SHUFFLES, x.shape[1], len(y)))
    for train, held in KFold(FOLDS, shuffle=True, random_state=seed).split(x):
        forest = RandomForestRegressor(TREES, max_features=0.5, random_state=seed).fit(x[train], y[train])
        predicted[held] = forest.predict(x[held])
        shuffled[:, :, held] = _predict_shuffled(forest, x, held, donors)
    spread = np.square(y - y.mean()).sum()
    return (
        float(1 - np.square(y - predicted).sum() / spread),
        (np.square(y - shuffled).sum(axis=2) - np.square(y - predicted).sum()) / spread,
    )


def _predict_shuffled(forest: Any, x: np.ndarray, held: np.ndarray, donors: list[np.ndarray]) -> np.ndarray:
    """Predictions [SHUFFLES, P, H] of the held rows, one column at a time taken from other rows; in one call."""
    copies = np.broadcast_to(x[held], (len(donors), x.shape[1], len(held), x.shape[1])).copy()
    for s, donor in enumerate(donors):
        for j in range(x.shape[1]):
            copies[s, j, :, j] = x[donor[held], j]
    found: np.ndarray = forest.predict(copies.reshape(-1, x.shape[1])).reshape(copies.shape[:3])
    return found
