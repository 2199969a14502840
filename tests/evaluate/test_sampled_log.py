"""A log that kept every positive and a fifth of the negatives: from its rows to the report, it is that of all rows."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.errors import DataError
from mtrec_ray.evaluate import metrics
from mtrec_ray.evaluate.evaluate import evaluate_run
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.evaluate.predictions import read_rows
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.train.evaluation import Scores, task_metrics
from mtrec_ray.train.scoring import predictions_table, write_predictions
from tests.data.by_hand import config

KEPT = 0.2


class Sampled(NamedTuple):
    folder: Path
    run: Run
    path: str
    manifest: Manifest
    scores: dict[str, Scores]
    """The true probabilities, by split"""
    whole: dict[str, float]
    """What they come to on all test rows"""
    rate: float
    """The mean label of these"""
    found: dict[str, Any]
    """The metrics of the run"""


def write_log(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split and true probability of the kept rows [N], and labels and probabilities of all test rows [2, n]."""
    rng = np.random.default_rng(0)
    rows = 24_000
    user, item, x = rng.integers(0, 60, rows), rng.integers(0, 30, rows), rng.normal(0, 1, rows)
    chance = 1 / (1 + np.exp(2.2 - 1.2 * x - rng.normal(0, 0.7, 60)[user] - rng.normal(0, 0.7, 30)[item]))
    like = rng.random(rows) < chance
    part = np.repeat(["train", "valid", "test"], [12_000, 4_000, 8_000])
    kept = like | (rng.random(rows) < KEPT)
    table = {"user": user, "item": item, "time": 10**9 + np.arange(rows), "like": like * 1, "x": x, "part": part}
    table |= {"rate": np.where(like, 1.0, KEPT), "counts": np.full(rows, 2.0)}
    pq.write_table(pa.table({name: column[kept] for name, column in table.items()}), folder / "log.parquet")
    of_test = part == "test"
    return part[kept], chance[kept], np.stack([like[of_test] * 1.0, chance[of_test]])


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    folder = tmp_path_factory.mktemp("sampled")
    part, chance, (labels, promised) = write_log(folder)
    run = config(
        split={"by": "column", "column": "part"},
        data__logs=str(folder / "log.parquet"),
        data__prepared_dir=str(folder / "prepared"),
        data__buckets=2,
        data__numbers=["x"],
        data__columns__sampling_rate="rate",
        data__columns__row_weight="counts",
        features__aggregates=[],
        features__time=False,
        evaluate__bootstrap=100,
        evaluate__baselines=["constant", "running_rates", "gbdt"],
    )
    prepared = prepare(run, serial_tasks)
    scores, tables = {}, {}
    for split in ("valid", "test"):
        shards = Shards(prepared.path, prepared.manifest, split)
        row_ids, labels_found = in_order_of_the_log(shards)
        scores[split] = Scores(row_ids, labels_found, {"like": chance[part == split].astype(np.float32)})
        tables[split] = predictions_table(shards, scores[split], prepared.manifest.tasks)
    (folder / "run").mkdir()
    write_predictions(str(folder / "run"), tables)
    whole = {
        "auc": metrics.auc(labels, promised),
        "logloss": metrics.log_loss(labels, promised),
        "calibration": metrics.calibration_ratio(labels, promised),
    }
    rate = float(labels.mean())
    found = evaluate_run(str(folder / "run"), prepared.path, run)
    return Sampled(folder / "run", run, prepared.path, prepared.manifest, scores, whole, rate, found["splits"]["test"])


def in_order_of_the_log(shards: Shards) -> tuple[np.ndarray, np.ndarray]:
    """Row ids [N] of a split and labels [N, 1]."""
    table = shards.rows(np.arange(shards.num_requests), ["row_id", "labels"])
    ids, labels = (table.column(name).combine_chunks().flatten().to_numpy() for name in ("row_id", "labels"))
    order = np.argsort(ids)
    return ids[order], labels[order][:, None]


def test_the_truth_is_calibrated_and_has_the_figures_of_all_rows(sampled: Sampled) -> None:
    like = sampled.found["tasks"]["like"]
    for name, value in sampled.whole.items():
        assert like[name] == pytest.approx(value, rel=0.05), name
        low, high = like["intervals"][name]
        assert low < value < high, name
    assert like["n"] < 3_500  # of 8,000


def test_baselines_are_fitted_to_all_rows(sampled: Sampled) -> None:
    """Each would promise two times too much and more if the rows that are left were all there are."""
    assert sampled.manifest.tasks[0].mean == pytest.approx(sampled.rate, rel=0.05)
    for name in ("constant", "running_rates", "gbdt"):
        entry = sampled.found["baselines"][name]["like"]
        assert entry["calibration"] == pytest.approx(1, abs=0.12), name
    ne = {name: sampled.found["baselines"][name]["like"]["ne"] for name in ("constant", "running_rates", "gbdt")}
    assert ne["constant"] == pytest.approx(1)
    assert ne["running_rates"] < 0.97
    assert sampled.found["tasks"]["like"]["ne"] < ne["gbdt"] < 0.95


def test_validation_measures_as_the_report_does(sampled: Sampled) -> None:
    kinds = build_kinds(sampled.manifest, sampled.run.tasks)
    facts = facts_of(Shards(sampled.path, sampled.manifest, "test"))
    like = task_metrics(sampled.scores["test"], kinds, facts)["like"]
    for name in ("auc", "gauc", "logloss"):
        assert like[name] == pytest.approx(sampled.found["tasks"]["like"][name], rel=1e-12), name


def test_predictions_hold_the_weights(sampled: Sampled) -> None:
    rows = read_rows(f"{sampled.folder}/predictions.parquet", sampled.manifest)["test"]
    np.testing.assert_allclose(rows.weights, np.where(rows.labels["like"] > 0, 2, 2 / KEPT), rtol=1e-6)
    page = (sampled.folder / "report.html").read_text(encoding="utf-8")
    assert "a row counts its row_weight · 1 / its sampling_rate" in page
    assert json.loads((sampled.folder / "metrics.json").read_text())["splits"]["test"] == json.loads(
        json.dumps(sampled.found)
    )


def test_predictions_without_weights_are_refused(sampled: Sampled, tmp_path: Path) -> None:
    table = pq.read_table(sampled.folder / "predictions.parquet").drop_columns(["weight"])
    pq.write_table(table, tmp_path / "old.parquet")
    with pytest.raises(DataError, match=r"old.parquet lacks the columns weight"):
        read_rows(str(tmp_path / "old.parquet"), sampled.manifest)
