"""One split's table: the model and the baselines on the same rows, with intervals, paired differences and slices."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.data.manifest import TaskEntry
from mtrec_ray.evaluate import bootstrap, metrics
from mtrec_ray.evaluate.predictions import Rows, Scores
from mtrec_ray.tasks import KINDS

Entry = dict[str, Any]
Replicates = dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """What stands side by side on one split."""

    rows: Rows
    baselines: dict[str, Scores]
    slices: dict[str, np.ndarray]
    """Name -> bool [N]"""


@dataclass(frozen=True)
class Resampling:
    """How intervals are made; `count` 0 = none."""

    count: int
    seed: int


def metric_names(kind: str) -> tuple[str, ...]:
    """What is measured of a task kind; a guest's kind says itself."""
    return metrics.BY_KIND.get(kind) or tuple(KINDS[kind].metrics)


def compare(comparison: Comparison, tasks: list[TaskEntry], resampling: Resampling) -> dict[str, Any]:
    """`{"tasks": {task: entry}, "baselines": {name: {task: entry}}}`, as `metrics.json` holds them.

    The entry of the model has `difference`: per baseline and metric the value (model - baseline) with the interval of
    the paired difference. The entry of a slice is like that of all rows.
    """
    everything = np.ones(len(comparison.rows.row_id), dtype=bool)
    table: dict[str, Any] = {"tasks": {}, "baselines": {name: {} for name in comparison.baselines}}
    for task in tasks:
        entries = _entries(comparison, task, everything, resampling)
        for entry in entries.values():
            entry["slices"] = {}
        for name, mask in comparison.slices.items():
            for column, entry in _entries(comparison, task, mask, resampling).items():
                entries[column]["slices"][name] = entry
        table["tasks"][task.name] = entries.pop("")
        for name, entry in entries.items():
            table["baselines"][name][task.name] = entry
    return table


def _entries(comparison: Comparison, task: TaskEntry, mask: np.ndarray, resampling: Resampling) -> dict[str, Entry]:
    """The entry of the model (under "") and of each baseline that scored the task, over the rows of a mask."""
    columns = {"": comparison.rows.scores, **comparison.baselines}
    rows = comparison.rows
    entries: dict[str, Entry] = {}
    replicates: dict[str, Replicates] = {}
    for name, scores in columns.items():
        if task.name in scores:
            selected = rows.labels[task.name][mask], scores[task.name][mask], rows.users[mask]
            entries[name], replicates[name] = _entry(task, *selected, resampling)
    entries[""]["difference"] = {
        name: _difference(entries[""], entries[name], replicates[""], replicates[name]) for name in entries if name
    }
    return entries


def _entry(
    task: TaskEntry, labels: np.ndarray, scores: np.ndarray, users: np.ndarray, resampling: Resampling
) -> tuple[Entry, Replicates]:
    names = metric_names(task.kind)
    entry = metrics.measure(names, labels, scores, users, task.mean)
    if task.kind == "binary":
        entry["positives"] = int((labels > 0).sum())
    replicates = bootstrap.replicates(names, labels, scores, users, task.mean, resampling.count, resampling.seed)
    entry["intervals"] = {name: bootstrap.interval(values) for name, values in replicates.items()}
    return entry, replicates


def _difference(model: Entry, other: Entry, model_replicates: Replicates, other_replicates: Replicates) -> Entry:
    found = {}
    for name, values in model_replicates.items():
        if model[name] is not None and other[name] is not None:
            paired = bootstrap.interval(values - other_replicates[name])
            found[name] = {"value": model[name] - other[name], "interval": paired}
    return found
