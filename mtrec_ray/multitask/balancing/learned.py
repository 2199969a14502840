"""Numbers, one per task, that a method learns by its own Adam: plain functions on the method's memory.

Adam is kept per task, its count of moves included, so a task that a step has no labels of is left exactly as it was.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adam import adam

Rate = Annotated[float, Field(gt=0)]
"""Step size of Adam."""


def learned(count: int) -> dict[str, Tensor]:
    """The memory of `count` learned numbers [T] that are all 0: the numbers, and Adam's state."""
    return {name: torch.zeros(count, dtype=torch.float64) for name in ("values", "moves", "mean", "mean_square")}


def move(
    memory: dict[str, Tensor], slopes: Tensor, moved: Tensor, learning_rate: float, weight_decay: float = 0.0
) -> None:
    """One step of Adam (torch's, with its usual constants) in place, for the tasks of the mask `moved` alone.

    slopes [T]: derivatives of what is minimised with respect to the values. The weight decay is added to the slope.
    """
    values, moves, mean, mean_square = (
        [memory[name][task] for task in moved.nonzero().flatten()]  # views, so that Adam changes the memory
        for name in ("values", "moves", "mean", "mean_square")
    )
    if values:
        adam(
            values,
            list(slopes[moved]),
            mean,
            mean_square,
            [],
            moves,
            foreach=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )


def through_softmax(weights: Tensor, slopes: Tensor) -> Tensor:
    """Slopes [n] with respect to weights = total · softmax(values) [n] -> slopes with respect to the values [n]."""
    return weights * (slopes - (weights * slopes).sum() / weights.sum())
