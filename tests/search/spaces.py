"""Configs with a space, and the planted problem, for the tests of the search."""

from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.config_file import validate
from mtrec_ray.data.manifest import Manifest, TaskEntry
from mtrec_ray.search.entries import Values
from mtrec_ray.tasks.labels import labels_of
from tests.fixtures import manifest_of

LR = "train.learning_rate.towers"
BEST_WEIGHTS = {"a": 0.2, "b": 0.5, "c": 0.3}
BEST_LR = 2e-3


def run_of(space: dict[str, Any], *, seed: int = 0, tune: dict[str, Any] | None = None, **parts: Any) -> Run:
    """A config of three tasks that searches `space`."""
    tree: dict[str, Any] = {
        "name": "t",
        "seed": seed,
        "data": {"logs": "x.csv", "columns": {"user": "u", "item": "i", "time": "t"}},
        "tasks": {name: {"label": name} for name in "abc"},
        **parts,
    }
    return validate(tree | {"tune": {"space": space, **(tune or {})}})


def planted_run(seed: int = 0, **tune: Any) -> Run:
    space = {"tasks.*.weight": {"simplex": ["a", "b", "c"]}, LR: {"loguniform": [1e-5, 1e-1]}}
    return run_of(space, seed=seed, tune=tune)


def planted(values: Values) -> float:
    """A smooth function of weights and learning rate whose maximum, 0, is at `BEST_WEIGHTS` and `BEST_LR`."""
    off = [values[f"tasks.{name}.weight"] - best for name, best in BEST_WEIGHTS.items()]
    return -float(4 * np.square(off).sum() + 0.3 * np.log10(values[LR] / BEST_LR) ** 2)


def manifest_with(*tasks: tuple[str, str], positives: int = 5) -> Manifest:
    """A manifest of tasks (name, kind) with 10 validation labels each."""
    entries = [
        TaskEntry(
            name=name,
            kind=kind,
            labels=labels_of(kind),
            observed={"valid": 10},
            positives={"valid": positives},
            mean=0.5,
            std=1.0,
        )
        for name, kind in tasks
    ]
    return manifest_of(tasks=entries, num_users=1, num_items=1, categories=[], numbers=[])
