"""What the methods share whose weights follow from the Gramian of the tasks' gradients."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mtrec_ray.multitask.balancing.method import Seen, UnitMethod


class GramianMethod(UnitMethod):
    """Weights of the gradients at the balance point alone; the towers learn from the plain sum.

    The Gramian is divided by its mean diagonal entry first. All methods here give the same weights for G and for c G,
    but the libraries that solve them compare its entries with constants (TorchJD takes a trace below 1e-4 for zero),
    and gradients of means over large batches are smaller than those.
    """

    reads = "gramian"
    place = "z"

    def balance(self, step: int, seen: Seen, kept: Tensor) -> Tensor:
        assert seen.gramian is not None
        return self.solve(step, seen.gramian / seen.gramian.diagonal().mean(), kept)

    @abstractmethod
    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        """Gramian [n, n] of the n >= 2 kept tasks, of mean diagonal 1 and none 0 -> weights [n]."""


class LibraryMethod(GramianMethod):
    """A method that TorchJD solves. Its weights combine a mean over tasks, ours a sum: n times the library's."""

    def __init__(self, tasks: Sequence[str], params: Mapping[str, Any], seed: int) -> None:
        super().__init__(tasks, params, seed)
        self.library = self.open_library()

    @abstractmethod
    def open_library(self) -> Callable[[Tensor], Tensor]:
        """TorchJD's weighting: Gramian [n, n] -> weights [n].

        TorchJD imports cvxpy, which takes seconds; implementations import it here, so that no other method pays.
        """

    def solve(self, step: int, gramian: Tensor, kept: Tensor) -> Tensor:
        return len(gramian) * self.library(gramian)
