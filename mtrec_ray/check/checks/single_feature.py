"""One column that tells the label better than the whole past does."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.asof import binned, encoded, past_scores
from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.features import Feature
from mtrec_ray.check.finding import CHECKS, Finding
from mtrec_ray.check.statistics import Estimate, clustered_auc, either_way

_LEFT = 1 / 3
"""An honest column leaves more than this part of what the past of user and item leaves open (1 - AUC). The score of a
good ranking model, as a column, takes about a third away; two thirds are taken only by something that saw the label."""
_BINS = 20


@CHECKS.register("single_feature")
def single_feature(log: Examined) -> Iterator[Finding]:
    """Single features whose AUC is suspiciously high, against the rates of user and item so far.

    On validation and test rows in which the feature is there: by its value, or by the mean label that its bin or
    category has in train. The interval is by users.
    """
    view = log.by_user
    for task in log.tasks:
        label = log.positive(task)
        rows = ~log.train & ~np.isnan(label)
        if not rows.any():
            continue
        past = clustered_auc(label[rows], past_scores(view, label)[rows], view.user[rows])
        base = 0.5 if past is None else max(0.5, past.value)
        for feature in view.features:
            found = _best(log, feature, label, rows)
            if found is not None and found.low > 1 - _LEFT * (1 - base):
                yield _finding(log, feature, task, label, rows, found, base)


def _best(log: Examined, feature: Feature, label: Array, rows: Array) -> Estimate | None:
    there = rows & ~feature.missing
    scores = []
    if feature.values is not None:
        values = np.nan_to_num(feature.values)
        scores += [values, -values]
    codes = binned(feature.cells, log.train, _BINS) if feature.codes is None else np.maximum(feature.codes, 0)
    scores.append(encoded(codes, label, log.train & ~feature.missing))
    found = [clustered_auc(label[there], score[there], log.by_user.user[there]) for score in scores]
    return max((f for f in found if f is not None), key=lambda f: f.low, default=None)


def _finding(
    log: Examined, feature: Feature, task: str, label: Array, rows: Array, found: Estimate, base: float
) -> Finding:
    there = np.flatnonzero(rows & ~feature.missing)
    both = np.concatenate([there[label[there] == 1][:4], there[label[there] == 0][:4]])
    return Finding(
        "error" if feature.used else "warning",
        "single_feature",
        f"Column {feature.described} alone tells '{task}' with AUC {either_way(found.value):.3f}; the past of user and "
        f"item tells it with {base:.3f}" + ("." if feature.used else " (the config does not use the column)."),
        {
            "AUC": round(found.value, 4),
            "at least": round(found.low, 4),
            "suspicious above": round(1 - _LEFT * (1 - base), 4),
            "AUC of the past": round(base, 4),
            "rows": len(there),
        },
        log.places(log.by_user, both, [f"{feature.name} {feature.said(c)}, {task} {label[c]:g}" for c in both]),
        f"Find out when '{feature.name}' is written. If that is after the item was shown, leave it out.",
    )
