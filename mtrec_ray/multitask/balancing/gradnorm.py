"""Weights under which all tasks train at the same pace, learned from the lengths of their gradients."""

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.learned import Rate, learned, move, through_softmax
from mtrec_ray.multitask.balancing.method import EPSILON, METHODS, Method, Seen


@METHODS.register("gradnorm")
class GradNorm(Method):
    """Gradient normalisation: pulls the length of each task's weighted gradient to mean length · r^alpha.

    Chen et al. 2018, "GradNorm" (arXiv 1711.02257), Eq. 2: minimises Σ |w ‖g‖ - mean(w ‖g‖) r^alpha|, the mean and r
    held fixed, r = a task's loss as a share of its first loss, over the mean of those shares. Gradients are those at
    the balance point. The weights are T · softmax(learned numbers), so they stay positive where the paper's may not,
    and sum to T as the paper's do. A task's first loss is its mean over the first `first_steps` steps that have labels
    of it, in which its number does not move; one step's loss would be noise. Multiplying a loss by a constant divides
    the weight it ends with by that constant.
    """

    class Params(Part):
        alpha: float = Field(default=1.5, ge=0)
        """How much more a task that trains slowly is to get; 0 = equal lengths."""
        learning_rate: Rate = 0.025
        """Of Adam, which moves the numbers."""
        first_steps: PositiveInt = 10

    params: Params
    learns = "gramian"

    def start(self) -> dict[str, Tensor]:
        blank = torch.zeros(len(self.tasks), dtype=torch.float64)
        return learned(len(self.tasks)) | {"first_sums": blank.clone(), "first_counts": blank.clone()}

    def weights(self, step: int, seen: Seen | None) -> Tensor:
        return len(self.tasks) * torch.softmax(self.memory["values"], dim=0)

    def learn(self, step: int, seen: Seen, again: Tensor | None) -> None:
        assert seen.gramian is not None, "GradNorm was not told the Gramian"
        counting = seen.observed & (self.memory["first_counts"] < self.params.first_steps)
        moved = seen.observed & ~counting
        self.memory["first_sums"] += torch.where(counting, seen.losses, 0.0)
        self.memory["first_counts"] += counting
        if int(moved.sum()) > 1:
            slopes = torch.zeros_like(seen.losses)
            slopes[moved] = self._slopes(seen.part(moved), moved)
            move(self.memory, slopes, moved, self.params.learning_rate)

    def _slopes(self, seen: Seen, moved: Tensor) -> Tensor:
        assert seen.gramian is not None
        weights = self.weights(0, None)[moved]
        norms = seen.gramian.diagonal().clamp(min=0).sqrt()
        first = (self.memory["first_sums"] / self.memory["first_counts"])[moved].clamp(min=EPSILON)
        shares = seen.losses / first
        pace = shares / shares.mean().clamp(min=EPSILON)
        lengths = weights * norms
        goals = lengths.mean() * pace**self.params.alpha
        return through_softmax(weights, torch.sign(lengths - goals) * norms)
