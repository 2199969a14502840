"""What `engine.optimizer` does with a row of a table: each row is a vector with a state of its own, which changes in
those steps alone in which the row has a gradient.

So a row is stepped as if the steps that touched it were all there are: its averages do not fade in between, there is no
weight decay in between, and `step` counts its own steps.
"""

from typing import Protocol

import torch
from torch import Tensor

from mtrec_ray.config import Run

State = dict[str, Tensor]
"""`step` int32 [rows], and tensors [rows, dim]; the names are those that torch's optimizers use."""


class Rule(Protocol):
    """One optimizer."""

    def first_state(self, weight: Tensor) -> State:
        """Of a table [rows, dim] that was never stepped."""
        ...

    def step(self, weight: Tensor, state: State, rows: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        """Steps rows int64 [U], each once, of `weight` and `state` in place, by their gradients [U, dim]."""
        ...


def make_rule(run: Run) -> Rule:
    """That of `engine.optimizer`."""
    if run.engine.optimizer == "sgd":
        return RowSGD(run.train.momentum)
    return RowAdafactor() if run.engine.optimizer == "adafactor" else RowAdamW()


class RowAdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2) on touched rows, with torch's constants.

    As `torch.optim.SparseAdam`, "lazy" Adam, it leaves the moments of other rows as they are. Where we differ: torch
    has no decay there and corrects the bias of the moments by the number of all steps. A row that is touched late for
    the first time has moments near zero, which that correction takes for the mean of many steps: it would move by
    (1 - beta_1) / sqrt(1 - beta_2) = 3.2 times the rate at once, and by up to 6.5 times in its next steps. Ours
    corrects by the row's own steps, so each row begins as a parameter does in the first step of Adam.
    """

    betas = (0.9, 0.999)
    eps = 1e-8

    def first_state(self, weight: Tensor) -> State:
        return {"step": _no_steps(weight), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}

    def step(self, weight: Tensor, state: State, rows: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        first, second = self.betas
        count = _counted(state, rows, weight.dtype)
        mean = state["exp_avg"][rows] * first + gradient * (1 - first)
        square = state["exp_avg_sq"][rows] * second + gradient.square() * (1 - second)
        scale = (1 - second ** count.double()).sqrt().to(weight.dtype)
        shift = rate / (1 - first ** count.double()).to(weight.dtype)
        moved = weight[rows] * (1 - rate * decay) - shift * mean / (square.sqrt() / scale + self.eps)
        _put(rows, (weight, moved), (state["exp_avg"], mean), (state["exp_avg_sq"], square))


class RowSGD:
    """torch's SGD on touched rows: the decay is part of the gradient, the momentum of other rows stays as it is."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    def first_state(self, weight: Tensor) -> State:
        return {"momentum_buffer": torch.zeros_like(weight)} if self.momentum else {}

    def step(self, weight: Tensor, state: State, rows: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        before = weight[rows]
        gradient = gradient + decay * before
        if self.momentum:
            gradient = state["momentum_buffer"][rows] * self.momentum + gradient
            _put(rows, (state["momentum_buffer"], gradient))
        _put(rows, (weight, torch.add(before, gradient, alpha=-rate)))


class RowAdafactor:
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235, Algorithm 5) of vectors, one for each touched row.

    The step is a share of the row's own size, and clipped by its own. Where we differ: the paper factors the second
    moments of a matrix into those of rows and of columns, but a column of a table is made of all its rows, and so is
    its size. A row's second moments stay whole, as the paper has them for vectors; there is no first moment, so the
    state is half of AdamW's.
    """

    eps = (1e-30, 1e-3)

    def first_state(self, weight: Tensor) -> State:
        return {"step": _no_steps(weight), "variance": torch.zeros_like(weight)}

    def step(self, weight: Tensor, state: State, rows: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        count = _counted(state, rows, weight.dtype)
        before = weight[rows]
        variance = torch.lerp(state["variance"][rows], gradient.square(), count**-0.8)
        size = before.square().mean(1, keepdim=True).sqrt().clamp(min=self.eps[1]) * count.rsqrt().clamp(max=rate)
        update = gradient * variance.clamp(min=self.eps[0]).rsqrt()
        update = update / update.square().mean(1, keepdim=True).sqrt().clamp(min=1.0)
        _put(rows, (weight, before * (1 - rate * decay) - size * update), (state["variance"], variance))


def _no_steps(weight: Tensor) -> Tensor:
    return torch.zeros(len(weight), dtype=torch.int32, device=weight.device)


def _counted(state: State, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[U, 1] steps of each row, this one included."""
    count = state["step"][rows] + 1
    state["step"][rows] = count
    return count[:, None].to(dtype)


def _put(rows: Tensor, *changes: tuple[Tensor, Tensor]) -> None:
    for whole, values in changes:
        whole.index_copy_(0, rows, values)
