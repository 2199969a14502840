"""Projections on the dual cone of the gradients: the vectors along which, to first order, no task gets worse."""

import torch
from torch import Tensor

from mtrec_ray.multitask.balancing.gramian import GramianMethod
from mtrec_ray.multitask.balancing.method import METHODS
from mtrec_ray.multitask.balancing.quadratic import project


@METHODS.register("upgrad")
class UnconflictingProjections(GramianMethod):
    """UPGrad: each gradient is projected on the dual cone of all, then they are summed; it worsens no task.

    Quinton & Rey 2024, "Jacobian Descent for Multi-Objective Optimization" (arXiv 2406.16232); the paper takes the
    mean of the projections. Without a conflict it is the plain sum. Multiplying a loss by a constant changes the
    result as it changes the plain sum.
    """

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        alone = torch.eye(len(gramian), dtype=gramian.dtype)
        return torch.stack([project(weights, gramian) for weights in alone]).sum(dim=0)


@METHODS.register("dualproj")
class DualProjection(GramianMethod):
    """The sum of the gradients, projected on their dual cone; it worsens no task.

    Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory" (arXiv 1706.08840), Eq. 11, with the sum of all gradients in
    the place of the new task's. Without a conflict it is the plain sum. Multiplying a loss by a constant changes the
    result as it changes the plain sum.
    """

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        return project(torch.ones(len(gramian), dtype=gramian.dtype), gramian)
