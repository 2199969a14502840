"""Labels 0 and 1 of feedback that may come days later: a 0 may mean that it has not come yet."""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part
from mtrec_ray.errors import DataError
from mtrec_ray.tasks.binary import base_logit
from mtrec_ray.tasks.kind import KINDS, Candidates, Logits, ProbabilityKind, as_precise

LARGEST = 12.0
"""Rates are kept within exp(-12) and exp(12) of one per mean delay, so that no density is infinite."""


@KINDS.register("delayed")
class Delayed(ProbabilityKind):
    """Label 0 or 1; the score is the probability p that feedback comes within `window` w of the row.

    The label y of a train row is as of the end of the train period, when a time e had passed: 1 with delay d <= e, or
    0, which says "never" only where e >= w. Both losses learn from young rows too, and the scores need no correction.

    `loss: dfm`: the delayed feedback model (Chapelle 2014, "Modeling Delayed Feedback in Display Advertising", KDD
    2014, doi 10.1145/2623330.2623634): a second output gives the rate l of an exponential delay, and the loss is minus

        y (log p + log l - l d) + (1 - y) log(1 - p + p exp(-l e)).

    Where we differ: feedback after the window does not count, so the delay's distribution ends there; its density is
    l exp(-l d) / (1 - exp(-l w)), and S(e) = (exp(-l e) - exp(-l w)) / (1 - exp(-l w)) stands for exp(-l e), which is 0
    once the window is over. A positive whose delay the log does not say counts -log p. Rates start at one per mean
    delay.

    `loss: fnw`: fake negatives weighted (Ktena et al. 2019, "Addressing Delayed Feedback for Continuous Training with
    Neural Networks in CTR prediction", arXiv 1907.06558). There each row comes at once as a negative, and once more as
    a positive when its feedback comes. What the model f sees then has b(y=1|x) = p / (1 + p), and importance weights
    p / b(1) = 1 + f and (1 - p) / b(0) = (1 - f)(1 + f), with f held constant, give back p. That is for a stream that
    goes on, where all feedback comes in the end. Here rows are read as of one moment, each of them once, and the same
    derivation needs what they show at that moment: with F(e) the share of feedback that has come after e,

        b(y=1|x,e) = p F(e),   so the weights are   1 / F(e) for y = 1,   (1 - f) / (1 - f F(e)) for y = 0,

    again with f held constant. (The paper's own weights, with a copy as negative for each positive, would lead to
    p F(e): the mean gradient in the logit is (1 - f^2)(f - p F). Ours is (1 - f)(f - p) / (1 - f F), which is 0 at p
    alone.) They are those of Yasui et al. 2020, "A Feedback Shift Correction in Predicting Conversion Rates under
    Delayed Feedback" (arXiv 2002.02068), who fit two further models for them. F is the distribution of the delays of
    train rows whose window was over, the same for all rows: any shape, but where delays depend on x, p is right in the
    mean alone. F is taken for at least 1 / `clip`, which bounds the weights.
    """

    class Params(Part):
        loss: Literal["dfm", "fnw"] = "dfm"
        clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 20.0
        """`fnw`: the largest weight of a positive."""

        @model_validator(mode="after")
        def _no_idle_clip(self) -> Self:
            if "clip" in self.model_fields_set and self.loss != "fnw":
                raise ValueError("clip belongs to `loss: fnw`")
            return self

    params: Params
    metrics = {"auc": 1, "gauc": 1, "logloss": -1}  # noqa: RUF012
    reported = ("auc", "gauc", "logloss", "ne", "calibration")

    def set_up(self) -> None:
        found, name = self.task.delays, self.task.name
        if found is None:
            raise DataError(
                f"tasks.{name}: no train row has label 1 and a time at which its feedback came, so there is no delay "
                "to learn from. Correct the label, `feedback_time` or `window`, or give a longer log."
            )
        self.window, self.mean_delay = found.window, max(found.mean, 1e-6)
        self.quantiles = torch.tensor(found.quantiles, dtype=torch.float64)
        if self.params.loss == "fnw" and not found.quantiles:
            raise DataError(
                f"tasks.{name}.params.loss: fnw takes the delays of train rows whose window ({found.window:g} s) is "
                "over, and none of these has label 1. Give a longer log or a shorter window, or take loss: dfm."
            )

    @property
    def outputs(self) -> int:
        """The logit of p; `dfm`: and the logarithm of the rate, in mean delays."""
        return 2 if self.params.loss == "dfm" else 1

    def initial_bias(self) -> list[float]:
        return [base_logit(self.task.mean), 0.0][: self.outputs]

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        own, labels = as_precise(logits[self.task.name], self.own_labels(candidates).nan_to_num(0.0))
        elapsed = candidates.elapsed.to(labels.dtype).nan_to_num(math.inf)
        if self.params.loss == "fnw":
            return self._weighted(own[:, 0], labels, elapsed)
        delays = candidates.delays[:, self.index].to(labels.dtype)
        yes, no = functional.logsigmoid(own[:, 0]), functional.logsigmoid(-own[:, 0])
        log_rate = own[:, 1].clamp(-LARGEST, LARGEST) - math.log(self.mean_delay)
        came = yes + torch.where(torch.isnan(delays), 0.0, self._log_density(log_rate, delays.nan_to_num(0.0)))
        over = elapsed >= self.window
        waiting = torch.logaddexp(no, yes + self._log_survival(log_rate, torch.where(over, 0.0, elapsed)))
        return -torch.where(labels > 0, came, torch.where(over, no, waiting))

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        return torch.sigmoid(logits[self.task.name][:, 0])

    def log_probabilities(self, logits: Logits) -> tuple[Tensor, Tensor]:
        own = logits[self.task.name][:, 0]
        return functional.logsigmoid(own), functional.logsigmoid(-own)

    def _log_density(self, log_rate: Tensor, delays: Tensor) -> Tensor:
        """[C] of delays that end with the window."""
        rate = torch.exp(log_rate)
        return log_rate - rate * delays - _log_of_rest(rate * self.window)

    def _log_survival(self, log_rate: Tensor, elapsed: Tensor) -> Tensor:
        """[C] logarithm of the share of such delays that are longer than `elapsed`, which is below the window."""
        rate = torch.exp(log_rate)
        left = _log_of_rest(rate * (self.window - elapsed))
        return left - rate * elapsed - _log_of_rest(rate * self.window)

    def _weighted(self, own: Tensor, labels: Tensor, elapsed: Tensor) -> Tensor:
        yes, no = functional.logsigmoid(own), functional.logsigmoid(-own)
        share = self.share_come(elapsed).clamp(min=1 / self.params.clip)
        # 1 - f F = (1 - f) + f (1 - F), a sum in which nothing cancels
        seen_as_negative = torch.logaddexp(no, yes + torch.log1p(-share))
        of_negative = torch.exp(no - seen_as_negative).detach()
        return -torch.where(labels > 0, yes / share, of_negative * no)

    def share_come(self, elapsed: Tensor) -> Tensor:
        """F [C], linear between the quantiles of delays; 1 from the end of the window on."""
        quantiles = self.quantiles.to(elapsed)
        last = len(quantiles) - 1
        below = (torch.searchsorted(quantiles, elapsed, right=True) - 1).clamp(0, last - 1)
        low, high = quantiles[below], quantiles[below + 1]
        inside = ((elapsed - low) / torch.where(high > low, high - low, 1.0)).clamp(0.0, 1.0)
        return torch.where((elapsed >= self.window) | (elapsed >= quantiles[-1]), 1.0, (below + inside) / last)


def _log_of_rest(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0, precise for small and large x, and so are its gradients (Mächler 2012, "Accurately
    Computing log(1 - exp(-|a|))")."""
    small, large = x.clamp(max=math.log(2)), x.clamp(min=math.log(2))
    return torch.where(x < math.log(2), torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-large)))
