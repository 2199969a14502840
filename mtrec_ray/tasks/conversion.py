"""Steps that only happen after another one: a purchase after a click."""

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Part
from mtrec_ray.errors import DataError
from mtrec_ray.tasks.binary import base_logit
from mtrec_ray.tasks.kind import KINDS, Candidates, Logits, ProbabilityKind, TaskKind, as_precise


@KINDS.register("conversion")
class Conversion(ProbabilityKind):
    """Label 0 or 1 of a step that only happens after `parent`, over all that was shown: 0 also where `parent` is 0.

    The score is the probability of the step for a candidate that is shown (in advertising: CTCVR). Divided by the
    parent's score it is the probability after the parent (CVR), which `cvr_auc` and `cvr_logloss` judge on the rows
    whose parent's label is 1.

    `form: product`: p = p(parent) * sigmoid(own logit), p(parent) along the whole chain, and the cross-entropy of p
    (ESMM: Ma et al. 2018, "Entire Space Multi-Task Model", arXiv 1804.07931, Eq. 1 and 3). So the own logit learns
    P(step | parent) without being trained on the selected rows alone; as in the paper the gradient goes into the
    parent's tower too. Computed from logarithms: for rare steps p is too small for 1 - p to be told from 1.

    `form: direct`: p = sigmoid(own logit), its cross-entropy, and `order_weight` * max(p - p(parent), 0): what comes
    later cannot be likelier (the behavioral expectation calibrator of AITM: Xi et al. 2021, arXiv 2105.08489; 0.6 is
    its authors' weight). Its gradient goes into the parent's tower too. The paper's other part, what the towers hand
    on, is `towers.kind: aitm`.

    Both losses are over the rows whose own label is observed. A label that is missing where `parent` is 0, as a log of
    purchases after clicks has it, would make this P(step | parent): such data is refused. Rows with label 1 and
    parent's label 0 contradict the definition; `prepare` refuses more than `data.max_bad_share` of them, and the
    others count with the labels that they have.
    """

    class Params(Part):
        form: Literal["product", "direct"] = "product"
        order_weight: float = Field(default=0.6, ge=0)
        """`direct`: 0 leaves the tasks' order free."""

        @model_validator(mode="after")
        def _no_idle_weight(self) -> Self:
            if "order_weight" in self.model_fields_set and self.form != "direct":
                raise ValueError("order_weight belongs to `form: direct`; a product is never above its parent")
            return self

    params: Params
    metrics = {"auc": 1, "gauc": 1, "logloss": -1, "cvr_auc": 1, "cvr_logloss": -1}  # noqa: RUF012
    reported = ("auc", "gauc", "logloss", "ne", "calibration", "cvr_auc", "cvr_logloss")
    chained = True

    def set_up(self) -> None:
        assert isinstance(self.parent, ProbabilityKind), "see `kinds.check_tasks`"
        self.before = self.parent
        self._check_labels()

    @property
    def reads(self) -> tuple[str, ...]:
        alone = self.params.form == "direct" and self.params.order_weight == 0
        return (self.task.name,) if alone else (self.task.name, *self.before.reads)

    def initial_bias(self) -> list[float]:
        """`product`: such that its product with the untrained parent is the base rate."""
        if self.params.form == "direct":
            return [base_logit(self.task.mean)]
        return [base_logit(self.task.mean / _untrained_rate(self.before))]

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        labels = self.own_labels(candidates).nan_to_num(0.0)
        logits = {name: as_precise(logits[name], labels)[0] for name in self.reads}
        yes, no = self.log_probabilities(logits)
        entropy = -(labels * yes + (1 - labels) * no)
        if self.reads == (self.task.name,) or self.params.form == "product":
            return entropy
        before, _ = self.before.log_probabilities(logits)
        return entropy + self.params.order_weight * functional.relu(torch.exp(yes) - torch.exp(before))

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        return torch.exp(self.log_probabilities(logits)[0])

    def log_probabilities(self, logits: Logits) -> tuple[Tensor, Tensor]:
        """`product`, with a = sigmoid(own logit) and b = p(parent): log(ab), and log(1 - ab).

        The latter is log1p(-ab) where ab is small, and log((1 - a) + a (1 - b)) where it is not: each keeps the value
        and the gradient precise where the other one takes the difference of nearly equal numbers (compare Mächler 2012,
        "Accurately Computing log(1 - exp(-|a|))").
        """
        own = logits[self.task.name][:, 0]
        yes, no = functional.logsigmoid(own), functional.logsigmoid(-own)
        if self.params.form == "direct":
            return yes, no
        before_yes, before_no = self.before.log_probabilities(logits)
        both = yes + before_yes
        if_small = torch.log1p(-torch.exp(both.clamp(max=-math.log(2))))
        return both, torch.where(both < -math.log(2), if_small, torch.logaddexp(no, yes + before_no))

    def _check_labels(self) -> None:
        name, before = self.task.name, self.before.task
        remedy = f"Write a label of tasks.{name} that is 0, not missing, where '{before.name}' is 0"
        if self.task.parent_mean == 1 and before.mean < 1:
            raise DataError(
                f"tasks.{name}: in train, it has a label only where '{before.name}' is 1, so it says how often "
                f"'{name}' follows '{before.name}', not how often it happens. {remedy}."
            )
        if self.task.mean > before.mean:
            raise DataError(
                f"tasks.{name}: its train labels have mean {self.task.mean:.4g}, those of its parent '{before.name}' "
                f"{before.mean:.4g}; a step cannot happen more often than the one before it. {remedy}, or correct "
                f"tasks.{name}.parent."
            )


def _untrained_rate(kind: ProbabilityKind) -> float:
    """The score that a kind gives before anything is learned."""
    logits: dict[str, Tensor] = {}
    line: TaskKind | None = kind
    while line is not None:
        logits[line.task.name] = torch.tensor([line.initial_bias()], dtype=torch.float64)
        line = line.parent
    return math.exp(kind.log_probabilities(logits)[0].item())
