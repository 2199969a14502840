"""The combination of gradients that is equally steep for all tasks."""

from collections.abc import Callable

from torch import Tensor

from mtrec_ray.multitask.balancing.gramian import LibraryMethod
from mtrec_ray.multitask.balancing.method import METHODS


@METHODS.register("imtl_g")
class ImpartialGradients(LibraryMethod):
    """The gradient balance of impartial multi-task learning: equal projections on all gradients' directions.

    Liu et al. 2021, "Towards Impartial Multi-task Learning" (ICLR 2021), the part called IMTL-G, by the pseudoinverse
    of the Gramian. The paper's weights sum to 1, ours to the number of tasks with a gradient; they may be negative.
    Where the gradients can be combined to 0 with equal projections all weights are 0. Multiplying a loss by a constant
    does not change the direction.
    """

    def open_library(self) -> Callable[[Tensor], Tensor]:
        from torchjd.aggregation import IMTLGWeighting

        return IMTLGWeighting()
