"""When to stop: the best evaluation so far, and how long ago it was."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mtrec_ray.train.guards import Guard, explain, largest_miss


@dataclass(frozen=True)
class Stopping:
    """Early stopping with patience and guards; a value that travels in the checkpoint. Higher metrics are better.

    An evaluation that passes all guards is better than one that does not; of two that do, the one with the higher
    metric; of two that do not, the one that misses by less. The best one so far is judged again with every evaluation,
    since a guarded metric that got better has raised the limit: so the checkpoint that is kept in the end does not fall
    short of what the run has shown to be possible.
    """

    patience: int | None
    best: float | None = None
    """The metric of the best evaluation."""
    best_step: int | None = None
    waited: int = 0
    """Evaluations since the best one."""
    guards: tuple[Guard, ...] = ()
    guarded: Mapping[str, float] = field(default_factory=dict)
    """Of the best evaluation: the value of each guarded metric, in its own unit."""
    guarded_best: Mapping[str, float] = field(default_factory=dict)
    """The best value of each guarded metric so far, in any evaluation."""

    def after(self, metric: float, step: int, guarded: Mapping[str, float] | None = None) -> "Stopping":
        """The state after an evaluation with these values of the guarded metrics; NaN is no improvement."""
        guarded = guarded or {}
        values = {guard: guarded[guard.metric] for guard in self.guards}
        bests = {g.metric: g.best(value, self.guarded_best.get(g.metric, value)) for g, value in values.items()}
        seen = replace(self, guarded_best=bests)
        if metric == metric and seen._improved_by(metric, guarded):
            return replace(seen, best=metric, best_step=step, waited=0, guarded=guarded)
        return replace(seen, waited=self.waited + 1)

    @property
    def stop(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    @property
    def problem(self) -> str | None:
        """What to tell the user where the best evaluation does not pass the guards."""
        if self.best_step is None or not self._miss(self.guarded):
            return None
        return explain(self.guards, self.guarded, self.guarded_best, self.best_step)

    def _improved_by(self, metric: float, guarded: Mapping[str, float]) -> bool:
        if self.best is None:
            return True
        return (-self._miss(guarded), metric) > (-self._miss(self.guarded), self.best)

    def _miss(self, guarded: Mapping[str, float]) -> float:
        return largest_miss(self.guards, guarded, self.guarded_best)
