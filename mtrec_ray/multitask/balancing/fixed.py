"""Weights that do not look at the tasks: the plain sum, and random ones."""

import torch
from torch import Tensor

from mtrec_ray.multitask.balancing.method import METHODS, Method, Seen, step_generator


@METHODS.register("sum")
class PlainSum(Method):
    """The sum weighted by the config's task weights alone. It has no parameters and no memory."""

    def weights(self, step: int, seen: Seen | None) -> Tensor:
        return self.ones()


@METHODS.register("rlw")
class RandomWeights(Method):
    """Random loss weighting: softmax of standard normal numbers, new in each step.

    Lin et al. 2021, "Reasonable Effectiveness of Random Weighting" (arXiv 2111.10603), with normal weights. The paper's
    weights sum to 1, ours to T, so that on average they are the plain sum's. All units of a step share its weights.
    """

    def weights(self, step: int, seen: Seen | None) -> Tensor:
        numbers = torch.randn(len(self.tasks), generator=step_generator(self.seed, step), dtype=torch.float64)
        return len(self.tasks) * torch.softmax(numbers, dim=0)
