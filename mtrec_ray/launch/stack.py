"""The actor of a stack, as the trials' processes see it.

Free of torch: a process that only holds a handle of an actor imports the actor's module.
"""

from typing import Any

import ray

from mtrec_ray.config import Run
from mtrec_ray.launch.trial import Trial, TrialReport


class StackActor:
    """A process with one copy of the backbone and the trials that are on it; see `launch.stack_trials`."""

    def __init__(self, run: Run, prepared: str, expected: int) -> None:
        """`run`: what all trials have in common. `expected`: how many are about to start."""
        from mtrec_ray.launch.stack_trials import StackTrials

        self._trials = StackTrials(run, prepared, expected)

    def open(self) -> None:
        """Not in `__init__`, whose errors reach nobody as what they are."""
        self._trials.open()

    def load(self) -> int:
        return self._trials.load()

    def start(self, trial: Trial, resume: str | None) -> None:
        self._trials.start(trial, resume)

    def next(self, trial_id: str) -> TrialReport:
        return self._trials.next(trial_id)

    def stop(self, trial_id: str) -> None:
        self._trials.stop(trial_id)


def make_stacks(run: Run, prepared: str, count: int, expected: int) -> list[Any]:
    """`count` actors, each with the resources of one worker; Ray starts one that dies again, empty."""
    return [
        ray.remote(StackActor)
        .options(
            num_cpus=run.cluster.cpus_per_worker,
            num_gpus=run.cluster.gpus_per_worker,
            max_concurrency=2 * run.tune.stack + 4,
            max_restarts=-1,
        )
        .remote(run, prepared, expected)
        for _ in range(count)
    ]
