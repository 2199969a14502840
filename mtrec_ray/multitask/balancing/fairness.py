"""The bargaining solution and its generalisation: weights α with Gα = α^(-1/fairness)."""

from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.gramian import GramianMethod
from mtrec_ray.multitask.balancing.method import METHODS
from mtrec_ray.multitask.balancing.quadratic import shortest_mean

_STATIONARY = 1e-10
"""Squared length of the shortest mean of the gradients' directions that counts as 0."""


def fair_weights(gramian: Tensor, fairness: float) -> Tensor:
    """Weights α [n] > 0 with sum n along which G α = α^(-1/fairness) holds, G [n, n] of mean diagonal 1.

    They minimise the convex ½ αᵀGα - Σ α^p / p with p = 1 - 1/fairness (log α where p = 0), so there is one solution.
    It is found by scipy's trust-region Newton method in y = log α (where, too, nothing but the solution is stationary)
    to a gradient of 1e-10. Where the gradients can be combined to 0 there is no solution; then that combination is
    returned, the limit of what the equation says.
    """
    from scipy.optimize import minimize  # here, so that only methods that need it pay for the import

    lengths = gramian.diagonal().sqrt()
    cosines = gramian / torch.outer(lengths, lengths)
    shortest = shortest_mean(cosines)
    if shortest @ cosines @ shortest < _STATIONARY:
        return len(gramian) * (shortest / lengths) / (shortest / lengths).sum()
    value, slope, curvature = _potential(gramian.numpy(), 1 - 1 / fairness)
    start = -2 * np.log(lengths.numpy()) / (1 + 1 / fairness)  # the solution for gradients at right angles
    limits = {"gtol": 1e-10, "maxiter": 200, "initial_trust_radius": 1.0, "max_trust_radius": 2.0}
    found = minimize(value, start, jac=slope, hess=curvature, method="trust-exact", options=limits)
    return len(gramian) * torch.softmax(torch.from_numpy(found.x), dim=0)


def _potential(
    gramian: np.ndarray, power: float
) -> tuple[Callable[[np.ndarray], float], Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """½ αᵀGα - Σ α^p / p as a function of y = log α [n], its gradient [n] and its Hessian [n, n]."""

    def value(logs: np.ndarray) -> float:
        weights = np.exp(logs)
        gain = np.sum(logs) if power == 0 else np.sum(np.exp(power * logs)) / power
        return float(0.5 * weights @ gramian @ weights - gain)

    def slope(logs: np.ndarray) -> np.ndarray:
        weights = np.exp(logs)
        return np.asarray(weights * (gramian @ weights) - np.exp(power * logs))

    def curvature(logs: np.ndarray) -> np.ndarray:
        weights = np.exp(logs)
        own = weights * (gramian @ weights) - power * np.exp(power * logs)
        return np.asarray(gramian * np.outer(weights, weights) + np.diag(own))

    return value, slope, curvature


@METHODS.register("nash_mtl")
class NashBargaining(GramianMethod):
    """The Nash bargaining solution between the tasks: G α = 1 / α; it worsens no task.

    Navon et al. 2022, "Multi-Task Learning as a Bargaining Game" (arXiv 2202.01017), Claim 3.1. The paper leaves the
    length of the update open (its code clips it); our weights sum to the number of tasks with a gradient. Multiplying
    a loss by a constant does not change the direction. Each unit is solved anew, to a gradient of 1e-10, so there is
    no memory; the paper's code starts from the last solution and stops at a residual of 1e-3.
    """

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        return fair_weights(gramian, 1.0)


@METHODS.register("fairgrad")
class FairGradients(GramianMethod):
    """α-fair allocation of the update: G w = w^(-1/alpha); it worsens no task.

    Ban & Ji 2024, "Fair Resource Allocation in Multi-Task Learning" (arXiv 2402.15638), Eq. 4. alpha 1 is `nash_mtl`,
    and large alpha tends to `mgda`. The weights sum to the number of tasks with a gradient; the paper's do not.
    Multiplying a loss by a constant changes the direction, unless alpha is 1.
    """

    class Params(Part):
        alpha: float = Field(default=2.0, gt=0)
        """Larger = more for the task that gains least."""

    params: Params

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        return fair_weights(gramian, self.params.alpha)
