"""From logits and labels to one loss: sums over observed labels, divided once by counts of the whole step.

    loss = sum_t weight_t * (sum of loss_t over observed labels) / N_t

N_t counts the observed labels of task t in the whole optimizer step: all ranks, all micro-steps. So the gradient does
not depend on how a step is cut into micro-steps and ranks. (The mean of micro-batch means, which does, was
shipped and later fixed by torchtitan #2206, verl #3332, mlx-lm #1413 and others.)
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mtrec_ray.tasks import KINDS, FittedTask


class KindedTask(FittedTask, Protocol):
    """A fitted task that knows its kind: the manifest's `TaskEntry`."""

    @property
    def kind(self) -> str: ...


def label_counts(labels: Tensor) -> Tensor:
    """labels [C, T], NaN = not observed -> observed labels per task, float64 [T]."""
    return (~torch.isnan(labels)).sum(0).double()


def loss_sum(task: KindedTask, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses of the observed rows: logits [C, K], labels [C] -> scalar, 0 if nothing is observed.

    Computed in the more precise of the two types, which torch's binary cross-entropy does not do by itself. No row is
    selected, so nothing waits for the device and the tower gets a gradient (of zeros) in any case.
    """
    observed = ~torch.isnan(labels)
    dtype = torch.promote_types(logits.dtype, labels.dtype)
    losses = KINDS[task.kind].loss(logits.to(dtype), torch.where(observed, labels, 0.0).to(dtype), task)
    return torch.where(observed, losses, 0.0).sum()


class Objective:
    """The weighted sum over tasks, in the order of `tasks` (the manifest's), which is that of the labels' columns."""

    def __init__(self, tasks: Sequence[KindedTask], weights: Mapping[str, float]) -> None:
        self.tasks = list(tasks)
        self.weights = torch.tensor([weights[task.name] for task in self.tasks], dtype=torch.float64)

    def loss_sums(self, logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Per task, unweighted: logits {task: [C, K]}, labels [C, T] -> [T]."""
        return torch.stack([loss_sum(task, logits[task.name], labels[:, t]) for t, task in enumerate(self.tasks)])

    def scales(self, counts: Tensor) -> Tensor:
        """Global label counts [T] of the step -> what each task's sum is multiplied with [T]."""
        return self.weights.to(counts.device) / counts.clamp(min=1)

    @staticmethod
    def loss(sums: Tensor, scales: Tensor) -> Tensor:
        """Sums [T] of a part of the step -> that part of the step's loss; the parts add up to the loss.

        A task of weight 0 adds an exact zero even where its own loss is infinite.
        """
        return torch.where(scales > 0, sums * scales.to(sums.dtype), 0.0).sum()
