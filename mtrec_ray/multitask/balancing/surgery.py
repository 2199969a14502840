"""Each gradient turned away from what is against each other one, pair by pair, in random order; then summed."""

import torch
from torch import Tensor

from mtrec_ray.config import Part, Share
from mtrec_ray.multitask.balancing.gramian import GramianMethod
from mtrec_ray.multitask.balancing.method import EPSILON, METHODS, Seen, step_generator


def turn(gramian: Tensor, goals: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turns each gradient to each other one until their cosine is at least the pair's goal.

    Gramian [n, n] without zeros on its diagonal, goals [n, n] -> coefficients [n, n] of each turned gradient in the
    given ones, and the cosines met on the way [n, n]. The order comes from `generator`. (TorchJD's classes draw it from
    the global generator, which trials that are stacked in threads of one process would share.)
    """
    count = len(gramian)
    lengths = gramian.diagonal().sqrt()
    turned, met = torch.eye(count, dtype=gramian.dtype), torch.zeros_like(gramian)
    for i in range(count):
        others = [j for j in range(count) if j != i]
        for j in (others[k] for k in torch.randperm(count - 1, generator=generator)):
            length = (turned[i] @ gramian @ turned[i]).clamp(min=0).sqrt()
            met[i, j] = _cosine(gramian[j] @ turned[i], length * lengths[j])
            if met[i, j] < goals[i, j]:
                turned[i, j] += length / lengths[j] * _share(met[i, j], goals[i, j])
    return turned, met


def _cosine(product: Tensor, lengths: Tensor) -> Tensor:
    """Inner product over the product of the lengths; 0 for a gradient of which nothing is left."""
    return torch.where(lengths > 0, product / lengths, 0.0).clamp(-1, 1)


def _share(cosine: Tensor, goal: Tensor) -> Tensor:
    """How much of b, in units of |a| / |b|, turns a from `cosine` with b to `goal` with b (Wang et al., Eq. 2)."""
    goal = goal.clamp(max=1 - EPSILON)  # nothing turns a all the way to b
    sine, goal_sine = (1 - cosine**2).sqrt(), (1 - goal**2).sqrt()
    return (goal * sine - cosine * goal_sine) / goal_sine


@METHODS.register("pcgrad")
class ProjectedConflicts(GramianMethod):
    """Gradient surgery: from each gradient its part against each other one is taken, in random order; then the sum.

    Yu et al. 2020, "Gradient Surgery for Multi-Task Learning" (arXiv 2001.06782), Algorithm 1. Without a conflict it
    is the plain sum; with two tasks it worsens none. Multiplying a loss by a constant changes the result as it changes
    the plain sum. The order is the same in all units of a step.
    """

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        turned, _ = turn(gramian, torch.zeros_like(gramian), step_generator(self.seed, step))
        return turned.sum(dim=0)


@METHODS.register("gradvac")
class GradientVaccine(GramianMethod):
    """Gradient vaccine: each gradient is turned towards each other one until their cosine is the pair's usual one.

    Wang et al. 2021, "Gradient Vaccine" (arXiv 2010.05874), Eq. 2 and 3, Algorithm 1. What is usual is a running mean
    over steps, 0 at the start, where it is `pcgrad`. `weights` does not move it, `learn` does, by the whole step.
    Multiplying a loss by a constant changes the result as it changes the plain sum.
    """

    class Params(Part):
        beta: Share = 0.01
        """Weight of a step in the running mean."""

    params: Params
    learns = "gramian"

    def start(self) -> dict[str, Tensor]:
        return {"cosines": torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)}

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        turned, _ = turn(gramian, self._usual(kept), step_generator(self.seed, step))
        return turned.sum(dim=0)

    def learn(self, step: int, seen: Seen, again: Tensor | None) -> None:
        kept = self.kept(seen)
        gramian = seen.part(kept).gramian
        assert gramian is not None
        _, met = turn(gramian, self._usual(kept), step_generator(self.seed, step))
        mean = (1 - self.params.beta) * self._usual(kept) + self.params.beta * met
        self.memory["cosines"][torch.outer(kept, kept)] = mean.flatten()

    def _usual(self, kept: Tensor) -> Tensor:
        return self.memory["cosines"][kept][:, kept]
