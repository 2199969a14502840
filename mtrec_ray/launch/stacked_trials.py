"""Trials that share one copy of the backbone.

Ray Tune sees ordinary trials, each with a small process of its own that asks the actor with the backbone
(`launch.stack`) for the next report.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from mtrec_ray.launch.trial import Trial, TrialReport


@dataclass(frozen=True)
class StackedRunner:
    """`TrialRunner` on actors that are there already; a trial goes to the one with the fewest."""

    stacks: tuple[Any, ...]

    def run(self, trial: Trial, resume: str | None) -> Iterator[TrialReport]:
        loads = ray.get([stack.load.remote() for stack in self.stacks])
        stack = self.stacks[loads.index(min(loads))]
        ray.get(stack.start.remote(trial, resume))
        try:
            while True:
                report: TrialReport = ray.get(stack.next.remote(trial.id))
                yield report
                if report.last:
                    return
        finally:
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(stack.stop.remote(trial.id))
