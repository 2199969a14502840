"""The balance point: z goes in, one copy per task comes out, and on the way back the copies' gradients are combined.

Each task's loss is computed from its own copy, so its gradient with respect to z arrives apart from the others', out of
one backward pass, which goes on below the point once for all tasks. (One `autograd.grad` per task would cost a pass
through the towers each, and crashes at ZeRO-3, where towers are released after their first backward pass.)
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Weigh = Callable[[Tensor], Tensor]
"""The Gramian [T, T] of this rank's candidates, float64 on the host -> weights [T], float64. Called once in each
backward pass, on every rank, also where a rank has no candidate: it may exchange with the other ranks."""
See = Callable[[Tensor], None]
"""Told the gradients [T, C, D] that arrive at the copies, before they are combined."""


class Point(Protocol):
    """Where a model splits z."""

    trains_below: bool
    """Whether gradients go on below the point: if not, z is computed without any."""

    def split(self, z: Tensor, tasks: int) -> tuple[Tensor, ...]:
        """z [C, D] -> a copy [C, D] for each task."""
        ...


class BalancePoint:
    """Combines the tasks' gradients with the weights that `weigh` gives, and hands them on."""

    trains_below = True

    def __init__(self, weigh: Weigh, see: See | None = None) -> None:
        self._weigh, self._see = weigh, see

    def split(self, z: Tensor, tasks: int) -> tuple[Tensor, ...]:
        return split(z, tasks, self._weigh, self._see)


class Probe:
    """Looks at the tasks' gradients at z and trains nothing: neither what is below the point nor the towers."""

    trains_below = False

    def __init__(self, see: See | None = None) -> None:
        self._see = see
        self._z: Tensor | None = None
        self._gramian: Tensor | None = None

    def split(self, z: Tensor, tasks: int) -> tuple[Tensor, ...]:
        self._z = z.detach().requires_grad_()
        return split(self._z, tasks, self._keep, self._see)

    def gramian(self, loss: Tensor) -> Tensor:
        """float64 [T, T] on the host, of this rank's candidates: of a loss computed from the copies of one `split`."""
        assert self._z is not None, "the model has not split z"
        torch.autograd.grad(loss, self._z)  # of z alone: no parameter's gradient is touched
        assert self._gramian is not None
        return self._gramian

    def _keep(self, gramian: Tensor) -> Tensor:
        self._gramian = gramian
        return torch.zeros(len(gramian), dtype=torch.float64)


def split(z: Tensor, tasks: int, weigh: Weigh, see: See | None = None) -> tuple[Tensor, ...]:
    """z [C, D] -> `tasks` copies [C, D]; z's gradient is the sum of theirs, each times its weight."""
    copies: Tensor = _Split.apply(z, tasks, weigh, see)
    return copies.unbind(0)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, tasks: int, weigh: Weigh, see: See | None) -> Tensor:
        ctx.weigh, ctx.see = weigh, see
        return z.detach().expand(tasks, *z.shape).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (of_copies,) = gradients
        if ctx.see is not None:
            ctx.see(of_copies)
        flat = of_copies.flatten(1).double()
        weights = ctx.weigh((flat @ flat.T).cpu())
        combined = torch.einsum("t,tcd->cd", weights.to(of_copies.device), of_copies.double())
        return combined.to(of_copies.dtype), None, None, None
