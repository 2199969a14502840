"""Each task's gradient of the last layer that all tasks share, out of one backward pass.

The layer is z = relu(x W' + b) (`Recommender.fuse`). With d_t [C, D] the gradient of task t that arrives at its copy of
z (see `balancing.point`), its gradient of W is (d_t * [z > 0])' x and of b the sum of d_t * [z > 0] over candidates. So
all it takes is the layer's input, and no parameter's own gradient: at ZeRO-3 the layer may be anywhere.
"""

from typing import Any

import torch
from torch import Tensor, nn


class SharedLayer:
    """Remembers what passed through the layer last, while it listens."""

    def __init__(self, fuse: nn.Sequential) -> None:
        """`fuse`: a linear module [in -> D] and a ReLU."""
        self.listens = False
        self._passed: tuple[Tensor, Tensor] | None = None
        fuse[0].register_forward_hook(self._remember)

    def gradients(self, arriving: Tensor) -> Tensor:
        """[T, C, D] at the copies of z of the last forward pass -> float64 [T, D * (in + 1)] of W and b."""
        assert self._passed is not None, "nothing has passed through the shared layer"
        x, before = self._passed
        through = arriving.double() * (before > 0)
        with_bias = torch.cat([x.double(), x.new_ones(len(x), 1, dtype=torch.float64)], dim=1)
        return (through.transpose(1, 2) @ with_bias).flatten(1)

    def _remember(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._passed = (inputs[0].detach(), output.detach()) if self.listens else None
