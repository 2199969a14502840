"""The shortest vector among the weighted means of the tasks' gradients."""

from torch import Tensor

from mtrec_ray.multitask.balancing.gramian import GramianMethod
from mtrec_ray.multitask.balancing.method import METHODS
from mtrec_ray.multitask.balancing.quadratic import shortest_mean


@METHODS.register("mgda")
class MultipleGradientDescent(GramianMethod):
    """Multiple-gradient descent: the shortest vector in the convex hull of the gradients; it worsens no task.

    Désidéri 2012 (Comptes Rendus Mathematique 350); for multi-task learning Sener & Koltun 2018 (arXiv 1810.04650).
    The paper's weights sum to 1, ours to the number of tasks with a gradient. Multiplying a loss by a constant changes
    the result: short gradients get the large weights.
    """

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        return len(gramian) * shortest_mean(gramian)
