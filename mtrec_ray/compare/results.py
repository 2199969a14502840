"""What the runs of a comparison left in their folders: metrics on the same resamples of users, costs, training logs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.compare.plan import Plan, Variant, folder_name
from mtrec_ray.data.filesystem import open_fs
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import DataError
from mtrec_ray.evaluate.paired import RESAMPLES, Measured, check_same_rows, judged_rows, measured
from mtrec_ray.evaluate.predictions import Rows, read_rows
from mtrec_ray.evaluate.training_log import TrainingLog, read_log
from mtrec_ray.progress import track
from mtrec_ray.tasks.kinds import KINDS, build_kinds

Baselines = dict[str, dict[str, dict[str, Any]]]
"""Baseline -> task -> its entry in `metrics.json`."""
Failures = Mapping[tuple[str, int], str]
"""Variant and seed -> the first line of what its training died of."""


@dataclass(frozen=True)
class Result:
    """One run that came to its end."""

    variant: Variant
    seed: int
    measured: dict[str, dict[str, Measured]]
    """Task -> metric; of a task alone, that task's only."""
    cost: dict[str, float]
    """`steps`, `best_step`, `seconds` (of training steps), `candidates_per_s`, `peak_memory_mib`,
    `trained_parameters`."""
    log: TrainingLog
    baselines: Baselines
    """On the compared split; empty where they were not asked for."""


@dataclass(frozen=True)
class Results:
    """All runs of a comparison, in the order in which they are trained."""

    split: str
    counts: dict[str, dict[str, int]]
    """Compared task -> `n` observed rows and `users`, the same for all runs."""
    finished: list[Result]
    failures: Failures

    def of(self, variant: Variant) -> dict[int, Result]:
        """By seed."""
        return {result.seed: result for result in self.finished if result.variant is variant}


def metric_signs(kind: str) -> dict[str, int]:
    """What a comparison shows of a task: the metrics that can be better or worse, the main one first."""
    return dict(KINDS[kind].metrics)


def read_results(
    plan: Plan, manifest: Manifest, folder: str, failures: Failures, resamples: int = RESAMPLES
) -> Results:
    """Reads every training that has not failed; `folder` is the comparison's.

    Raises:
        DataError: a file that is missing or broken, or runs that were evaluated on different rows.
    """
    kinds = build_kinds(manifest, plan.run.tasks)
    runs = [(variant, seed) for variant, seed in plan.trainings() if (variant.name, seed) not in failures]
    found: list[Result] = []
    reference: Rows | None = None
    split = ""
    with track("paired differences", len(runs), "runs") as bar:
        for variant, seed in runs:
            path = f"{folder.rstrip('/')}/{folder_name(variant.slug, seed)}"
            parts = read_rows(f"{path}/predictions.parquet", manifest)
            split = "test" if "test" in parts else next(reversed(parts))
            rows = parts[split]
            if reference is None:
                reference, first = rows, path
            check_same_rows(reference, rows, (first, path))
            tasks = list(plan.metrics) if variant.task is None else [variant.task]
            drawn = {
                kind.task.name: measured(kind.metrics, judged_rows(kind, rows), resamples, plan.run.seed)
                for kind in kinds
                if kind.task.name in tasks
            }
            found.append(Result(variant, seed, drawn, _cost(path), _log(path), _baselines(path, split)))
            bar.advance()
    counts = {} if reference is None else {task: _counts(reference, task) for task in plan.metrics}
    return Results(split, counts, found, failures)


def _counts(rows: Rows, task: str) -> dict[str, int]:
    observed = ~np.isnan(rows.labels[task]) & (True if rows.weights is None else rows.weights > 0)
    return {"n": int(observed.sum()), "users": len(set(rows.users[observed].tolist()))}


def _cost(path: str) -> dict[str, float]:
    summary = _json(path, "training.json")
    throughput = summary["throughput"]
    return {
        "steps": summary["steps"],
        "best_step": summary["best_step"],
        "seconds": throughput["seconds"],
        "candidates_per_s": throughput["candidates_per_s"],
        "peak_memory_mib": summary["peak_memory_mib"],
        "trained_parameters": summary["trained_parameters"],
    }


def _log(path: str) -> TrainingLog:
    return read_log(f"{path}/metrics.jsonl")


def _baselines(path: str, split: str) -> Baselines:
    found: Baselines = _json(path, "metrics.json")["splits"][split]["baselines"]
    return found


def _json(path: str, name: str) -> dict[str, Any]:
    filesystem, root = open_fs(path)
    try:
        with filesystem.open_input_stream(f"{root}/{name}") as file:
            found: dict[str, Any] = json.loads(file.read())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}/{name} cannot be read ({error}). Delete that folder, and `mtrec compare` trains it again."
        ) from error
    return found
