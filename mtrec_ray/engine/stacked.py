"""The engine of one trial among several on one backbone: the plain one, but for the backbone's backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.engine.plain import PlainEngine
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.stacked import SlotBackbone


class StackedEngine(PlainEngine):
    """`Engine` of one trial. Clipping, optimizer and learning rates are the trial's own."""

    def __init__(
        self, run: Run, model: Recommender, device: torch.device, together: Callable[[Tensor, Tensor], None]
    ) -> None:
        """`together(hidden, gradient)`: takes part in the backward pass of the row that `hidden` is a part of."""
        super().__init__(run, model, device)
        self._together = together

    def backward(self, loss: Tensor, last: bool) -> None:
        """Down to the trial's hidden states alone, through the backbone with the other trials of the row."""
        super().backward(loss, last)
        slot = self.model.backbone
        if isinstance(slot, SlotBackbone) and slot.pending is not None:
            hidden, leaf = slot.pending
            slot.pending = None
            self._together(hidden, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
