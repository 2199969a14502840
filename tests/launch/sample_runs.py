"""Runs of the quickstart's config on a small generated log, and what they leave behind."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.config_file import load
from tests.conftest import ROOT


def sample_config(place: Path, name: str, *overrides: str) -> Run:
    """A run called `name` on the logs that `write_sample` wrote to `place/logs`; all that it makes lies in `place`."""
    paths = {
        "data.logs": place / "logs/logs",
        "data.items.path": place / "logs/items.parquet",
        "data.prepared_dir": place / "prepared",
        "cluster.storage": place / "runs",
    }
    settings = [f"name={name}", *(f"{key}={path}" for key, path in paths.items())]
    return load(ROOT / "configs/quickstart.yaml", [*settings, *overrides])


def scores(folder: str) -> dict[str, np.ndarray]:
    """`score.<task>` -> the column of a run's predictions."""
    table = pq.read_table(f"{folder}/predictions.parquet")
    return {name: table[name].to_numpy() for name in table.column_names if name.startswith("score.")}
