"""Objectives over the lists that another task orders: what should stand on top beside what is liked.

They have no label and no tower: their gradient goes into the logits of their parent, whose score changes. What they
look at is the share p_i that each candidate of a group gets from a softmax of the parent's logits: the higher, the
likelier it stands on top.
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtrec_ray.config import Part, Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.tasks.columns import unknown_feature
from mtrec_ray.tasks.groups import GroupBy, first_alike, group_log_softmax, group_sums, groups
from mtrec_ray.tasks.kind import KINDS, Candidates, Logits, ProbabilityKind, TaskKind
from mtrec_ray.tasks.ranking import Ranking
from mtrec_ray.tasks.regression import Regression

ORDERING = (ProbabilityKind, Ranking, Regression)
"""Kinds whose score orders lists: it rises with one number without bounds."""


class ListObjective(TaskKind):
    """A loss between 0 and 1 of each group with two candidates or more, which stands at its first and counts 1.

    All candidates take part, whether a label of theirs is observed or not, and label weights do not count: the list is
    what it is.
    """

    class Params(Part):
        temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
        """The parent's logits are divided by it: the lower, the more the objective looks at the top alone."""
        group: GroupBy = "shown"
        """What is a list: what was shown together, or all candidates of one packed request."""

    params: Params
    labels = "none"
    chained = True

    @classmethod
    def check_run(cls, task: str, run: Run) -> None:
        super().check_run(task, run)
        if run.augment.negatives < 1:
            raise ConfigError(
                f"augment.negatives is {run.augment.negatives}, which leaves out candidates, but task '{task}' is an "
                "objective over whole lists; set augment.negatives: 1, or remove the task."
            )
        if run.augment.domains:
            raise ConfigError(
                f"augment.domains leaves out lists of {', '.join(run.augment.domains)}, but task '{task}' is an "
                "objective over lists that all count the same; remove augment.domains, or the task."
            )

    def set_up(self) -> None:
        assert isinstance(self.parent, ORDERING), "see `kinds.check_tasks`"
        self.ordering: TaskKind = self.parent

    @property
    def outputs(self) -> int:
        return 0

    @property
    def reads(self) -> tuple[str, ...]:
        return self.ordering.reads

    @property
    def ranks(self) -> str:
        return self.ordering.task.name

    def initial_bias(self) -> list[float]:
        return []

    def weights(self, candidates: Candidates) -> Tensor:
        group = groups(candidates, self.params.group)
        return (group_sums(torch.ones_like(group, dtype=torch.float32), group) > 1).float()

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        group = groups(candidates, self.params.group)
        scores = self._scores(logits)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.params.temperature
        shares = torch.exp(group_log_softmax(scores, group, torch.ones_like(group, dtype=torch.bool)))
        return self.loss_of_groups(shares, group, candidates)

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        """That of the parent: what orders the lists."""
        return self.ordering.score(logits, candidates)

    @abstractmethod
    def loss_of_groups(self, shares: Tensor, group: Tensor, candidates: Candidates) -> Tensor:
        """Shares [C] that add up to 1 in each group -> [C], at each group's first candidate its loss."""

    @abstractmethod
    def traits(self, categories: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """From categories [N, G] and numbers [N, F] of N candidates what the metric tells them apart by [N, ...]."""

    def _scores(self, logits: Logits) -> Tensor:
        """[C], without bounds, in the order of the parent's score."""
        if isinstance(self.ordering, ProbabilityKind):
            yes, no = self.ordering.log_probabilities(logits)
            return yes - no
        return logits[self.ordering.task.name][:, 0]


@KINDS.register("diversity")
class Diversity(ListObjective):
    """How alike two draws from a list are, which is to be low: loss = sum_ij p_i p_j sim(i, j).

    With equal shares on the first k this is, but for the pairs (i, i), 1 - the intra-list diversity of Smyth & McClave
    2001 ("Similarity vs. Diversity", Sec. 2.2) and the intra-list similarity of Ziegler et al. 2005 ("Improving
    Recommendation Lists Through Topic Diversification", Eq. 5); in general 1 - the quadratic entropy of Rao 1982. The
    pairs (i, i) draw the shares towards equal ones, so that the list stays open.

    sim: cosine of the sets of values that category `by` has for i and j, |A and B| / sqrt(|A| |B|), for categories with
    one value whether they are the same. Values that are absent or unknown are like nothing but their own candidate. As
    a sum over values of squared sums, the loss costs no more than the values there are.
    """

    class Params(ListObjective.Params):
        by: str
        """A column of `data.items.categories` or `data.categories`."""

    params: Params
    metrics = {"ild@10": 1}  # noqa: RUF012
    reported = ("ild@10",)

    def set_up(self) -> None:
        super().set_up()
        self._slots = self.columns.category(self.params.by, f"tasks.{self.task.name}.params.by")

    @classmethod
    def check_run(cls, task: str, run: Run) -> None:
        super().check_run(task, run)
        parts = [part for part in (run.data, run.data.items, run.data.users) if part is not None]
        known = [category.column for part in parts for category in part.categories]
        by = str(run.tasks[task].params["by"])
        if by not in known:
            raise ConfigError(unknown_feature("category", "categories", by, f"tasks.{task}.params.by", known))

    def loss_of_groups(self, shares: Tensor, group: Tensor, candidates: Candidates) -> Tensor:
        values = candidates.categories[:, self._slots].sort(dim=1).values
        known = values > 0
        known[:, 1:] &= values[:, 1:] != values[:, :-1]
        size = known.sum(1)
        of_value = (shares / size.clamp(min=1).sqrt())[:, None] * known
        width = values.shape[1]
        groups_of_values = group[:, None].expand(-1, width).reshape(-1)
        cell = first_alike(groups_of_values, values.reshape(-1))
        squares = group_sums(of_value.reshape(-1), cell) ** 2
        alone = torch.where(size > 0, 0.0, shares) ** 2
        return group_sums(squares, groups_of_values, len(group)) + group_sums(alone, group)

    def traits(self, categories: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """int [N, w] values of the category."""
        return categories[:, self._slots]


@KINDS.register("novelty")
class Novelty(ListObjective):
    """How well known a draw from a list is, which is to be low: loss = sum_i p_i (1 - novelty_i / most).

    novelty_i = -log2 of the share of the train rows that are of item i (self-information: Vargas & Castells 2011, "Rank
    and Relevance in Novelty and Diversity Metrics", Sec. 3.2), with N train rows log2((N + 1) / (n_i + 1)): 0 for an
    item that is always shown, log2(N + 1), the most there is, for one that never was. n_i is the aggregate that
    `popularity` names, which is log(1 + n_i); missing counts as never shown.

    The loss is linear in the shares: with a large weight one little-known item on top is all it needs, and what stands
    below is left as it is. A smaller weight or a higher `temperature` reaches more of the list.
    """

    class Params(ListObjective.Params):
        popularity: Literal["item.shown", "running item.shown"] = "item.shown"
        """`item.shown`: rows of the item in train, in train rows but for the user's own fold. `running item.shown`:
        times that it had been shown by then."""

    params: Params
    metrics = {"novelty@10": 1}  # noqa: RUF012
    reported = ("novelty@10", "coverage@10")

    def set_up(self) -> None:
        super().set_up()
        where = f"tasks.{self.task.name}.params.popularity"
        self._column = self.columns.aggregate(self.params.popularity, where)
        self._most = math.log1p(max(self.columns.train_rows, 1))

    def loss_of_groups(self, shares: Tensor, group: Tensor, candidates: Candidates) -> Tensor:
        known = candidates.numbers[:, self._column].nan_to_num(0.0).to(shares.dtype) / self._most
        return group_sums(shares * known.clamp(max=1), group)

    def traits(self, categories: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """float64 [N] novelty in bits."""
        known = np.nan_to_num(numbers[:, self._column].astype(np.float64))
        return np.maximum(self._most - known, 0) / math.log(2)
