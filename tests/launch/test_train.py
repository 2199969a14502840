"""The whole main job on generated logs: prepare, pretrain, train, evaluate, on one worker and on two."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.data.sample import write_sample
from mtrec_ray.errors import ConfigError
from mtrec_ray.launch.evaluate import evaluate
from mtrec_ray.launch.train import train
from tests.launch.sample_runs import sample_config, scores

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = [
    "backbone.width=16",
    "backbone.layers=1",
    "backbone.heads=2",
    "backbone.vocab_size=400",
    "pretrain.max_steps=3",
    "train.max_steps=4",
    "train.log_every=2",
    "evaluate.bootstrap=0",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("main-job")
    write_sample(str(folder / "logs"), users=30, items=30, days=8)
    return folder


@pytest.fixture(scope="module")
def one(place):
    run = sample_config(place, "one", *SMALL, "evaluate.baselines=[constant, side_features]")
    return run, train(run)


def test_the_run_folder_holds_what_the_documentation_says(one):
    run, folder = one
    metrics = json.loads(Path(folder, "metrics.json").read_text())
    manifest = load_prepared(run).manifest
    table = pq.read_table(f"{folder}/predictions.parquet")
    for split in ("valid", "test"):
        candidates = sum(entry.candidates for entry in manifest.shards[split])
        assert table["split"].to_pylist().count(split) == candidates
        assert set(metrics["splits"][split]["tasks"]) == set(run.tasks)
    assert set(metrics["baselines"]) == {"constant", "side_features"}
    assert metrics["throughput"]["candidates_per_s"] > 0
    report = Path(folder, "report.html").read_text()
    assert "Train loss" in report
    assert "There is no training log" not in report


def test_a_finished_run_is_not_trained_again(one):
    run, _ = one
    with pytest.raises(ConfigError, match="--overwrite"):
        train(run)


def test_scoring_again_gives_the_same_predictions(one):
    _, folder = one
    before = scores(folder)
    assert evaluate(folder) == folder
    for name, values in scores(folder).items():
        np.testing.assert_allclose(values, before[name], rtol=1e-5, atol=1e-6)


def test_two_workers_equal_one(place, one):
    _, folder = one
    two = scores(train(sample_config(place, "two", *SMALL, "cluster.workers=2", "evaluate.baselines=[]")))
    for name, values in scores(folder).items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-5)
