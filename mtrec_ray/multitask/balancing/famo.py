"""Weights under which all tasks' losses fall equally fast, learned from the losses before and after each update."""

import torch
from pydantic import Field
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.learned import Rate, learned, move, through_softmax
from mtrec_ray.multitask.balancing.method import EPSILON, METHODS, Seen, UnitMethod


@METHODS.register("famo")
class FastAdaptive(UnitMethod):
    """Fast adaptive multitask optimisation: weights n · (p / ℓ) / Σ (p / ℓ), p = softmax(learned numbers).

    Liu et al. 2023, "FAMO: Fast Adaptive Multitask Optimization" (arXiv 2306.03792). The numbers move down along
    Σ p δ, δ = log ℓ before - log ℓ after the update on the same batch: a task whose loss fell less gets more weight.
    1e-8 is added to every loss. The paper's weights sum to 1, ours to the number n of observed tasks. Multiplying a
    loss by a constant changes neither p nor the direction of the sum of all gradients.
    """

    class Params(Part):
        learning_rate: Rate = 0.025
        """Of Adam, which moves the numbers."""
        weight_decay: float = Field(default=1e-3, ge=0)
        """Pulls the numbers to 0: equal p."""

    params: Params
    reads = "losses"
    learns = "losses_again"

    def start(self) -> dict[str, Tensor]:
        return learned(len(self.tasks))

    def balance(self, step: int, seen: Seen, kept: Tensor) -> Tensor:
        shares = self._shares(kept) / (seen.losses + EPSILON)
        return len(shares) * shares / shares.sum()

    def learn(self, step: int, seen: Seen, again: Tensor | None) -> None:
        assert again is not None, "FAMO was not told the losses after the update"
        kept = seen.observed
        fall = torch.log(seen.losses + EPSILON) - torch.log(again + EPSILON)
        slopes = torch.zeros_like(fall)
        slopes[kept] = through_softmax(self._shares(kept), fall[kept])
        move(self.memory, slopes, kept, self.params.learning_rate, self.params.weight_decay)

    def _shares(self, kept: Tensor) -> Tensor:
        return torch.softmax(self.memory["values"][kept], dim=0)
