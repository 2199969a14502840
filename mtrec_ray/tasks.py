"""Kinds of tasks: how many numbers a tower gives, what loss they take, what score they mean, which metrics fit.

A kind that is not built in is a class with the same members, registered in a module that `plugins` names:

    from mtrec_ray.tasks import KINDS

    @KINDS.register("poisson")
    class Poisson: ...
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mtrec_ray.registry import Registry


class FittedTask(Protocol):
    """What a kind may know of its task: fitted on the observed labels of the train rows."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int: ...

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...

    @property
    def frequencies(self) -> list[float]: ...


class TaskKind(Protocol):
    """One kind of label. All functions are pure; N rows, K outputs."""

    metrics: dict[str, int]
    """Names of metrics in `evaluate.metrics`, the main one first: +1 if higher is better, -1 if lower."""

    @staticmethod
    def outputs(task: FittedTask) -> int:
        """K, the numbers that the tower gives per candidate."""
        ...

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, task: FittedTask) -> Tensor:
        """logits [N, K], labels [N] without NaN -> loss per row [N]."""
        ...

    @staticmethod
    def score(logits: Tensor, task: FittedTask) -> Tensor:
        """logits [N, K] -> what is predicted, in the label's unit: [N], or [N, classes]."""
        ...

    @staticmethod
    def initial_bias(task: FittedTask) -> list[float]:
        """K output biases with which an untrained tower predicts the base rate."""
        ...


KINDS: Registry[type[TaskKind]] = Registry("task kind")

_RARE = 1e-4
"""Base rates are kept this far from 0 and 1, so that a task without positives starts at a finite logit."""


@KINDS.register("binary")
class Binary:
    """Label 0 or 1 (or a share between them); cross-entropy; the score is a probability."""

    metrics = {"auc": 1, "gauc": 1, "logloss": -1}  # noqa: RUF012

    @staticmethod
    def outputs(task: FittedTask) -> int:
        return 1

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, task: FittedTask) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")

    @staticmethod
    def score(logits: Tensor, task: FittedTask) -> Tensor:
        return torch.sigmoid(logits[:, 0])

    @staticmethod
    def initial_bias(task: FittedTask) -> list[float]:
        rate = min(max(task.mean, _RARE), 1 - _RARE)
        return [math.log(rate / (1 - rate))]


@KINDS.register("multiclass")
class Multiclass:
    """Label 0 .. classes-1; cross-entropy; the score is a probability per class."""

    metrics = {"accuracy": 1, "logloss": -1}  # noqa: RUF012

    @staticmethod
    def outputs(task: FittedTask) -> int:
        return task.classes

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, task: FittedTask) -> Tensor:
        return functional.cross_entropy(logits, labels.long(), reduction="none")

    @staticmethod
    def score(logits: Tensor, task: FittedTask) -> Tensor:
        return torch.softmax(logits, dim=-1)

    @staticmethod
    def initial_bias(task: FittedTask) -> list[float]:
        return [math.log(max(share, _RARE)) for share in task.frequencies]


@KINDS.register("regression")
class Regression:
    """Any number; half the squared error of the label standardised with the train mean and deviation.

    Half, so that at the start its gradient is of the size of a binary task's.
    """

    metrics = {"rmse": -1, "mae": -1}  # noqa: RUF012

    @staticmethod
    def outputs(task: FittedTask) -> int:
        return 1

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, task: FittedTask) -> Tensor:
        return 0.5 * (logits[:, 0] - (labels - task.mean) / _scale(task)) ** 2

    @staticmethod
    def score(logits: Tensor, task: FittedTask) -> Tensor:
        return logits[:, 0] * _scale(task) + task.mean

    @staticmethod
    def initial_bias(task: FittedTask) -> list[float]:
        return [0.0]


def _scale(task: FittedTask) -> float:
    """The deviation, or 1 for labels that were all the same."""
    return task.std if task.std > 0 else 1.0
