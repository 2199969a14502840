"""Staged training: gradual unfreezing, as spans of steps in which only some of the weights are trained.

Howard & Ruder 2018, "Universal Language Model Fine-tuning" (arXiv 1801.06146), section 3.3: from the head down, a layer
at a time. Each stage begins with an empty optimizer, whose rate warms up again, so that a stage does not depend on how
an engine keeps the state of weights that it has not trained yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mtrec_ray.config import Stage


@dataclass(frozen=True)
class Span:
    """A stage in steps: `first` to `last`, the latter not included."""

    first: int
    last: int
    stage: Stage


def spans(stages: Sequence[Stage], num_steps: int) -> list[Span]:
    """One after the other over all steps; stages that are too short for a step are left out. Without stages, one."""
    found, first = [], 0
    for stage in stages or [Stage(until=1.0)]:
        last = round(stage.until * num_steps)
        if last > first:
            found.append(Span(first, last, stage))
            first = last
    return found


def span_at(found: Sequence[Span], step: int) -> Span:
    """The span that trains step `step` (from 0); after the last step, the last span."""
    return next((span for span in found if span.first <= step < span.last), found[-1])
