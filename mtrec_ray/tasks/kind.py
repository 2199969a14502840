"""The interface of a task kind, and the registry that built-in and guest kinds share.

A kind that is not built in is a class in a module that `plugins` names:

    from mtrec_ray.tasks.kind import KINDS, PointwiseKind

    @KINDS.register("poisson")
    class Poisson(PointwiseKind): ...

C candidates of a batch, T tasks, K outputs of a task's tower. All functions are pure.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mtrec_ray.config import Part, Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.labels import Labels
from mtrec_ray.params import check_params
from mtrec_ray.registry import Registry
from mtrec_ray.tasks.columns import FeatureColumns

Logits = Mapping[str, Tensor]
"""What towers gave, by task: [C, K]."""


class DurationGroups(Protocol):
    """What kind `watch_time` is fitted on; see the manifest's `DurationEntry`."""

    @property
    def share(self) -> float: ...

    @property
    def edges(self) -> list[float]: ...

    @property
    def quantiles(self) -> list[list[float]]: ...


class DelaysOfFeedback(Protocol):
    """How late the feedback of a task with a window came; see the manifest's `DelayEntry`."""

    @property
    def window(self) -> float: ...

    @property
    def mean(self) -> float: ...

    @property
    def quantiles(self) -> list[float]: ...


class FittedTask(Protocol):
    """What a kind may know of its task: fitted on the observed labels of the train rows; see `TaskEntry`."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> int: ...

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...

    @property
    def frequencies(self) -> list[float]: ...

    @property
    def log_mean(self) -> float | None: ...

    @property
    def log_std(self) -> float | None: ...

    @property
    def parent_mean(self) -> float | None: ...

    @property
    def durations(self) -> DurationGroups | None: ...

    @property
    def delays(self) -> DelaysOfFeedback | None: ...


class Candidates(Protocol):
    """What a kind may know of the candidates beside their logits: a part of `data.batch.Batch`."""

    @property
    def labels(self) -> Tensor:
        """float32 [C, T], NaN = not observed"""
        ...

    @property
    def label_weights(self) -> Tensor:
        """float32 [C, T] how much each label counts"""
        ...

    @property
    def request(self) -> Tensor:
        """int64 [C] which request of the batch"""
        ...

    @property
    def shown(self) -> Tensor:
        """int64 [C] candidates of one request with the same number were shown together, at one end of the history"""
        ...

    @property
    def context(self) -> Tensor:
        """float32 [C, X] how the row came about"""
        ...

    @property
    def delays(self) -> Tensor:
        """float32 [C, T] seconds to the feedback, NaN where there is none or its time is not known"""
        ...

    @property
    def elapsed(self) -> Tensor:
        """float32 [C] seconds from a train row to the end of what was known, NaN where there is no end"""
        ...

    @property
    def categories(self) -> Tensor:
        """int64 [C, G]"""
        ...

    @property
    def numbers(self) -> Tensor:
        """float32 [C, F]"""
        ...


class TaskKind(ABC):
    """One task of one run, as its kind sees it.

    Raises:
        ConfigError: on construction, a parameter that is unknown or out of range, or a parent that does not fit.
        DataError: on construction, labels that the kind cannot be fitted to.
    """

    class Params(Part):
        """No parameters."""

    labels: ClassVar[Labels]
    metrics: ClassVar[dict[str, int]]
    """Names of metrics in `evaluate.metrics`, the main one first: +1 if higher is better, -1 if lower."""
    reported: tuple[str, ...]
    """What a report shows, the main metric first; all of `metrics` and those that rank no models, as `calibration`."""
    chained: ClassVar[bool] = False
    """Whether the kind needs a `parent` task."""
    matches: ClassVar[bool] = False
    """Whether its logits come from the vectors of user and item (`tasks.matching`) instead of a tower."""
    needs_columns: ClassVar[tuple[str, ...]] = ()
    """Fields of `data.columns` without which the kind can do nothing."""

    def __init__(
        self,
        task: FittedTask,
        index: int,
        params: Mapping[str, Any],
        parent: "TaskKind | None" = None,
        columns: FeatureColumns = FeatureColumns(),  # noqa: B008 - frozen
    ) -> None:
        """`index`: the task's column in the labels; `columns`: where `Candidates` have which feature."""
        self.task, self.index, self.parent, self.columns = task, index, parent, columns
        self.params = self.check(task.name, params)
        self.set_up()

    def set_up(self) -> None:  # noqa: B027 - most kinds make nothing
        """What a kind makes of its task, parameters, parent and columns, once: the end of its construction."""

    @classmethod
    def check(cls, task: str, params: Mapping[str, Any]) -> Part:
        """The parameters, typed, with defaults. Raises `ConfigError` with one line per mistake."""
        return check_params(cls.Params, params, f"tasks.{task}.params")

    @classmethod
    def check_run(cls, task: str, run: Run) -> None:
        """Raises `ConfigError` if the config lacks what the kind needs beside the task itself."""
        for column in cls.needs_columns:
            if getattr(run.data.columns, column) is None:
                raise ConfigError(
                    f"tasks.{task}.kind: '{run.tasks[task].kind}' needs data.columns.{column}, which is not set; name "
                    "the log's column there, or take another kind."
                )

    @property
    def outputs(self) -> int:
        """K, the numbers that the tower gives per candidate; 0 for an objective over other tasks' scores."""
        return 1

    @property
    def placed(self) -> bool:
        """Whether the first output is the logit of a label 0 or 1, on which the place on the page may act."""
        return self.labels == "binary" and self.outputs > 0

    @property
    def reads(self) -> tuple[str, ...]:
        """The tasks whose logits the loss is computed from, the own one and those that it builds on."""
        return (self.task.name,)

    @property
    def ranks(self) -> str:
        """The task whose scores the metrics measure: this one, or the parent of an objective over lists."""
        return self.task.name

    @abstractmethod
    def initial_bias(self) -> list[float]:
        """K output biases with which an untrained tower predicts the base rate."""

    def weights(self, candidates: Candidates) -> Tensor:
        """[C] how much each candidate's loss counts: what the sum of losses is divided by, over the whole step.

        A function of the data alone, for it is needed before the first forward pass of a step.
        """
        observed = ~torch.isnan(self.own_labels(candidates))
        return torch.where(observed, candidates.label_weights[:, self.index], 0.0)

    @abstractmethod
    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        """[C], finite also where the weight is 0: each candidate's loss, to be multiplied by its weight."""

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        """[C] >= 0: how far two predictions of the same candidates are apart, to be multiplied by their weights.

        The mean of the Kullback-Leibler divergences in both directions, of the distributions that the loss is the
        negative log-likelihood of. By default half the squared difference of the tower's outputs, which is that of
        normal distributions with deviation 1; 0 for a kind that has no outputs.
        """
        if not self.outputs:
            return self.own_labels(candidates).new_zeros(len(candidates.labels))
        return 0.5 * ((first[self.task.name] - second[self.task.name]) ** 2).sum(dim=1)

    @abstractmethod
    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        """What is predicted, in the label's unit: [C], or [C, classes]. It reads no label."""

    def own_labels(self, candidates: Candidates) -> Tensor:
        """float32 [C], NaN = not observed."""
        return candidates.labels[:, self.index]


class PointwiseKind(TaskKind):
    """A kind whose loss of a candidate is a function of that candidate's own logits and label."""

    def losses(self, logits: Logits, candidates: Candidates) -> Tensor:
        """Computed in the more precise of the two types, which torch's binary cross-entropy does not do by itself.

        No row is selected, so nothing waits for the device and the tower gets a gradient (of zeros) in any case.
        """
        own, labels = as_precise(logits[self.task.name], self.own_labels(candidates))
        return self.loss(own, labels.nan_to_num(0.0))

    def score(self, logits: Logits, candidates: Candidates) -> Tensor:
        return self.predict(logits[self.task.name])

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [N, K], labels [N] without NaN -> loss per row [N]."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """logits [N, K] -> [N], or [N, classes]."""


class ProbabilityKind(TaskKind):
    """A kind of labels 0 and 1 whose score is a probability: another task can be a step after such a one."""

    labels = "binary"

    @abstractmethod
    def log_probabilities(self, logits: Logits) -> tuple[Tensor, Tensor]:
        """log p and log(1 - p), each [C], p being the score; finite for all finite logits, and so are gradients."""

    def divergence(self, first: Logits, second: Logits, candidates: Candidates) -> Tensor:
        """Of label 1 or 0 with probability p; other outputs than p, as of a delay, may differ."""
        one, other = (torch.stack(self.log_probabilities(logits), dim=1) for logits in (first, second))
        return divergence_of_classes(one, other)


def divergence_of_classes(first: Tensor, second: Tensor) -> Tensor:
    """Logarithms of probabilities [C, classes] -> [C]: (KL(p, q) + KL(q, p)) / 2 = sum (p - q) (log p - log q) / 2."""
    return 0.5 * ((torch.exp(first) - torch.exp(second)) * (first - second)).sum(dim=1)


def divergence_of_logits(first: Tensor, second: Tensor) -> Tensor:
    """The same of label 1 or 0 with the probability that each logit [C] says: (p - q) (logit p - logit q) / 2."""
    return 0.5 * (torch.sigmoid(first) - torch.sigmoid(second)) * (first - second)


def as_precise(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the more precise of their two types."""
    dtype = torch.promote_types(logits.dtype, labels.dtype)
    return logits.to(dtype), labels.to(dtype)


KINDS: Registry[type[TaskKind]] = Registry("task kind")
