"""Methods whose weights are the derivatives of a function of the losses of the unit at hand."""

import torch
from pydantic import Field
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.method import EPSILON, METHODS, Seen, UnitMethod


@METHODS.register("gls")
class GeometricLoss(UnitMethod):
    """Geometric loss strategy: minimises the geometric mean of the n observed losses, n times over.

    Chennupati et al. 2019, "MultiNet++" (arXiv 1904.08492). The weight of a task is the geometric mean over its loss;
    the factor n makes equal losses the plain sum. Losses below 1e-8 count as 1e-8. Multiplying a loss by a constant
    changes the length of the sum of all gradients, not its direction.
    """

    reads = "losses"

    def balance(self, step: int, seen: Seen, kept: Tensor) -> Tensor:
        logs = seen.losses.clamp(min=EPSILON).log()
        return torch.exp(logs.mean() - logs)


@METHODS.register("stch")
class SmoothTchebycheff(UnitMethod):
    """Smooth Tchebycheff scalarisation: minimises μ log Σ exp(ℓ / μ), a smooth maximum of the weighted losses.

    Lin et al. 2024, "Smooth Tchebycheff Scalarization for Multi-Objective Optimization" (arXiv 2402.19078), with the
    config's task weights as the preference and 0 as the ideal point. Its gradient weighs the tasks by softmax(ℓ / μ),
    which sums to 1; ours sums to the number n of observed tasks. The scale of the losses, and of μ, matters.
    """

    class Params(Part):
        mu: float = Field(default=1.0, gt=0)
        """In units of the losses. Smaller = closer to the largest loss alone; larger = closer to the plain sum."""

    params: Params
    reads = "losses"

    def balance(self, step: int, seen: Seen, kept: Tensor) -> Tensor:
        return len(seen.losses) * torch.softmax(seen.losses / self.params.mu, dim=0)
