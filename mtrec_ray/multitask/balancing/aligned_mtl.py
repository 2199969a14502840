"""Gradients made orthogonal and equally long before they are summed."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.gramian import LibraryMethod
from mtrec_ray.multitask.balancing.method import METHODS


@METHODS.register("aligned_mtl")
class AlignedComponents(LibraryMethod):
    """Independent component alignment: the gradients' principal components are given one length, then summed.

    Senushkin et al. 2023, "Independent Component Alignment for Multi-Task Learning" (CVPR 2023), Algorithm 1, with
    equal preferences. Multiplying a loss by a constant changes the result.
    """

    class Params(Part):
        scale: Literal["min", "median", "rmse"] = "min"
        """The one length: the shortest component's as in the paper, so that near-parallel gradients give a short
        update; the median's; or the root mean square, as in the authors' first code."""

    params: Params

    def open_library(self) -> Callable[[Tensor], Tensor]:
        from torchjd.aggregation import AlignedMTLWeighting

        return AlignedMTLWeighting(scale_mode=self.params.scale)
