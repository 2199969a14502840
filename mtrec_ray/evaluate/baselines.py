"""The baselines that stand in every table, by the names of `evaluate.baselines`.

`side_features` is a run of its own (`backbone: none`), trained where runs are trained; its predictions come in as a
file. The others are computed here from the prepared data alone.
"""

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest, TaskEntry
from mtrec_ray.evaluate import gbdt, popularity, running_rates
from mtrec_ray.evaluate.candidates import flat, read_shard
from mtrec_ray.evaluate.scored import Scored
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.tasks.matching import MatchingKind

COMPUTED = ("constant", "running_rates", "gbdt")
"""For tasks of any kind; `popularity` is computed, too, for tasks that match users with items."""


def score(name: str, prepared: str, manifest: Manifest, run: Run, splits: list[str]) -> Scored:
    """The scores of one of `COMPUTED`, or of `popularity`, on the rows of some splits; fitted on train, chosen on
    valid."""
    if name == "constant":
        return constant(prepared, manifest, splits)
    if name == "popularity":
        kinds = {k.task.name: k for k in build_kinds(manifest, run.tasks) if isinstance(k, MatchingKind)}
        return popularity.score(prepared, manifest, kinds, splits)
    if name == "running_rates":
        return running_rates.score(prepared, manifest, run, splits)
    if name == "gbdt":
        return gbdt.score(prepared, manifest, splits, run.seed)
    raise ValueError(f"baseline '{name}' is not computed here")


def constant(prepared: str, manifest: Manifest, splits: list[str]) -> Scored:
    """Always the train base rate, mean, or class shares."""
    row_id = {split: _row_ids(prepared, manifest, split) for split in splits}
    labelled = [task for task in manifest.tasks if task.labels != "none"]
    fitted = [task for task in labelled if task.observed["train"] > 0]
    scores = {split: {task.name: _repeat(task, len(ids)) for task in fitted} for split, ids in row_id.items()}
    notes = {
        task.name: f"train mean {task.mean:.4g}" if task in fitted else "skipped: no observed train label"
        for task in labelled
    }
    return Scored(row_id, scores, notes)


def _repeat(task: TaskEntry, rows: int) -> np.ndarray:
    return np.tile(task.frequencies, (rows, 1)) if task.labels == "class" else np.full(rows, task.mean)


def _row_ids(prepared: str, manifest: Manifest, split: str) -> np.ndarray:
    tables = [read_shard(prepared, entry, ["row_id"]) for entry in manifest.shards[split]]
    return np.concatenate([np.empty(0, np.int64), *(flat(table, "row_id") for table in tables)])
