"""Kinds and candidates made by hand."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mtrec_ray.data.manifest import TaskEntry
from mtrec_ray.tasks.columns import FeatureColumns
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.tasks.labels import labels_of

NAN = float("nan")


def entry(kind: str, name: str = "t", **values: Any) -> TaskEntry:
    """A fitted task; what is not given is nothing."""
    nothing = {"labels": labels_of(kind), "observed": {}, "positives": {}, "mean": 0.0, "std": 0.0}
    return TaskEntry(**{**nothing, "name": name, "kind": kind, **values})


def make(
    kind: str,
    params: Mapping[str, Any] | None = None,
    *,
    name: str = "t",
    index: int = 0,
    parent: TaskKind | None = None,
    columns: FeatureColumns = FeatureColumns(),  # noqa: B008 - frozen
    **fitted: Any,
) -> Any:
    """A kind of a task with these fitted values; `index`: its column in the labels."""
    return KINDS[kind](entry(kind, name, **fitted), index, params or {}, parent, columns)


def candidates(labels: Sequence[Any], numbers: Sequence[Any] | None = None) -> Any:
    """The part of a batch that pointwise kinds read: labels [C] or [C, T], numbers [C] or [C, F]."""
    column = _columns(labels)
    return SimpleNamespace(
        labels=column,
        label_weights=torch.ones_like(column),
        numbers=torch.zeros(len(column), 0) if numbers is None else _columns(numbers),
    )


def losses(kind: TaskKind, logits: Sequence[float], labels: Sequence[float], **others: Any) -> Tensor:
    """Of one task with one output: logits [C], labels [C] -> [C], in float64."""
    return kind.losses({kind.task.name: column(logits)}, candidates(labels, **others))


def column(values: Sequence[float]) -> Tensor:
    """float64 [C, 1]"""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def untrained(kind: TaskKind, numbers: Sequence[Any] | None = None) -> Tensor:
    """The scores of a tower that gives its initial biases."""
    logits: dict[str, Tensor] = {}
    line: TaskKind | None = kind
    rows = 1 if numbers is None else len(numbers)
    while line is not None:
        bias = torch.tensor([line.initial_bias()], dtype=torch.float64)
        assert bias.shape == (1, line.outputs)
        logits[line.task.name] = bias.expand(rows, -1)
        line = line.parent
    return kind.score(logits, candidates([NAN] * rows, numbers))


def _columns(values: Sequence[Any]) -> Tensor:
    found = torch.tensor(values, dtype=torch.float32)
    return found[:, None] if found.ndim == 1 else found
