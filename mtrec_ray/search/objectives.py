"""What a search makes better: metrics of the validation split, as a trial reports them.

A trial counts with its best report by the first objective, since that is where its weights are kept, not with its
last; with `train.guards`, with the last report of which the weights were kept. The other objectives are those of the
same report, so that all belong to one model.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import ConfigError
from mtrec_ray.search.space import Space
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.train.evaluation import ChosenMetric
from mtrec_ray.train.guards import chosen_guards

AUTO = "auto"
METRIC = "metric"
"""Where a report has the value of `train.metric`, signed so that higher is better."""
KEPT = "kept"
"""Where a report of a run with guards says whether its weights were kept as the best so far."""
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Objective:
    """One metric to make better."""

    name: str
    """As in the config: `like/auc`, or `auto`"""
    sign: int
    """+1: higher is better; -1: lower"""

    @property
    def key(self) -> str:
        """Where a report has it."""
        return METRIC if self.name == AUTO else self.name

    @property
    def mode(self) -> str:
        return "max" if self.sign > 0 else "min"

    def value(self, report: Report) -> float | None:
        """Signed so that higher is better; None where the report has no finite number."""
        found = report.get(self.key)
        return self.sign * float(found) if found is not None and math.isfinite(found) else None


def parse(run: Run, manifest: Manifest) -> list[Objective]:
    """The objectives of `run.tune.objectives`, the first of which steers.

    Raises:
        ConfigError: a metric that no task has, one named twice, or one that has no value on the validation split; the
            same for the metrics of `train.guards`, which hold in every trial.
    """
    chosen_guards(run, manifest)
    signs = {f"{t.name}/{metric}": sign for t in manifest.tasks for metric, sign in KINDS[t.kind].metrics.items()}
    names = [AUTO if name == run.train.metric else name for name in run.tune.objectives]
    for name, written in zip(names, run.tune.objectives, strict=True):
        if name != AUTO and name not in signs:
            offers = "; ".join(f"{t.name}: {', '.join(KINDS[t.kind].metrics)}" for t in manifest.tasks)
            raise ConfigError(
                f"tune.objectives: '{written}' is no metric of the tasks, so no trial would report it. Write "
                f"task/metric, or auto (train.metric); the tasks have {offers}."
            )
        if names.count(name) > 1:
            raise ConfigError(f"tune.objectives: '{written}' is there twice (auto is train.metric); remove one.")
        _check_defined(run.train.metric if name == AUTO else name, run, manifest)
    return [Objective(name, signs.get(name, 1)) for name in names]


def _check_defined(name: str | list[str] | dict[str, float], run: Run, manifest: Manifest) -> None:
    metric = ChosenMetric(name, manifest.tasks, {task: part.weight for task, part in run.tasks.items()})
    try:
        metric.check()
    except ConfigError as error:
        raise ConfigError(f"tune.objectives: {str(error).removeprefix('train.metric ')}") from None


def check_comparable(objectives: Sequence[Objective], run: Run, space: Space) -> None:
    """Raises `ConfigError` where trials would be measured by different means of tasks.

    `train.metric: auto` is a mean over the tasks with a weight, so a weight of 0 would change what it means.
    """
    if run.train.metric != AUTO or all(objective.name != AUTO for objective in objectives):
        return
    own = _weighted(run)
    for entry, probe in space.probes(run):
        for task in sorted(own ^ _weighted(probe)):
            raise ConfigError(
                f"{entry.where}: with a weight of 0 '{task}' is not part of the metric `auto`, so trials could not be "
                "compared. Keep the weights above 0, in the config too, or name the metric, as "
                "tune.objectives: [like/auc]."
            )


def _weighted(run: Run) -> set[str]:
    return {name for name, task in run.tasks.items() if task.weight > 0}


def best_report(objectives: Sequence[Objective], reports: Iterable[Report]) -> Report | None:
    """Of the reports that have all objectives, the first with the best first objective, or with guards the last whose
    weights were kept; None if there is none."""
    known = [report for report in reports if told(objectives, report) is not None]
    if any(KEPT in report for report in known):
        return next((report for report in reversed(known) if report.get(KEPT)), None)
    return max(known, key=lambda report: objectives[0].value(report) or 0.0, default=None)


def told(objectives: Sequence[Objective], report: Report) -> list[float] | None:
    """What a sampler is told of a report: every objective, higher is better; None if one has no finite value."""
    values = [objective.value(report) for objective in objectives]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
