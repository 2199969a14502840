"""Labels 0 and 1."""

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part
from mtrec_ray.tasks.kind import KINDS, Logits, PointwiseKind, ProbabilityKind

RARE = 1e-4
"""Base rates are kept this far from 0 and 1, so that a task without positives starts at a finite logit."""


def base_logit(rate: float) -> float:
    """The logit of a base rate."""
    rate = min(max(rate, RARE), 1 - RARE)
    return math.log(rate / (1 - rate))


@KINDS.register("binary")
class Binary(PointwiseKind, ProbabilityKind):
    """Label 0 or 1 (or a share between them); the score is a probability.

    `bce`: cross-entropy. `focal`: Lin et al. 2017, "Focal Loss" (arXiv 1708.02002), Eq. 4: cross-entropy times
    (1 - p_t)^gamma, p_t the probability given to the label; its scores are drawn towards 1/2, so they rank but are no
    calibrated rates. `label_smoothing` s trains on (1 - s) * label + s / 2 (Szegedy et al. 2016, arXiv 1512.00567).
    """

    class Params(Part):
        loss: Literal["bce", "focal"] = "bce"
        gamma: float = Field(default=2.0, ge=0)
        """`focal`: 0 is the cross-entropy."""
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)

        @model_validator(mode="after")
        def _no_idle_gamma(self) -> Self:
            if "gamma" in self.model_fields_set and self.loss != "focal":
                raise ValueError("gamma belongs to `loss: focal`")
            return self

    params: Params
    metrics = {"auc": 1, "gauc": 1, "logloss": -1}  # noqa: RUF012
    reported = ("auc", "gauc", "logloss", "ne", "calibration")

    def initial_bias(self) -> list[float]:
        return [base_logit(self.task.mean)]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.params.label_smoothing
        if smoothing:
            labels = labels * (1 - smoothing) + smoothing / 2
        entropy = functional.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")
        if self.params.loss == "bce":
            return entropy
        return torch.exp(self.params.gamma * _log_missing(logits[:, 0], labels)) * entropy

    def predict(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits[:, 0])

    def log_probabilities(self, logits: Logits) -> tuple[Tensor, Tensor]:
        own = logits[self.task.name][:, 0]
        return functional.logsigmoid(own), functional.logsigmoid(-own)


def _log_missing(logits: Tensor, labels: Tensor) -> Tensor:
    """log(1 - p_t) [N]; for labels y between 0 and 1, 1 - p_t is its mean under the label, p (1 - y) + (1 - p) y.

    As a logarithm, because the gradient of (1 - p_t)^gamma with gamma < 1 is infinite where p_t rounds to 1.
    """
    wrong_one = functional.logsigmoid(logits) + torch.log1p(-labels)
    wrong_zero = functional.logsigmoid(-logits) + torch.log(labels)
    return torch.logaddexp(wrong_one, wrong_zero)
