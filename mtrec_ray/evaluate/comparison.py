"""One split's table: the model and the baselines on the same rows, with intervals, paired differences and slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mtrec_ray.evaluate import bootstrap, metrics
from mtrec_ray.evaluate.facts import Facts, judged
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.evaluate.predictions import Rows, Scores
from mtrec_ray.tasks.kind import TaskKind

Entry = dict[str, Any]
Replicates = dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """What stands side by side on one split."""

    rows: Rows
    baselines: dict[str, Scores]
    slices: dict[str, np.ndarray]
    """Name -> bool [N]"""
    traits: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Per objective over lists; see `evaluate.facts`"""
    ranks: Mapping[str, Scores] = field(default_factory=dict)
    """Per baseline that ranks all items; see `Judged.ranks`"""


@dataclass(frozen=True)
class Resampling:
    """How intervals are made; `count` 0 = none."""

    count: int
    seed: int


def compare(comparison: Comparison, kinds: Sequence[TaskKind], resampling: Resampling) -> dict[str, Any]:
    """`{"tasks": {task: entry}, "baselines": {name: {task: entry}}}`, as `metrics.json` holds them.

    The entry of the model has `difference`: per baseline and metric the value (model - baseline) with the interval of
    the paired difference. The entry of a slice is like that of all rows; lists are cut to its rows. An objective over
    lists is measured on the scores of its parent.
    """
    rows = comparison.rows
    facts = Facts(rows.users, rows.shown, rows.items, comparison.traits, weights=rows.weights)
    ranks = {"": rows.ranks, **comparison.ranks}
    everything = np.ones(len(rows.row_id), dtype=bool)
    table: dict[str, Any] = {"tasks": {}, "baselines": {name: {} for name in comparison.baselines}}
    for kind in kinds:
        columns = {
            name: scored
            for name, scores in {"": rows.scores, **comparison.baselines}.items()
            if (scored := judged(kind, rows.labels, scores, replace(facts, ranks=ranks.get(name, {})))) is not None
        }
        entries = _entries(columns, kind, everything, resampling)
        for entry in entries.values():
            entry["slices"] = {}
        for name, mask in comparison.slices.items():
            for column, entry in _entries(columns, kind, mask, resampling).items():
                entries[column]["slices"][name] = entry
        table["tasks"][kind.task.name] = entries.pop("")
        for name, entry in entries.items():
            table["baselines"][name][kind.task.name] = entry
    return table


def _entries(
    columns: Mapping[str, Judged], kind: TaskKind, mask: np.ndarray, resampling: Resampling
) -> dict[str, Entry]:
    """The entry of the model (under "") and of each baseline that scored the task, over the rows of a mask."""
    entries: dict[str, Entry] = {}
    replicates: dict[str, Replicates] = {}
    for name, rows in columns.items():
        entries[name], replicates[name] = _entry(kind, rows.take(mask), resampling)
    entries[""]["difference"] = {
        name: _difference(entries[""], entries[name], replicates[""], replicates[name]) for name in entries if name
    }
    return entries


def _entry(kind: TaskKind, rows: Judged, resampling: Resampling) -> tuple[Entry, Replicates]:
    entry = metrics.measure(kind.reported, rows)
    if kind.labels == "binary":
        entry["positives"] = int((rows.observed().labels > 0).sum())
    replicates = bootstrap.replicates(kind.reported, rows, resampling.count, resampling.seed)
    entry["intervals"] = {name: bootstrap.interval(values) for name, values in replicates.items()}
    return entry, replicates


def _difference(model: Entry, other: Entry, model_replicates: Replicates, other_replicates: Replicates) -> Entry:
    found = {}
    for name, values in model_replicates.items():
        if model[name] is not None and other[name] is not None:
            paired = bootstrap.interval(values - other_replicates[name])
            found[name] = {"value": model[name] - other[name], "interval": paired}
    return found
