"""When to stop: the best validation metric so far, and how long ago it was."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stopping:
    """Early stopping with patience; a value that travels in the checkpoint. Higher metrics are better."""

    patience: int | None
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    """Evaluations since the best one."""

    def after(self, metric: float, step: int) -> "Stopping":
        """The state after an evaluation; NaN is no improvement."""
        if metric == metric and (self.best is None or metric > self.best):
            return replace(self, best=metric, best_step=step, waited=0)
        return replace(self, waited=self.waited + 1)

    @property
    def stop(self) -> bool:
        return self.patience is not None and self.waited >= self.patience
