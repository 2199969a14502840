"""Scores of a split over all ranks, and the one number that chooses the best checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest, TaskEntry
from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate.facts import FactsOf, judged
from mtrec_ray.evaluate.judged import base_name
from mtrec_ray.evaluate.lists import OF_RANKS
from mtrec_ray.evaluate.metrics import METRICS, measure
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.registry import suggest
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.train.loop import StepData
from mtrec_ray.train.ranks import CatalogueRanks

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Scores:
    """Every candidate of a split once, ascending by row id, whatever the number of workers."""

    row_ids: Array
    """int64 [N]"""
    labels: Array
    """float32 [N, T], NaN = not observed"""
    scores: dict[str, Array]
    """Per task float32 [N] or [N, classes], in the label's unit."""
    ranks: dict[str, Array] = field(default_factory=dict)
    """Per task that matches users with items int64 [N] the place of the row's item among all items, from 1, and
    `catalogue` int64 [N] how many these are; 0 for rows without a positive label. See `train.ranks`."""
    catalogue: dict[str, Array] = field(default_factory=dict)


def score(engine: Engine, steps: Iterable[StepData], kinds: Sequence[TaskKind]) -> Scores | None:
    """Scores of all candidates in `steps`, without dropout; rank 0 gets them, the others None.

    All ranks call it, with equally many batches (ZeRO-3 gathers weights in every forward pass); rows need not be even.
    """
    engine.model.eval()
    parts: list[dict[str, Array]] = []
    matching = [kind.task.name for kind in kinds if kind.matches]
    with torch.no_grad():
        ranks = CatalogueRanks(cast(Recommender, engine.model), kinds) if matching else None
        for step in steps:
            for batch in step.batches:
                there = batch.to(engine.device)
                (logits,) = engine.forward(there)
                found = {f"score.{kind.task.name}": kind.score(logits, there).float().cpu().numpy() for kind in kinds}
                if ranks is not None:
                    for name, ranked in ranks.of(there).items():
                        found |= {f"rank.{name}": ranked.rank, f"catalogue.{name}": ranked.size}
                parts.append({"row_ids": batch.row_ids.numpy(), "labels": batch.labels.numpy(), **found})
    gathered = _gather(engine, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    if gathered is None:
        return None
    columns = {key: np.concatenate([rank[key] for rank in gathered]) for key in gathered[0]}
    order = np.argsort(columns["row_ids"], kind="stable")
    scores = {kind.task.name: columns[f"score.{kind.task.name}"][order] for kind in kinds}
    places, sizes = ({name: columns[f"{what}.{name}"][order] for name in matching} for what in ("rank", "catalogue"))
    return Scores(columns["row_ids"][order], columns["labels"][order], scores, places, sizes)


def task_metrics(scores: Scores, kinds: Sequence[TaskKind], facts_of: FactsOf) -> dict[str, dict[str, Any]]:
    """Per task the metrics of its kind, over the rows whose label is observed; see `evaluate.metrics.measure`.

    `kinds`: of all tasks, in the order of the labels.
    """
    facts = replace(facts_of(scores.row_ids, kinds), ranks=scores.ranks)
    labels = {kind.task.name: scores.labels[:, t] for t, kind in enumerate(kinds)}
    found = {}
    for kind in kinds:
        rows = judged(kind, labels, scores.scores, facts)
        assert rows is not None, "all tasks are scored"
        found[kind.task.name] = measure(kind.metrics, rows)
    return found


def flat(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """{task: {metric: value}} -> {`task/metric`: value}, as a line of `metrics.jsonl`; numbers only."""
    return {
        f"{task}/{name}": value
        for task, values in metrics.items()
        for name, value in values.items()
        if value is None or isinstance(value, int | float)
    }


@dataclass(frozen=True)
class Term:
    """One metric of a task, as `train.metric` and `train.guards` name it."""

    task: TaskEntry
    metric: str
    sign: int
    """+1: higher is better; -1: lower"""

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.metric}"

    @property
    def undefined(self) -> str | None:
        """Why it will have no value, where the labels of the validation split already tell."""
        return _undefined(self.task, self.metric)


def find_term(name: str, tasks: Sequence[TaskEntry], where: str, also: Sequence[str] = ()) -> Term:
    """The metric called `task/metric`. Raises `ConfigError`, opening with `where`, with the nearest that there is;
    `also`: what can be written there beside metrics.
    """
    terms = [Term(task, m, sign) for task in tasks for m, sign in KINDS[task.kind].metrics.items() if m in METRICS]
    known = {term.name: term for term in terms}
    if name not in known:
        raise ConfigError(f"{where} '{name}' is unknown.{suggest(name, [*also, *known])}")
    return known[name]


class ChosenMetric:
    """`train.metric`: `auto`, `task/metric`, several with their mean, or several with weights and their sum; higher is
    better once `value` has set the signs.

    `auto` is the mean AUC of the tasks with a weight whose main metric it is (binary, conversion, delayed ...), without
    any minus the mean RMSE of those whose main metric that is, and else the mean accuracy; a task without a value is
    left out of it. What is named must have a value.

    Raises:
        ConfigError: no such task or metric.
    """

    def __init__(
        self,
        chosen: str | Sequence[str] | Mapping[str, float],
        tasks: Sequence[TaskEntry],
        weights: Mapping[str, float],
    ) -> None:
        """`weights`: of the tasks, for `auto`."""
        self._is_mean_of_defined = chosen == "auto"
        if isinstance(chosen, str):
            named: Mapping[str, float] = {chosen: 1.0}
        else:
            named = chosen if isinstance(chosen, Mapping) else dict.fromkeys(chosen, 1 / len(chosen))
        self.name = chosen if isinstance(chosen, str) else " + ".join(f"{w:.3g} {name}" for name, w in named.items())
        if self._is_mean_of_defined:
            by_name = {task.name: task for task in tasks}
            self._terms = [(Term(by_name[t], m, sign), 1.0) for t, m, sign in _automatic(tasks, weights)]
        else:
            also = ["auto"] if isinstance(chosen, str) else []
            self._terms = [(find_term(name, tasks, "train.metric", also), weight) for name, weight in named.items()]

    def check(self) -> None:
        """Raises `ConfigError` where the labels of the validation split already tell that it will have no value."""
        self._check_reasons({term.name: reason for term, _ in self._terms if (reason := term.undefined) is not None})

    def value(self, metrics: Mapping[str, Mapping[str, Any]]) -> float:
        """From {task: {metric: value}}. Raises `ConfigError` if it has none on these rows."""
        found = [(term, weight, metrics[term.task.name]) for term, weight in self._terms]
        undefined = {term.name: of["undefined"][term.metric] for term, _, of in found if of[term.metric] is None}
        self._check_reasons(undefined)
        values = [weight * term.sign * of[term.metric] for term, weight, of in found if term.name not in undefined]
        return float(sum(values)) / (len(values) if self._is_mean_of_defined else 1)

    def _check_reasons(self, undefined: Mapping[str, str]) -> None:
        if undefined and (not self._is_mean_of_defined or len(undefined) == len(self._terms)):
            reasons = [f"{name}: {reason}" for name, reason in undefined.items()]
            raise without_value(f"train.metric '{self.name}'", reasons)


def without_value(what: str, reasons: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"{what} has no value on the validation split ({'; '.join(reasons)}). Choose another metric, a larger "
        "split.valid, or boundaries (split.train_until, split.valid_until) between which there are such labels."
    )


def chosen_metric(run: Run, manifest: Manifest) -> ChosenMetric:
    """`train.metric` of a run on its data. Raises `ConfigError` if it is unknown or will have no value."""
    metric = ChosenMetric(run.train.metric, manifest.tasks, {name: task.weight for name, task in run.tasks.items()})
    metric.check()
    return metric


def _undefined(task: TaskEntry, metric: str) -> str | None:
    observed, positives = task.observed["valid"], task.positives["valid"]
    if task.labels == "none":
        return None
    if not observed:
        return "no observed label"
    if KINDS[task.kind].matches and not positives and base_name(metric) in OF_RANKS:
        return "no row with label 1"
    if metric in ("auc", "gauc") and positives in (0, observed):
        return f"all {observed} observed labels are {'1' if positives else '0'}"
    return None


def _automatic(tasks: Sequence[TaskEntry], weights: Mapping[str, float]) -> list[tuple[str, str, int]]:
    main = {task.name: next(iter(KINDS[task.kind].metrics.items())) for task in tasks}
    for metric in ("auc", "rmse", "accuracy"):
        terms = [(task, *main[task]) for task in main if main[task][0] == metric and weights[task] > 0]
        if terms:
            return terms
    first = next((task for task in tasks if task.labels != "none"), tasks[0])
    return [(first.name, *main[first.name])]


def _gather(engine: Engine, columns: dict[str, Array]) -> list[dict[str, Array]] | None:
    if engine.world_size == 1:
        return [columns]
    gathered: list[Any] | None = [None] * engine.world_size if engine.world_rank == 0 else None
    dist.gather_object(columns, gathered)
    return gathered
