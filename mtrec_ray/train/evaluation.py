"""Scores of a split over all ranks, and the one number that chooses the best checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest, TaskEntry
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate.metrics import DIRECTION, METRICS, measure
from mtrec_ray.registry import suggest
from mtrec_ray.tasks import KINDS
from mtrec_ray.train.loop import StepData

Array = np.ndarray[Any, np.dtype[Any]]
UsersOf = Callable[[Array], Array]
"""Row ids [N] -> user of each [N], as numbers."""


@dataclass(frozen=True)
class Scores:
    """Every candidate of a split once, ascending by row id, whatever the number of workers."""

    row_ids: Array
    """int64 [N]"""
    labels: Array
    """float32 [N, T], NaN = not observed"""
    scores: dict[str, Array]
    """Per task float32 [N] or [N, classes], in the label's unit."""


def score(engine: Engine, steps: Iterable[StepData], tasks: Sequence[TaskEntry]) -> Scores | None:
    """Scores of all candidates in `steps`, without dropout; rank 0 gets them, the others None.

    All ranks call it, with equally many batches (ZeRO-3 gathers weights in every forward pass); rows need not be even.
    """
    engine.model.eval()
    parts: list[dict[str, Array]] = []
    with torch.no_grad():
        for step in steps:
            for batch in step.batches:
                logits = engine.forward(batch.to(engine.device))
                found = {f"score.{t.name}": KINDS[t.kind].score(logits[t.name].float(), t).cpu().numpy() for t in tasks}
                parts.append({"row_ids": batch.row_ids.numpy(), "labels": batch.labels.numpy(), **found})
    gathered = _gather(engine, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    if gathered is None:
        return None
    columns = {key: np.concatenate([rank[key] for rank in gathered]) for key in gathered[0]}
    order = np.argsort(columns["row_ids"], kind="stable")
    scores = {t.name: columns[f"score.{t.name}"][order] for t in tasks}
    return Scores(columns["row_ids"][order], columns["labels"][order], scores)


def task_metrics(scores: Scores, tasks: Sequence[TaskEntry], users_of: UsersOf) -> dict[str, dict[str, Any]]:
    """Per task the metrics of its kind, over the rows whose label is observed; see `evaluate.metrics.measure`."""
    users = users_of(scores.row_ids)
    return {
        task.name: measure(KINDS[task.kind].metrics, scores.labels[:, t], scores.scores[task.name], users, task.mean)
        for t, task in enumerate(tasks)
    }


def flat(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """{task: {metric: value}} -> {`task/metric`: value}, as a line of `metrics.jsonl`; numbers only."""
    return {
        f"{task}/{name}": value
        for task, values in metrics.items()
        for name, value in values.items()
        if value is None or isinstance(value, int | float)
    }


class ChosenMetric:
    """`train.metric`: `auto`, or `task/metric`; higher is better once `value` has set the sign.

    `auto` is the mean AUC of the binary tasks with a weight, without any minus the mean RMSE of the regressions, and
    else the mean accuracy.

    Raises:
        ConfigError: no such task or metric.
    """

    def __init__(self, name: str, tasks: Sequence[TaskEntry], weights: Mapping[str, float]) -> None:
        self.name = name
        self._tasks = {t.name: t for t in tasks}
        if name == "auto":
            self._terms = _automatic(tasks, weights)
            return
        task, _, metric = name.partition("/")
        kinds = {t.name: t.kind for t in tasks}
        known = [f"{t}/{m}" for t, kind in kinds.items() for m in KINDS[kind].metrics]
        if task not in kinds or metric not in METRICS or name not in known:
            raise ConfigError(f"train.metric '{name}' is unknown.{suggest(name, ['auto', *known])}")
        self._terms = [(task, metric, _sign(kinds[task], metric))]

    def check(self) -> None:
        """Raises `ConfigError` where the labels of the validation split already tell that it will have no value."""
        reasons = {f"{t}/{m}": _undefined(self._tasks[t], m) for t, m, _ in self._terms}
        if None not in reasons.values():
            raise self._without_value(f"{term}: {reason}" for term, reason in reasons.items())

    def value(self, metrics: Mapping[str, Mapping[str, Any]]) -> float:
        """Mean over the terms that are defined on these rows. Raises `ConfigError` if none is."""
        values = [sign * metrics[t][m] for t, m, sign in self._terms if metrics[t][m] is not None]
        if not values:
            raise self._without_value(f"{t}/{m}: {metrics[t]['undefined'][m]}" for t, m, _ in self._terms)
        return float(np.mean(values))

    def _without_value(self, reasons: Iterable[str]) -> ConfigError:
        return ConfigError(
            f"train.metric '{self.name}' has no value on the validation split ({'; '.join(reasons)}). Choose another "
            "metric, or a larger split.valid."
        )


def chosen_metric(run: Run, manifest: Manifest) -> ChosenMetric:
    """`train.metric` of a run on its data. Raises `ConfigError` if it is unknown or will have no value."""
    metric = ChosenMetric(run.train.metric, manifest.tasks, {name: task.weight for name, task in run.tasks.items()})
    metric.check()
    return metric


def _undefined(task: TaskEntry, metric: str) -> str | None:
    observed, positives = task.observed["valid"], task.positives["valid"]
    if not observed:
        return "no observed label"
    if metric in ("auc", "gauc") and positives in (0, observed):
        return f"all {observed} observed labels are {'1' if positives else '0'}"
    return None


def users_of(shards: Shards) -> UsersOf:
    """Looks users up in a split's shards; their two columns are read once, when first asked for."""
    known: list[tuple[Array, Array]] = []

    def look_up(row_ids: Array) -> Array:
        if not known:
            known.append(_read_users(shards))
        return known[0][1][np.searchsorted(known[0][0], row_ids)]

    return look_up


def _read_users(shards: Shards) -> tuple[Array, Array]:
    table = shards.rows(np.arange(shards.num_requests), ["user", "row_id"])
    rows = table.column("row_id").combine_chunks()
    codes = np.unique(table.column("user").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    users = np.repeat(codes, np.diff(rows.offsets.to_numpy()))
    row_ids = rows.flatten().to_numpy()
    order = np.argsort(row_ids)
    return row_ids[order], users[order]


def _automatic(tasks: Sequence[TaskEntry], weights: Mapping[str, float]) -> list[tuple[str, str, int]]:
    for kind, metric in (("binary", "auc"), ("regression", "rmse"), ("multiclass", "accuracy")):
        terms = [(t.name, metric, DIRECTION[metric]) for t in tasks if t.kind == kind and weights[t.name] > 0]
        if terms:
            return terms
    first = tasks[0]
    metric = next(iter(KINDS[first.kind].metrics))
    return [(first.name, metric, _sign(first.kind, metric))]


def _sign(kind: str, metric: str) -> int:
    return KINDS[kind].metrics[metric]


def _gather(engine: Engine, columns: dict[str, Array]) -> list[dict[str, Array]] | None:
    if engine.world_size == 1:
        return [columns]
    gathered: list[Any] | None = [None] * engine.world_size if engine.world_rank == 0 else None
    dist.gather_object(columns, gathered)
    return gathered
