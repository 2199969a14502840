"""Labels that say how long something was watched, heard or read, judged by how long it lasts."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part
from mtrec_ray.errors import DataError
from mtrec_ray.tasks.binary import base_logit
from mtrec_ray.tasks.kind import KINDS, Candidates, Logits, TaskKind, as_precise, divergence_of_logits


@KINDS.register("watch_time")
class WatchTime(TaskKind):
    """How long an item was watched, in the unit of `duration`, as seconds; the score is in that unit too.

    Watch time grows with the length of the item, so a model of it alone learns which items are long. Here it learns how
    far the watch time goes for an item of that length, and the score puts the length in again. `duration` names a
    number declared in `data.numbers` or `data.items.numbers`. Both methods give a value between 0 and 1, learned with
    the cross-entropy, whose minimum is the mean of that value:

    - `ratio`: the share min(label / duration, cap) / cap; score = sigmoid(logit) * cap * duration, the expected watch
      time up to `cap` durations. A cap above 1 counts repeated watching.
    - `quantile`: D2Q (Zhan et al. 2022, "Deconfounding Duration Bias in Watch-time Prediction", arXiv 2206.06003): the
      rank of the label among train rows of similar duration (`groups` groups with equally many rows), and the score is
      the watch time at the predicted rank. Labels that many rows share, as those of whole views, have the middle of
      their ranks. Where we differ: the paper regresses the rank; the cross-entropy keeps it between 0 and 1. The watch
      time at the mean rank is no expected watch time, so `calibration` need not be 1.

    Labels below 0 count as 0. Rows whose duration is missing or not above 0 are not trained on, and their score is the
    train mean of the label.
    """

    class Params(Part):
        duration: str
        method: Literal["ratio", "quantile"] = "ratio"
        cap: float = Field(default=1.0, gt=0)
        """`ratio`: in durations."""
        groups: int = Field(default=20, ge=1)
        """`quantile`: fewer where train has fewer different durations."""

        @model_validator(mode="after")
        def _no_idle_settings(self) -> Self:
            for name, method in (("cap", "ratio"), ("groups", "quantile")):
                if name in self.model_fields_set and self.method != method:
                    raise ValueError(f"{name} belongs to `method: {method}`")
            return self

    params: Params
    labels = "number"
    metrics = {"mae": -1, "rmse": -1}  # noqa: RUF012
    reported = ("mae", "rmse", "calibration")

    def set_up(self) -> None:
        where = f"tasks.{self.task.name}.params.duration"
        self.column = self.columns.number(self.params.duration, where)
        if self.task.durations is None:
            raise DataError(f"{where}: no train row has both a label and '{self.params.duration}' above 0.")
        self.share = self.task.durations.share
        self.edges = torch.tensor(self.task.durations.edges, dtype=torch.float64)
        self.tables = torch.tensor(self.task.durations.quantiles, dtype=torch.float64)

    def initial_bias(self) -> list[float]:
        """`ratio`: the mean share; `quantile`: the middle rank, which is the mean one."""
        return [base_logit(self.share) if self.params.method == "ratio" else 0.0]

    def weights(self, candidates: Candidates) -> Tensor:
        return super().weights(candidates) * self._durations(candidates)[1].float()

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        own, labels = as_precise(logits[self.task.name][:, 0], self.own_labels(candidates))
        wanted = self._normalised(labels.nan_to_num(0.0), self._durations(candidates)[0].to(labels.dtype))
        return functional.binary_cross_entropy_with_logits(own, wanted, reduction="none")

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        """Of the values between 0 and 1, as the cross-entropy takes them."""
        return divergence_of_logits(first[self.task.name][:, 0], second[self.task.name][:, 0])

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        value = torch.sigmoid(logits[self.task.name][:, 0])
        durations, known = self._durations(candidates)
        durations = durations.to(value.dtype)
        if self.params.method == "ratio":
            times = value * self.params.cap * durations
        else:
            times = _at_rank(self._quantiles(durations), value)
        return torch.where(known, times, self.task.mean)

    def _durations(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """[C] durations, 1 where they are not known, and [C] whether they are."""
        durations = candidates.numbers[:, self.column]
        known = (durations > 0) & torch.isfinite(durations)
        return torch.where(known, durations, 1.0), known

    def _normalised(self, labels: Tensor, durations: Tensor) -> Tensor:
        """[C] between 0 and 1."""
        labels = labels.clamp(min=0.0)
        if self.params.method == "ratio":
            return (labels / durations).clamp(max=self.params.cap) / self.params.cap
        return _rank_of(self._quantiles(durations), labels)

    def _quantiles(self, durations: Tensor) -> Tensor:
        """[C, Q + 1] watch times at the ranks 0, 1/Q, ... 1 of each candidate's group."""
        return self.tables.to(durations)[torch.bucketize(durations, self.edges.to(durations), right=True)]


def _rank_of(quantiles: Tensor, times: Tensor) -> Tensor:
    """The rank of each time [C] in its distribution [C, Q + 1], linear between quantiles; ties have the middle rank."""
    last = quantiles.shape[1] - 1
    sides = []
    for right in (False, True):
        # Between the quantiles `below` and `below + 1`; at a tie, the first (left) or last (right) of its quantiles.
        place = torch.searchsorted(quantiles, times[:, None], right=right)
        below = (place - 1).clamp(0, last - 1)
        low, high = quantiles.gather(1, below), quantiles.gather(1, below + 1)
        inside = (times[:, None] - low) / torch.where(high > low, high - low, 1.0)
        above = times[:, None] >= high if right else times[:, None] > high
        sides.append((below + torch.where(above, 1.0, inside.clamp(0.0, 1.0))) / last)
    return (0.5 * (sides[0] + sides[1]))[:, 0]


def _at_rank(quantiles: Tensor, ranks: Tensor) -> Tensor:
    """The time at each rank [C] of its distribution [C, Q + 1]."""
    last = quantiles.shape[1] - 1
    place = ranks[:, None] * last
    below = place.long().clamp(max=last - 1)
    low, high = quantiles.gather(1, below), quantiles.gather(1, below + 1)
    return (low + (place - below) * (high - low))[:, 0]
