"""Kinds that match a user with an item: their logit is the inner product of a vector of each (`model.matching`).

The user's vector knows nothing of the candidate, so one look at a list of all items' vectors finds what a user wants.
They have no tower and do not read z; the place on the page does not act on them. Each has vectors of its own, unless
`matching.shared`: then one index of items serves all of them.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part, Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.tasks.binary import base_logit
from mtrec_ray.tasks.kind import (
    KINDS,
    Candidates,
    Logits,
    TaskKind,
    as_precise,
    divergence_of_classes,
    divergence_of_logits,
)


class MatchingKind(TaskKind):
    """Labels 0 and 1; evaluated also by the rank of each positive among all items that existed at its time."""

    class Params(Part):
        exclude_seen: bool = False
        """Whether the items of the history that a candidate sees, exposures among them, are left out of its ranking
        (and are not its negatives), but for its own item. A history reaches back `history.max_events` at most. Items
        that the user likes later are ranked as all others."""

    params: Params
    labels = "binary"
    matches = True
    metrics = {  # noqa: RUF012
        "ndcg@10": 1,
        "recall@10": 1,
        "mrr": 1,
        "ndcg@50": 1,
        "recall@50": 1,
        "auc": 1,
        "gauc": 1,
    }
    reported: tuple[str, ...] = ("ndcg@10", "recall@10", "mrr", "ndcg@50", "recall@50", "auc", "gauc")
    first_scale: ClassVar[float]
    """What the cosine of the two vectors is multiplied with at first."""

    @classmethod
    def check_run(cls, task: str, run: Run) -> None:
        super().check_run(task, run)
        if run.data.items is not None and run.data.items.valid_from is not None:
            raise ConfigError(
                f"tasks.{task}.kind: '{run.tasks[task].kind}' gives each item one vector for all times, but "
                "data.items.valid_from says that items change: vectors of what they became later would rank earlier "
                "rows. Leave it out and give a table from before the split, where data.items.published says since when "
                "items exist, or take another kind."
            )

    @property
    def placed(self) -> bool:
        return False


@KINDS.register("retrieval")
class Retrieval(MatchingKind):
    """Which item comes next: of rows with label 1, the item among all others; rows with label 0 teach nothing.

    Sampled softmax: loss = -log(exp(s) / (exp(s) + sum_j exp(s_j - log(M q_j)))) over M negatives j, drawn with
    replacement from the items with train rows with probability q_j proportional to rows ** power. The second part of
    the denominator is the importance sampling of Bengio & Senecal 2008 ("Adaptive Importance Sampling to Accelerate
    Training of a Neural Probabilistic Language Model", IEEE Trans. Neural Networks 19, Sec. III), and its form as
    corrected logits that of Yi et al. 2019 ("Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", RecSys, Eq. 3-5). Left out are negatives that are the positive itself, that the log first mentions
    after the row's time, and with `exclude_seen` those seen: so the sum has as its mean the softmax's own denominator
    over the train items that the row is ranked among, and the gradient tends to that of the full softmax.
    `power` says which items are drawn often: it changes the noise, and not what is learned.

    Where we differ from Yi et al.: they draw the negatives from the other rows of the batch, whose frequencies they
    estimate as they stream by. We do not, for then a row's loss would depend on which rows the same worker happened to
    read with it, and packed == separate, N workers == 1 would be false. Ours are a function of seed and step alone,
    the same for all rows of a step. The positive's own logit is not corrected, for it is always in the sum.

    The score is the logit: it orders the items and is no probability.
    """

    class Params(MatchingKind.Params):
        negatives: PositiveInt = 128
        """M"""
        power: Annotated[float, Field(ge=0, le=10)] = 0.75
        """0 draws all train items alike, 1 as often as they were shown."""

    params: Params
    first_scale = 1 / 0.07
    """That of CLIP (Radford et al. 2021, arXiv 2103.00020, Sec. 2.5)."""

    def initial_bias(self) -> list[float]:
        return [0.0]

    def weights(self, candidates: Candidates) -> Tensor:
        """[C], 0 but for positives."""
        return torch.where(self.own_labels(candidates) > 0, candidates.label_weights[:, self.index], 0.0)

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        """From logits [C, 1 + M], the own item's first; see `model.matching`."""
        own = logits[self.task.name]
        return torch.logsumexp(own, dim=1) - own[:, 0]

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        """Of the distributions over the item and its negatives."""
        name = self.task.name
        return divergence_of_classes(*(functional.log_softmax(logits[name], dim=1) for logits in (first, second)))

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        return logits[self.task.name][:, 0]


@KINDS.register("interest_match")
class InterestMatch(MatchingKind):
    """Whether an item that was shown is liked: sigmoid(scale * <user, item> + bias), learned by cross-entropy from
    labels 0 and 1; the score is a probability."""

    metrics = {"auc": 1, "gauc": 1, "logloss": -1, "ndcg@10": 1, "recall@10": 1, "mrr": 1}  # noqa: RUF012
    reported = ("auc", "gauc", "logloss", "ne", "calibration", "ndcg@10", "recall@10", "mrr")
    first_scale = 1.0

    def initial_bias(self) -> list[float]:
        return [base_logit(self.task.mean)]

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        own, labels = as_precise(logits[self.task.name][:, 0], self.own_labels(candidates))
        return functional.binary_cross_entropy_with_logits(own, labels.nan_to_num(0.0), reduction="none")

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        return divergence_of_logits(first[self.task.name][:, 0], second[self.task.name][:, 0])

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        return torch.sigmoid(logits[self.task.name][:, 0])
