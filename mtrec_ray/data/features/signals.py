"""Signals: the numbers that aggregates average, one per binary or regression task and one per class of multiclass ones.

A rate needs to know how often something did *not* happen. Where also a negative label has a time at which it became
known (`feedback_delay`), it counts from then on. Where only the positive one has (`feedback_time`, layout
`behaviours`), each exposure counts as one without, until the feedback comes. So an event adds a value and a weight to
a signal, and a mean is the sum of values / the sum of weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import Run, Task
from mtrec_ray.data.requests.requests import Events
from mtrec_ray.errors import ConfigError
from mtrec_ray.tasks.labels import labels_of

Array = np.ndarray[Any, np.dtype[Any]]

_MOST_CLASSES = 16


@dataclass(frozen=True)
class Signal:
    """One number per label of a task."""

    name: str
    task: str
    index: int
    """The task's column in `labels` and `feedback`"""
    level: int | None
    """The class that counts as 1, or None: the label itself"""
    binary: bool
    per_exposure: bool
    """Whether the denominator of its mean counts exposures instead of known labels"""


def signals(run: Run) -> list[Signal]:
    """The signals of all tasks whose feedback can enter a history; classes beyond 16 are left out."""
    result = []
    for index, (name, task) in enumerate(run.tasks.items()):
        if not becomes_known(task):
            continue
        known_late = task.dated
        if task.classes is not None:
            levels = range(min(task.classes, _MOST_CLASSES))
            result += [Signal(f"{name}={c}", name, index, c, True, known_late) for c in levels]
        else:
            binary = labels_of(task.kind, run.plugins) == "binary"
            result.append(Signal(name, name, index, None, binary, known_late and binary))
    return result


def becomes_known(task: Task) -> bool:
    """Whether the task's feedback has a time from which on it is known, and so can enter a history."""
    return task.labelled and (task.dated or task.feedback_delay is not None)


def require_feedback(run: Run, where: str) -> None:
    """Raises `ConfigError` unless some task's feedback becomes known, from which likings can be learned."""
    if not any(becomes_known(task) for task in run.tasks.values()):
        raise ConfigError(
            f"{where} is learned from what users liked earlier, but no task says since when its feedback is known; "
            f"give one, e.g. tasks.{next(iter(run.tasks))}.feedback_delay, or remove it."
        )


def label_signals(labels: Array, which: list[Signal]) -> Array:
    """float64 [N, S] from labels [N, T]; NaN = not observed."""
    result = np.empty((len(labels), len(which)))
    for s, signal in enumerate(which):
        label = labels[:, signal.index].astype(np.float64)
        result[:, s] = label if signal.level is None else np.where(np.isnan(label), np.nan, label == signal.level)
    return result


def event_signals(events: Events, which: list[Signal]) -> tuple[Array, Array]:
    """float64 [E, S] value and weight that each event adds to the sums of each signal."""
    known = label_signals(events.feedback, which)
    weight = (~np.isnan(known)).astype(np.float64)
    for s, signal in enumerate(which):
        if signal.per_exposure:
            weight[:, s] = events.exposure
    return np.nan_to_num(known), weight
