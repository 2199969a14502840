"""The update near the plain sum that is best for the task that gains least."""

from collections.abc import Callable

from pydantic import Field
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.gramian import LibraryMethod
from mtrec_ray.multitask.balancing.method import METHODS


@METHODS.register("cagrad")
class ConflictAverse(LibraryMethod):
    """Conflict-averse descent: in the ball of radius c · |sum| around the sum, the best for the task that gains least.

    Liu et al. 2021, "Conflict-Averse Gradient Descent" (arXiv 2110.14048), Algorithm 1. It lessens conflicts, and
    worsens no task from c = 1 on. Multiplying a loss by a constant changes the result. TorchJD solves it with cvxpy
    and Clarabel (tolerance 1e-8), which takes about ten milliseconds a unit, most of it cvxpy's; where the gradients
    can be combined to 0 all weights are 0.
    """

    class Params(Part):
        c: float = Field(default=0.5, ge=0)
        """0 = the plain sum."""

    params: Params

    def open_library(self) -> Callable[[Tensor], Tensor]:
        from torchjd.aggregation import CAGradWeighting

        return CAGradWeighting(c=self.params.c)
