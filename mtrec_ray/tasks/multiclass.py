"""Labels that name one of several classes."""

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part
from mtrec_ray.tasks.binary import RARE
from mtrec_ray.tasks.kind import KINDS, Candidates, Logits, PointwiseKind, divergence_of_classes


@KINDS.register("multiclass")
class Multiclass(PointwiseKind):
    """Label 0 .. classes-1; cross-entropy; the score is a probability per class.

    `label_smoothing` s trains on (1 - s) of the label and s spread over all classes (Szegedy et al. 2016, arXiv
    1512.00567).
    """

    class Params(Part):
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    params: Params
    labels = "class"
    metrics = {"accuracy": 1, "logloss": -1}  # noqa: RUF012
    reported = ("accuracy", "logloss")

    @property
    def outputs(self) -> int:
        return self.task.classes

    def initial_bias(self) -> list[float]:
        return [math.log(max(share, RARE)) for share in self.task.frequencies]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.params.label_smoothing
        return functional.cross_entropy(logits, labels.long(), reduction="none", label_smoothing=smoothing)

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        name = self.task.name
        return divergence_of_classes(*(functional.log_softmax(logits[name], dim=-1) for logits in (first, second)))

    def predict(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1)
