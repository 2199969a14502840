"""Labels 0 and 1 of candidates that compete: what counts is their order within what was shown together."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part
from mtrec_ray.tasks.binary import base_logit
from mtrec_ray.tasks.groups import GroupBy, group_log_softmax, group_sums, groups, handed_out
from mtrec_ray.tasks.kind import KINDS, Candidates, Logits, TaskKind, as_precise, divergence_of_logits


@KINDS.register("ranking")
class Ranking(TaskKind):
    """Label 0 or 1; the score is a logit that orders the candidates of a group and is no probability (`bce`,
    `calibrated`: a probability).

    `pairwise`: RankNet (Burges et al. 2005, "Learning to Rank using Gradient Descent", Eq. 3), log(1 + exp(s_j - s_i)),
    averaged over all pairs of a positive i and a negative j of the group. `listwise`: cross-entropy of the softmax of
    the group's logits (ListNet's top-one probabilities: Cao et al. 2007, "Learning to Rank: From Pairwise Approach to
    Listwise Approach", Sec. 4.2 and Eq. 3), averaged over the group's positives. Where we differ: ListNet's target is
    the softmax of the labels too, which gives negatives a share; ours is the labels' own share, the usual form for
    labels 0 and 1, a bound on MRR and NDCG (Bruch et al. 2019, "An Analysis of the Softmax Cross Entropy Loss for
    Learning-to-Rank with Binary Relevance"). `bce`: cross-entropy of each candidate by itself, as kind `binary`.

    `calibrated`: regression compatible ranking (RCR: Bai et al. 2023, "Regression Compatible Listwise Objectives for
    Calibrated Ranking with Binary Relevance", arXiv 2211.01494): the shares are those of the probabilities sigmoid(s)
    instead of exp(s), and each candidate's cross-entropy is added. Both parts are smallest where sigmoid(s) is the true
    probability, while a softmax of logits is blind to a constant; so both have weight 1 and there is no trade-off to
    set. It is a sum over positives and a mean over rows, groups of one label included: only then is the minimum of both
    the same.

    Otherwise a group's loss stands at its first candidate and counts 1 if the group has a positive and a negative.
    Label weights count a candidate as so many: in the softmax's sum, in the pairs, and in the mean over positives; a
    group counts the mean weight of its positives. So negatives that the log or `augment.negatives` left out at random
    change the loss by chance alone, and a row weight that is one for the whole group multiplies it.
    """

    class Params(Part):
        loss: Literal["pairwise", "listwise", "bce"] = "listwise"
        temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
        """The logits are divided by it before they are compared."""
        group: GroupBy = "shown"
        """What competes: what was shown together, or all candidates of one packed request."""
        calibrated: bool = False
        """`listwise`: the score is a probability."""

        @model_validator(mode="after")
        def _nothing_idle(self) -> Self:
            idle = sorted({"temperature", "group"} & self.model_fields_set) if self.loss == "bce" else []
            if idle:
                raise ValueError(f"{idle[0]} belongs to losses over groups, `pairwise` and `listwise`; remove it")
            if self.calibrated and self.loss != "listwise":
                raise ValueError("calibrated belongs to `loss: listwise`; remove it")
            if self.calibrated and self.temperature != 1:
                raise ValueError("calibrated gives the logits a scale, which temperature changes; remove one of them")
            return self

    params: Params
    labels = "binary"
    metrics = {"ndcg@10": 1, "mrr": 1, "recall@10": 1, "gauc": 1, "auc": 1}  # noqa: RUF012
    reported: tuple[str, ...] = ("ndcg@10", "mrr", "recall@10", "gauc", "auc")

    def set_up(self) -> None:
        if self.gives_probabilities:
            self.reported = (*self.reported, "logloss", "ne", "calibration")

    @property
    def gives_probabilities(self) -> bool:
        return self.params.calibrated or self.params.loss == "bce"

    def initial_bias(self) -> list[float]:
        return [base_logit(self.task.mean) if self.gives_probabilities else 0.0]

    def weights(self, candidates: Candidates) -> Tensor:
        if self.gives_probabilities:
            return super().weights(candidates)
        group = _Group(self, candidates, torch.float32)
        return torch.where(group.mixed, group.sum(group.of_positives) / group.sum(group.positive.float()), 0.0)

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        scores, labels = as_precise(logits[self.task.name][:, 0], self.own_labels(candidates))
        entropy = functional.binary_cross_entropy_with_logits(scores, labels.nan_to_num(0.0), reduction="none")
        if self.params.loss == "bce":
            return entropy
        group = _Group(self, candidates, scores.dtype)
        if self.params.calibrated:
            return entropy - torch.where(group.positive, _log_shares(functional.logsigmoid(scores), group), 0.0)
        loss = _listwise if self.params.loss == "listwise" else _pairwise
        return loss(scores / self.params.temperature, group)

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        """Of the probabilities, where the score is one; else, at a group's first candidate, of the group's shares in a
        softmax of the logits, which say no more than the order and its distances do."""
        one, other = (logits[self.task.name][:, 0] for logits in (first, second))
        if self.gives_probabilities:
            return divergence_of_logits(one, other)
        group = _Group(self, candidates, one.dtype)
        shares, others = (_log_shares(scores / self.params.temperature, group) for scores in (one, other))
        apart = (torch.exp(shares) - torch.exp(others)) * (shares - others)
        return 0.5 * group.sum(torch.where(group.observed, apart, 0.0))

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        own = logits[self.task.name][:, 0]
        return torch.sigmoid(own) if self.gives_probabilities else own


class _Group:
    """The groups of C candidates; what is said of a group stands at its first candidate [C]."""

    def __init__(self, kind: Ranking, candidates: Candidates, dtype: torch.dtype) -> None:
        labels = kind.own_labels(candidates)
        weight = candidates.label_weights[:, kind.index].to(dtype)
        self.group = groups(candidates, kind.params.group)
        self.observed = ~torch.isnan(labels) & (weight > 0)
        self.positive = self.observed & (labels > 0)
        self.negative = self.observed & ~self.positive
        self.weight = torch.where(self.observed, weight, 0.0)
        self.of_positives = torch.where(self.positive, weight, 0.0)
        self.mixed = (self.sum(self.positive.to(dtype)) > 0) & (self.sum(self.negative.to(dtype)) > 0)

    def sum(self, values: Tensor) -> Tensor:
        return group_sums(values, self.group)

    def mean(self, values: Tensor, weight: Tensor) -> Tensor:
        """Weighted; 0 where the group has no weight."""
        total = self.sum(weight)
        return self.sum(values * weight) / torch.where(total > 0, total, 1.0)


def _log_shares(scores: Tensor, group: _Group) -> Tensor:
    """[C] of each candidate in the sum of weight * exp(score) over its group; never above 0."""
    log_weight = torch.log(torch.where(group.observed, group.weight, 1.0))
    return group_log_softmax(scores + log_weight, group.group, group.observed)


def _listwise(scores: Tensor, group: _Group) -> Tensor:
    """[C], 0 for groups that are not mixed."""
    shares = torch.where(group.positive, _log_shares(scores, group), 0.0)
    return torch.where(group.mixed, -group.mean(shares, group.of_positives), 0.0)


def _pairwise(scores: Tensor, group: _Group) -> Tensor:
    """[C], 0 for groups that are not mixed.

    Only the pairs that there are take memory, at most a quarter of the square of a group's size. Their number depends
    on the labels, so the host waits for the device.
    """
    places = torch.arange(len(scores), device=scores.device)
    positive, negative = places[group.positive], places[group.negative]
    negative = negative[torch.argsort(group.group[negative], stable=True)]
    negatives = group_sums(group.negative.double(), group.group).long()
    first = negatives.cumsum(0) - negatives  # of each group's negatives, which stand together
    partners = negatives[group.group[positive]]
    better = torch.repeat_interleave(positive, partners)
    skipped = torch.repeat_interleave(partners.cumsum(0) - partners, partners)
    worse = negative[first[group.group[better]] + torch.arange(len(better), device=scores.device) - skipped]
    loss = functional.softplus(handed_out(scores, worse) - handed_out(scores, better))
    weight = group.weight[better] * group.weight[worse]
    total, size = group_sums(weight, group.group[better], len(scores)), len(scores)
    return group_sums(loss * weight, group.group[better], size) / torch.where(total > 0, total, 1.0)
