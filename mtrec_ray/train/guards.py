"""Guards: metrics of which the best checkpoint may not lose too much, beside the metric that chooses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.train.evaluation import find_term, without_value


@dataclass(frozen=True)
class Guard:
    """A limit for one metric. All figures are in the metric's own unit, as reports have them."""

    metric: str
    """`task/metric`"""
    sign: int
    """+1: higher is better; -1: lower"""
    loses_at_most: float | None = None
    no_worse_than: float | None = None

    def best(self, one: float, other: float) -> float:
        return max(one, other, key=lambda value: self.sign * value)

    def limit(self, best: float) -> float:
        """The worst value that passes, where `best` is the best so far."""
        relative = [] if self.loses_at_most is None else [best - self.sign * self.loses_at_most]
        absolute = [] if self.no_worse_than is None else [self.no_worse_than]
        return max([*relative, *absolute], key=lambda value: self.sign * value)

    def miss(self, value: float, best: float) -> float:
        """How far `value` is beyond the limit, as a share of the limit, so that metrics of all units compare; 0 = it
        passes. A limit of 0 has no shares: there it is the distance itself.
        """
        limit = self.limit(best)
        return max(0.0, self.sign * (limit - value)) / (abs(limit) or 1.0)


def chosen_guards(run: Run, manifest: Manifest) -> tuple[Guard, ...]:
    """`train.guards` of a run on its data. Raises `ConfigError`: a metric that is unknown or will have no value."""
    found = []
    for name, limits in run.train.guards.items():
        term = find_term(name, manifest.tasks, "train.guards")
        if term.undefined is not None:
            raise without_value(f"train.guards '{name}'", [term.undefined])
        found.append(Guard(name, term.sign, limits.loses_at_most, limits.no_worse_than))
    return tuple(found)


def guarded_values(guards: Sequence[Guard], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{`task/metric`: value} of the guarded ones, from {task: {metric: value}}. Raises `ConfigError`: one is None."""
    found = {}
    for guard in guards:
        task, _, metric = guard.metric.rpartition("/")
        value = metrics[task][metric]
        if value is None:
            raise without_value(f"train.guards '{guard.metric}'", [metrics[task]["undefined"][metric]])
        found[guard.metric] = float(value)
    return found


def largest_miss(guards: Sequence[Guard], values: Mapping[str, float], bests: Mapping[str, float]) -> float:
    """Of all guards, for an evaluation with these values, where `bests` are the best values so far; 0 = all pass."""
    return max((guard.miss(values[guard.metric], bests[guard.metric]) for guard in guards), default=0.0)


def explain(guards: Sequence[Guard], values: Mapping[str, float], bests: Mapping[str, float], step: int) -> str:
    """What to tell the user of a best checkpoint that misses guards: which, by how much, and what can be done."""
    missed = [guard for guard in guards if guard.miss(values[guard.metric], bests[guard.metric]) > 0]
    figures = [
        f"{guard.metric} is {values[guard.metric]:.5g}, its best was {bests[guard.metric]:.5g}, and it may be no worse "
        f"than {guard.limit(bests[guard.metric]):.5g}"
        for guard in missed
    ]
    tasks = dict.fromkeys(guard.metric.rpartition("/")[0] for guard in missed)
    return (
        f"train.guards: no evaluation held them all; kept are the weights of step {step}, which miss by least: "
        f"{'; '.join(figures)}. Raise {' and '.join(f'tasks.{task}.weight' for task in tasks)}, or loosen "
        f"{' and '.join(f'train.guards.{guard.metric}' for guard in missed)}."
    )
