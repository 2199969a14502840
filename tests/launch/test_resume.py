"""A training that loses a worker, then its driver, ends as one that was never stopped; also where it started from
another run, which is gone by then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.sample import write_sample
from mtrec_ray.errors import ClusterError
from mtrec_ray.launch.train import train
from tests.launch.sample_runs import sample_config, trained_without_ray
from tests.launch.stops_twice import RUN

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SETTINGS = [
    "backbone=none",
    "engine.name=plain",
    "train.max_steps=8",
    "train.batch_requests=8",
    "train.log_every=1",
    "train.evaluations_per_epoch=4",
    "evaluate.bootstrap=0",
    "evaluate.baselines=[]",
    "cluster.workers=2",
    "cluster.cpus_per_worker=0.5",
    "cluster.max_failures=1",
]


def lines(folder: str) -> list[dict[str, Any]]:
    """`metrics.jsonl` without what depends on the clock."""
    found = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "_s" not in key} for line in found]


def predictions(folder: str) -> pd.DataFrame:
    return pq.read_table(f"{folder}/predictions.parquet").to_pandas()  # here a missing label equals itself


def state(folder: str) -> dict[str, Any]:
    """The best checkpoint's, without how long it took."""
    return {**json.loads(Path(folder, "checkpoint/state.json").read_text()), "work": None}


def test_a_lost_worker_and_a_lost_driver_change_nothing(tmp_path, ray_cluster):
    write_sample(str(tmp_path / "logs"), users=30, items=20, days=6, shards=2)
    old = trained_without_ray(tmp_path, "old", *SETTINGS, "cluster.workers=1", "train.max_steps=4")
    start = f"train.start_from={old}"
    whole = train(sample_config(tmp_path, "whole", *SETTINGS, start))
    stopped = sample_config(tmp_path, RUN, *SETTINGS, start, "plugins=[tests.launch.stops_twice]")
    with pytest.raises(ClusterError, match=r"lost [12] of its 2 workers \(rank 0: .* process has died.* again once"):
        train(stopped)  # the first loss is made good, the second is one too many
    shutil.rmtree(old)
    folder = train(stopped)
    marks = {path.name: path.read_text() for path in Path(folder).glob("stopped-before-*")}
    assert marks == {"stopped-before-3": "started at 0", "stopped-before-5": "started at 2"}
    assert lines(folder) == lines(whole)
    assert [line["from"] for line in lines(folder) if line["kind"] == "start"] == [old]
    assert predictions(folder).equals(predictions(whole))
    assert state(folder) == state(whole)
    assert not Path(folder, ".ray").exists()
