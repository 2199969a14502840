"""Labels that name one of several classes in an order, as stars or steps on a scale."""

import torch
from torch import Tensor
from torch.nn import functional

from mtrec_ray.tasks.binary import base_logit
from mtrec_ray.tasks.kind import KINDS, Candidates, Logits, PointwiseKind, divergence_of_classes


@KINDS.register("ordinal")
class Ordinal(PointwiseKind):
    """Label 0 .. classes-1, in an order; the score is a probability per class.

    Conditional ordinal regression (CORN: Shi, Cao, Raschka 2021, arXiv 2111.08851). Output k of K - 1 is the logit of

        f_k = P(y > k | y > k - 1),   so   P(y > k) = f_0 f_1 ... f_k

    which never rises with k, whatever the outputs are, and P(y = k) = P(y > k - 1) - P(y > k). The loss adds up the
    cross-entropies of the steps that a row takes part in: 1 wherever y > k, 0 where y = k, none beyond. That is
    -log P(y), the log loss that is reported, so a step is learned from the rows that reached it.

    Where we differ: the paper divides by the number of (row, step) pairs, we divide by the number of rows, as of all
    tasks. A cumulative link model (McCullagh 1980; with a network, CORAL: Cao, Mirjalili, Raschka 2019, arXiv
    1901.07884) moves one latent score past fixed thresholds: it is smaller, but no candidate can have likely
    classes at both ends and unlikely ones between. It needs outputs that share weights, as a tower's do not.

    `rank_mae` is the distance, in classes, between the label and the median of the predicted distribution.
    """

    labels = "class"
    metrics = {"rank_mae": -1, "accuracy": 1, "logloss": -1}  # noqa: RUF012
    reported = ("rank_mae", "accuracy", "logloss")

    @property
    def outputs(self) -> int:
        return self.task.classes - 1

    def initial_bias(self) -> list[float]:
        """The logit of each step's train rate; of a step that no train row reached, the lowest."""
        shares = self.task.frequencies
        reached = [sum(shares[k:]) for k in range(len(shares))]
        return [base_logit(reached[k + 1] / reached[k] if reached[k] > 0 else 0.0) for k in range(len(shares) - 1)]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -_log_classes(logits).gather(1, labels.long()[:, None])[:, 0]

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        return divergence_of_classes(*(_log_classes(logits[self.task.name]) for logits in (first, second)))

    def predict(self, logits: Tensor) -> Tensor:
        return torch.exp(_log_classes(logits))


def _log_classes(logits: Tensor) -> Tensor:
    """[N, K-1] -> log P(y = k) [N, K]."""
    none = torch.zeros_like(logits[:, :1])
    passed = torch.cat([none, functional.logsigmoid(logits).cumsum(1)], dim=1)
    stopped = torch.cat([functional.logsigmoid(-logits), none], dim=1)
    return passed + stopped
