"""Weights that make all tasks' gradients of their log losses equally long."""

import torch
from pydantic import Field
from torch import Tensor

from mtrec_ray.config import Part, Share
from mtrec_ray.multitask.balancing.method import EPSILON, METHODS, Seen, UnitMethod


@METHODS.register("db_mtl")
class DualBalancing(UnitMethod):
    """Dual balancing: gradients of log ℓ, each scaled to the length of the longest.

    Lin et al. 2023, "Dual-Balancing for Multi-Task Learning" (arXiv 2308.12029), Algorithm 1. The paper averages the
    gradients over steps, β_k = beta / k^sigma being the weight of the past in a task's k-th step. At the balance point
    each step has candidates of its own, so we average the lengths of the gradients instead; with beta 0 both are the
    same. In the paper the sum has the longest gradient's length; our weights sum to the number n of observed tasks.
    The towers learn from the plain sum, not from log ℓ. 1e-8 is added to every loss. Multiplying a loss by a constant
    does not change the direction of the sum.
    """

    class Params(Part):
        beta: Share = 0.9
        sigma: float = Field(default=0.5, ge=0)

    params: Params
    reads = "gramian"
    place = "z"
    learns = "gramian"

    def start(self) -> dict[str, Tensor]:
        blank = torch.zeros(len(self.tasks), dtype=torch.float64)
        return {"lengths": blank.clone(), "counts": blank.clone()}

    def balance(self, step: int, seen: Seen, kept: Tensor) -> Tensor:
        scales = 1 / (self._lengths(seen, kept) * (seen.losses + EPSILON))
        return len(scales) * scales / scales.sum()

    def learn(self, step: int, seen: Seen, again: Tensor | None) -> None:
        kept = self.kept(seen)
        self.memory["lengths"][kept] = self._lengths(seen.part(kept), kept)
        self.memory["counts"][kept] += 1

    def _lengths(self, seen: Seen, kept: Tensor) -> Tensor:
        """Lengths [n] of the gradients of the log losses, averaged with those of earlier steps."""
        assert seen.gramian is not None
        lengths = seen.gramian.diagonal().sqrt()
        if seen.shares is not None:
            lengths = lengths / seen.shares
        now = lengths / (seen.losses + EPSILON)
        counts, before = self.memory["counts"][kept], self.memory["lengths"][kept]
        past = self.params.beta / (counts + 1) ** self.params.sigma
        return torch.where(counts > 0, past * before + (1 - past) * now, now)
