"""Weights from how fast each task's loss has been falling."""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.method import EPSILON, METHODS, Method, Seen


@METHODS.register("dwa")
class DynamicWeightAverage(Method):
    """Dynamic weight average: T · softmax(r / temperature), r = a task's mean loss over the one before it.

    Liu et al. 2019, "End-to-End Multi-Task Learning with Attention" (arXiv 1803.10704), Eq. 7. The paper's means are
    over epochs; ours are over `window` optimizer steps, because runs on large logs have few epochs. The weights are
    those of the plain sum until two windows have passed, and change with each window. A window without labels of a
    task repeats the task's last mean. Multiplying a loss by a constant changes nothing.
    """

    class Params(Part):
        temperature: float = Field(default=2.0, gt=0)
        """Larger = closer to the plain sum."""
        window: PositiveInt = 100
        """Optimizer steps of one mean."""

    params: Params
    learns = "losses"

    def start(self) -> dict[str, Tensor]:
        count = len(self.tasks)
        return {
            "sums": torch.zeros(count, dtype=torch.float64),
            "counts": torch.zeros(count, dtype=torch.float64),
            "steps": torch.zeros((), dtype=torch.float64),
            "means": torch.full((2, count), float("nan"), dtype=torch.float64),  # the last but one, the last
        }

    def weights(self, step: int, seen: Seen | None) -> Tensor:
        before, last = self.memory["means"].clamp(min=EPSILON)
        rates = torch.nan_to_num(last / before, nan=1.0)
        return len(self.tasks) * torch.softmax(rates / self.params.temperature, dim=0)

    def learn(self, step: int, seen: Seen, again: Tensor | None) -> None:
        self.memory["sums"] += torch.where(seen.observed, seen.losses, 0.0)
        self.memory["counts"] += seen.observed
        self.memory["steps"] += 1
        if self.memory["steps"] == self.params.window:
            last = self.memory["means"][1]
            mean = torch.where(self.memory["counts"] > 0, self.memory["sums"] / self.memory["counts"], last)
            self.memory = self.start() | {"means": torch.stack([last, mean])}
