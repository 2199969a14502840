"""Candidates that were shown together, made by hand or at random, and their lists in plain Python."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.tasks.made import NAN


def shown(
    labels: Sequence[float],
    request: Sequence[int] | None = None,
    end: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    categories: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[Sequence[float]] | None = None,
) -> Any:
    """The part of a batch that kinds of lists read, by default all shown together; one task."""
    size = len(labels)
    return SimpleNamespace(
        labels=torch.tensor(labels, dtype=torch.float32).reshape(size, 1),
        label_weights=torch.tensor(weights or [1.0] * size, dtype=torch.float32).reshape(size, 1),
        request=torch.tensor(request or [0] * size, dtype=torch.int64),
        shown=torch.tensor(end or [0] * size, dtype=torch.int64),
        categories=torch.tensor(categories or [[]] * size, dtype=torch.int64).reshape(size, -1 if categories else 0),
        numbers=torch.tensor(numbers or [[]] * size, dtype=torch.float32).reshape(size, -1 if numbers else 0),
    )


def at_random(seed: int, size: int = 40, weighted: bool = False) -> Any:
    """Groups of several sizes in no order, three requests with equal ends, a third of the labels not observed."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(size) < 1 / 3, NAN, (rng.random(size) < 0.4) * 1.0)
    return shown(
        labels.tolist(),
        rng.integers(0, 3, size).tolist(),
        rng.integers(5, 9, size).tolist(),
        rng.choice([0.0, 0.5, 1.0, 4.0], size).tolist() if weighted else None,
        np.where(rng.random((size, 3)) < 0.3, -1, rng.integers(0, 5, (size, 3))).tolist(),
        np.where(rng.random((size, 1)) < 0.2, NAN, np.log1p(rng.integers(0, 90, (size, 1)))).tolist(),
    )


def members(candidates: Any, by: str = "shown") -> list[list[int]]:
    """The candidates of each group, by a loop; groups by their first candidate."""
    found: dict[Any, list[int]] = {}
    for c in range(len(candidates.request)):
        end = int(candidates.shown[c]) if by == "shown" else 0
        found.setdefault((int(candidates.request[c]), end), []).append(c)
    return list(found.values())


def part(candidates: Any, chosen: Sequence[int]) -> Any:
    """Some of the candidates, as a batch of their own."""
    return SimpleNamespace(**{name: column[list(chosen)] for name, column in vars(candidates).items()})


def logits(values: Tensor) -> dict[str, Tensor]:
    """[C] -> of the task `t`"""
    return {"t": values[:, None]}
