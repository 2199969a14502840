"""Labels that are numbers: ratings, dwell times, amounts."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part
from mtrec_ray.errors import ConfigError
from mtrec_ray.tasks.kind import KINDS, PointwiseKind


@KINDS.register("regression")
class Regression(PointwiseKind):
    """Any number; the score is in the label's unit.

    What is learned is the label (`scale: linear`) or log(1 + label) (`scale: log`, for amounts and times whose large
    values would dominate; labels must be above -1), less its train mean and over its train deviation. With r the error
    of that:

    - `mse`: r²/2, half so that at the start its gradient is of the size of a binary task's; it aims at the mean.
    - `mae`: |r|; it aims at the median.
    - `huber`: r²/2 up to |r| = delta, and delta (|r| - delta/2) beyond (Huber 1964, "Robust Estimation of a Location
      Parameter"): rows further off than `delta` deviations count as with `mae`.

    With `scale: log` the score is exp(predicted mean of log(1 + label)) - 1. That is no mean: it is the median where
    the logarithms are spread evenly to both sides, and less than the mean by Jensen's inequality. So it compares well
    by `mae`, and the scores add up to less than the labels (`calibration` below 1); nothing is added to hide that.
    """

    class Params(Part):
        loss: Literal["mse", "mae", "huber"] = "mse"
        delta: float = Field(default=1.0, gt=0)
        """`huber`: in deviations of what is learned."""
        scale: Literal["linear", "log"] = "linear"

        @model_validator(mode="after")
        def _no_idle_delta(self) -> Self:
            if "delta" in self.model_fields_set and self.loss != "huber":
                raise ValueError("delta belongs to `loss: huber`")
            return self

    params: Params
    labels = "number"
    metrics = {"rmse": -1, "mae": -1}  # noqa: RUF012
    reported = ("rmse", "mae", "calibration")

    def set_up(self) -> None:
        task = self.task
        self.mean, self.deviation = task.mean, _nonzero(task.std)
        if self.params.scale == "log":
            if task.log_mean is None or task.log_std is None:
                raise ConfigError(
                    f"tasks.{task.name}.params.scale: 'log' learns log(1 + label), but some train labels are -1 or "
                    f"less; use scale: linear, or write a label above -1 in tasks.{task.name}."
                )
            self.mean, self.deviation = task.log_mean, _nonzero(task.log_std)

    def initial_bias(self) -> list[float]:
        return [0.0]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.params.scale == "log":
            labels = torch.log1p(labels)
        wanted = (labels - self.mean) / self.deviation
        if self.params.loss == "mse":
            return 0.5 * (logits[:, 0] - wanted) ** 2
        if self.params.loss == "mae":
            return torch.abs(logits[:, 0] - wanted)
        return functional.huber_loss(logits[:, 0], wanted, reduction="none", delta=self.params.delta)

    def predict(self, logits: Tensor) -> Tensor:
        learned = logits[:, 0] * self.deviation + self.mean
        return torch.expm1(learned) if self.params.scale == "log" else learned


def _nonzero(deviation: float) -> float:
    """1 for labels that were all the same."""
    return deviation if deviation > 0 else 1.0
