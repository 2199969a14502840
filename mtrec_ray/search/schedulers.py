"""Who stops poor trials: Ray Tune's schedulers, in units of evaluations of the validation split.

They read `evaluation` (1, 2, ...) and the first objective of each report, so with several objectives the first one
decides. Where it is undefined a report must carry NaN: `asha` lets that pass, `median` takes it for poor, and
`hyperband` ranks it anywhere.

    none        every trial runs to its end
    asha        asynchronous successive halving (arXiv 1810.05934): rungs at grace, grace * reduction, ...; at each one
                a trial goes on if it is among the best 1 / reduction of those that came there before it
    hyperband   synchronous halving in brackets (arXiv 1603.06560): trials wait, paused, for those of their bracket, so
                it wants as many at a time as a bracket has, and trials that resume from checkpoints
    median      stops a trial whose best is below the median of the others' means up to there (Vizier)
    pbt         `search.population`; with more trials than run at a time they take turns, paused at checkpoints

`asha` and `median` let the first trial, which has the values of the config itself, run to its end: what the search has
gained is measured against it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.search.objectives import Objective
from mtrec_ray.search.population import Population, check_population
from mtrec_ray.search.records import TrialRecord
from mtrec_ray.search.space import Space

TIME = "evaluation"


def make_scheduler(run: Run, space: Space, objectives: Sequence[Objective], evaluations: int) -> TrialScheduler:
    """The scheduler of `run.tune`; `evaluations`: how many a trial has that nothing stops.

    Raises:
        ConfigError: too few evaluations for it to decide anything, or settings that it cannot follow.
    """
    name, tune = run.tune.scheduler, run.tune
    if name == "none":
        return FIFOScheduler()
    first: dict[str, Any] = {"metric": objectives[0].key, "mode": objectives[0].mode}
    if name == "pbt":
        check_population(run, space)
        _check_evaluations(run, evaluations)
        return Population(run, space, **first)
    if name == "hyperband":
        _check_hyperband(run, evaluations)
        return HyperBandScheduler(time_attr=TIME, max_t=evaluations, reduction_factor=tune.reduction, **first)
    _check_evaluations(run, evaluations)
    if name == "median":
        # Never yielding to others: a pause costs a restart from a checkpoint, and there is nothing to be gained by it.
        return _Median(time_attr=TIME, grace_period=tune.grace, min_time_slice=math.inf, **first)  # type: ignore[arg-type]
    # No rung at the last evaluation, where there is nothing left to save: a trial that came there has finished.
    return _Asha(
        time_attr=TIME,
        max_t=evaluations - 1,
        grace_period=tune.grace,
        reduction_factor=tune.reduction,
        stop_last_trials=False,
        **first,
    )


def _check_evaluations(run: Run, evaluations: int) -> None:
    if run.tune.grace >= evaluations:
        raise ConfigError(
            f"tune.scheduler: {run.tune.scheduler} decides nothing: a trial has {_times(evaluations)}, and tune.grace "
            f"is {run.tune.grace}. Raise train.evaluations_per_epoch, lower tune.grace, or set tune.scheduler: none."
        )


def _check_hyperband(run: Run, evaluations: int) -> None:
    if run.tune.grace != 1:
        raise ConfigError(
            f"tune.grace is {run.tune.grace}, but hyperband sets its own rungs from the evaluations of a trial; remove "
            "tune.grace, or take tune.scheduler: asha."
        )
    if evaluations < run.tune.reduction:
        raise ConfigError(
            f"tune.scheduler: hyperband decides nothing: a trial has {_times(evaluations)}, fewer than tune.reduction, "
            f"{run.tune.reduction}. Raise train.evaluations_per_epoch or set tune.scheduler: none."
        )


def _times(evaluations: int) -> str:
    return f"{evaluations} evaluation{'' if evaluations == 1 else 's'}"


class _Asha(ASHAScheduler):
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if _is_first(trial) else decision


class _Median(MedianStoppingRule):
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if not _is_first(trial):
            return decision
        self._stopped_trials.discard(trial)  # it expects no other report of a trial that it has stopped
        return TrialScheduler.CONTINUE


def _is_first(trial: Trial) -> bool:
    first: bool = trial.config["trial"]["number"] == 0
    return first


@dataclass(frozen=True)
class _PastTrial:
    """What `asha` and `median` look at of a trial."""

    trial_id: str


def replay(scheduler: TrialScheduler, records: Iterable[TrialRecord]) -> None:
    """Shows a new scheduler the trials of an earlier start that have ended, which Ray itself does not keep for it.

    So the rungs of `asha` and the medians of `median` are those of the whole search. The other schedulers start anew.
    """
    if not isinstance(scheduler, ASHAScheduler | MedianStoppingRule):
        return
    for record in records:
        if record.status == "running":
            continue
        trial = _PastTrial(record.trial_id)
        for report in record.reports:
            if report.get(scheduler.metric) is not None:
                # As if each report were a trial's last one, which both take down without deciding anything.
                scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
                scheduler.on_trial_complete(None, trial, dict(report))  # type: ignore[arg-type]
