"""Runs of the quickstart's config on a small generated log, and what they leave behind."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump, load
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.start import CONFIG, SUMMARY
from mtrec_ray.train.worker import TrainingData, fit
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


def trained_without_ray(place: Path, name: str, *overrides: str) -> str:
    """The folder of a run without a backbone, with all that another one needs to start from it."""
    run = sample_config(place, name, *overrides)
    data = prepare(run, serial_tasks)
    train, valid = (
        StepStream.local(data.path, data.manifest, order_settings(run, split, 1)) for split in ("train", "valid")
    )
    splits = TrainingData(train, valid, facts_of(valid.order.shards), prepared=data.path)
    folder = place / "runs" / name
    fit(run, data.manifest, splits, LocalContext(folder), lambda: None)
    (folder / CONFIG).write_text(dump(run))
    (folder / SUMMARY).write_text(json.dumps({"prepared": data.path}))
    return str(folder)


def scores(folder: str) -> dict[str, np.ndarray]:
    """`score.<task>` -> the column of a run's predictions."""
    table = pq.read_table(f"{folder}/predictions.parquet")
    return {name: table[name].to_numpy() for name in table.column_names if name.startswith("score.")}
