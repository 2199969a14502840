"""The balance point: z goes in, one copy per task comes out, and on the way back the copies' gradients are combined.

Each task's loss is computed from its own copy, so its gradient with respect to z arrives apart from the others', out of
one backward pass, which goes on below the point once for all tasks. (One `autograd.grad` per task would cost a pass
through the towers each, and crashes at ZeRO-3, where towers are released after their first backward pass.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Weigh = Callable[[Tensor], Tensor]
"""The Gramian [T, T] of this rank's candidates, float64 on the host -> weights [T], float64. Called once in each
backward pass, on every rank, also where a rank has no candidate: it may exchange with the other ranks."""


def split(z: Tensor, tasks: int, weigh: Weigh) -> tuple[Tensor, ...]:
    """z [C, D] -> `tasks` copies [C, D]; z's gradient is the sum of theirs, each times its weight."""
    copies: Tensor = _Split.apply(z, tasks, weigh)
    return copies.unbind(0)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, tasks: int, weigh: Weigh) -> Tensor:
        ctx.weigh = weigh
        return z.detach().expand(tasks, *z.shape).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (of_copies,) = gradients
        flat = of_copies.flatten(1).double()
        weights = ctx.weigh((flat @ flat.T).cpu())
        combined = torch.einsum("t,tcd->cd", weights.to(of_copies.device), of_copies.double())
        return combined.to(of_copies.dtype), None, None
