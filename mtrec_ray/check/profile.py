"""What the data are like: sizes, rates, delays, lengths and gaps, as figures and for drawing."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.check.checks.duplicates import repeated
from mtrec_ray.check.checks.feedback_times import first_feedback
from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.features import Feature
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.requests.rows import NEVER

_MOST_BINS = 60
_DAY_S = 86_400
_SHOWN_VALUES = 5


@dataclass(frozen=True)
class OverTime:
    """The log in B spans of equal length."""

    starts: Array
    """datetime64[s] [B]"""
    days: int
    """Length of a span"""
    rates: dict[str, Array]
    """Of each task with labels: mean label [B], NaN where none is observed"""
    users: Array
    """int64 [B] different users; likewise `items`"""
    items: Array
    new_users: Array
    """int64 [B] users whose first row lies here; likewise `new_items`"""
    new_items: Array


@dataclass(frozen=True)
class Profile:
    """Of the candidates looked at."""

    counts: dict[str, int]
    shares: dict[str, float]
    labels: list[dict[str, Any]]
    """Per task with labels: observed, positive or mean, per split"""
    columns: list[dict[str, Any]]
    """Per feature: share missing, different values, range or most frequent values"""
    over_time: OverTime
    delays: dict[str, Array]
    """Seconds from the row to its feedback, of tasks whose feedback is dated, if it came after"""
    history: Array
    """int64 [C] events that a candidate may see"""
    shown: Array
    """int64 [R] candidates per request"""

    def as_json(self) -> dict[str, Any]:
        """The figures without the arrays."""
        return {"counts": self.counts, "shares": self.shares, "labels": self.labels, "columns": self.columns}


def profile(log: Examined) -> Profile:
    """The profile of what was looked at."""
    view, bucket = log.by_user, log.bucket
    shown = np.bincount(view.shown)
    test_users = np.unique(view.user[log.test])
    train_users, train_items = np.unique(view.user[log.train]), np.unique(view.item[log.train])
    return Profile(
        counts={
            "rows": view.rows.num_rows,
            "candidates": view.size,
            **{f"candidates in {name}": int((log.split == code).sum()) for code, name in enumerate(SPLITS)},
            "users": len(view.rows.users),
            "items": len(view.rows.items),
            "requests": len(shown[shown > 0]),
            "rows that could not be read": log.read.reasons.total(),
        },
        shares={
            "rows that repeat another": _share(repeated(view.rows)),
            "test rows without an earlier event of their user": _share(bucket.ends[log.test] == 0),
            "test users without a train row": _share(~np.isin(test_users, train_users)),
            "test rows whose item has no train row": _share(~np.isin(view.item[log.test], train_items)),
        },
        labels=[_labels(log, task) for task in log.tasks],
        columns=[_column(feature) for feature in view.features],
        over_time=_over_time(log),
        delays=_delays(log),
        history=bucket.ends,
        shown=shown[shown > 0],
    )


def _share(rows: Array) -> float:
    return round(float(rows.mean()), 6) if len(rows) else 0.0


def _labels(log: Examined, task: str) -> dict[str, Any]:
    found: dict[str, Any] = {"task": task}
    for code, name in enumerate(SPLITS):
        label = log.label(task)[log.split == code]
        seen = label[~np.isnan(label)]
        found[name] = {
            "observed": len(seen),
            "observed_share": _share(~np.isnan(label)),
            "mean": round(float(seen.mean()), 6) if len(seen) else None,
        }
    return found


def _column(feature: Feature) -> dict[str, Any]:
    there = ~feature.missing
    found = {
        "name": feature.name,
        "scope": feature.scope,
        "kind": feature.kind,
        "used": feature.used,
        "missing": _share(feature.missing),
    }
    if feature.codes is not None:
        counts = np.bincount(feature.codes[there], minlength=len(feature.texts))
        top = np.argsort(-counts, kind="stable")[:_SHOWN_VALUES]
        said = [f"{feature.texts[i]} {counts[i] / max(1, there.sum()):.0%}" for i in top.tolist() if counts[i]]
        return found | {"different": int((counts > 0).sum()), "values": ", ".join(said)}
    values = feature.cells[there]
    ends = np.quantile(values, [0, 0.5, 1]) if len(values) else np.zeros(0)
    said = [f"{name} {end:.4g}" for name, end in zip(("from", "median", "to"), ends, strict=False)]
    return found | {"different": len(np.unique(values)), "values": ", ".join(said)}


def _over_time(log: Examined) -> OverTime:
    view = log.by_user
    seconds = view.time // 1_000_000
    first = int(seconds.min()) // _DAY_S * _DAY_S
    days = -(-(int(seconds.max()) - first + 1) // (_MOST_BINS * _DAY_S))
    bins = (seconds - first) // (days * _DAY_S)
    size = int(bins.max()) + 1

    def different(code: Array) -> Array:
        return np.bincount(np.unique(np.stack([bins, code]), axis=1)[0], minlength=size)

    def new(code: Array) -> Array:
        earliest = np.full(int(code.max()) + 1, size)
        np.minimum.at(earliest, code, bins)
        return np.bincount(earliest[earliest < size], minlength=size)

    rates = {}
    for t, task in enumerate(log.run.tasks):
        if task in log.tasks:
            label = view.labels[:, t]
            seen = ~np.isnan(label)
            count = np.bincount(bins[seen], minlength=size)
            total = np.bincount(bins[seen], label[seen], minlength=size)
            rates[task] = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    starts = (first + np.arange(size) * days * _DAY_S).astype("datetime64[s]")
    return OverTime(starts, days, rates, different(view.user), different(view.item), new(view.user), new(view.item))


def _delays(log: Examined) -> dict[str, Array]:
    found = {}
    for name, task in log.run.tasks.items():
        known = first_feedback(log, name, task)
        later = (known != NEVER) & (known >= log.by_user.time)
        if later.any():
            found[name] = (known - log.by_user.time)[later] / 1e6
    return found
