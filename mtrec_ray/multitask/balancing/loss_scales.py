"""Methods that learn the scale of each task's loss together with the model."""

from abc import abstractmethod

import torch
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.multitask.balancing.learned import Rate, learned, move
from mtrec_ray.multitask.balancing.method import METHODS, Method, Seen


class LossScales(Method):
    """One learned number s per task, 0 at the start, from which its weight follows.

    The weights start as the plain sum's and follow the losses: they have no fixed sum, and a loss multiplied by a
    constant ends with a weight divided by it. A task that is alone in the config has weight 1, since its weight would
    only be a second learning rate.
    """

    class Params(Part):
        learning_rate: Rate = 0.01
        """Of Adam, which moves s: by about this much in a step."""

    params: Params
    learns = "losses"

    def start(self) -> dict[str, Tensor]:
        return learned(len(self.tasks))

    def weights(self, step: int, seen: Seen | None) -> Tensor:
        return self.ones() if len(self.tasks) == 1 else self.scales(self.memory["values"])

    def learn(self, step: int, seen: Seen, again: Tensor | None) -> None:
        slopes = self.slopes(self.memory["values"], seen.losses)
        move(self.memory, slopes, seen.observed, self.params.learning_rate)

    @staticmethod
    @abstractmethod
    def scales(values: Tensor) -> Tensor:
        """s [T] -> weights [T]."""

    @staticmethod
    @abstractmethod
    def slopes(values: Tensor, losses: Tensor) -> Tensor:
        """s [T], losses [T] -> derivatives of the method's objective with respect to s [T]."""


@METHODS.register("uncertainty")
class Uncertainty(LossScales):
    """Homoscedastic uncertainty: minimises Σ exp(-s) ℓ + s / 2, where s = log σ².

    Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses" (arXiv 1705.07115), Eq. 10. Its factor
    1/2 of a regression is in our loss, which is half the squared error. (Codes that write ½ exp(-s) ℓ + s / 2 for every
    task are the same method with s shifted by log 2.) At rest the weight is 1 / (2 ℓ).
    """

    @staticmethod
    def scales(values: Tensor) -> Tensor:
        return torch.exp(-values)

    @staticmethod
    def slopes(values: Tensor, losses: Tensor) -> Tensor:
        return 0.5 - torch.exp(-values) * losses


@METHODS.register("imtl_l")
class ImpartialLosses(LossScales):
    """The loss balance of impartial multi-task learning: minimises Σ exp(s) ℓ - s.

    Liu et al. 2021, "Towards Impartial Multi-task Learning" (ICLR 2021), the part called IMTL-L. At rest the weight is
    1 / ℓ, so all weighted losses are 1.
    """

    @staticmethod
    def scales(values: Tensor) -> Tensor:
        return torch.exp(values)

    @staticmethod
    def slopes(values: Tensor, losses: Tensor) -> Tensor:
        return torch.exp(values) * losses - 1
