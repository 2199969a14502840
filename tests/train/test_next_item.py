"""A log with a planted answer, from the log to the report: after item k comes item k + 1."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import load_catalogue
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.evaluate.evaluate import evaluate_run
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.evaluation import score
from mtrec_ray.train.scoring import predictions_table, write_predictions
from mtrec_ray.train.worker import TrainingData, fit

ITEMS, USERS, LENGTH, HOUR = 40, 120, 12, 3600


def config(folder: Path) -> Run:
    return Run.model_validate(
        {
            "name": "planted",
            "data": {
                "logs": f"{folder}/log.csv",
                "columns": {"user": "user", "item": "item", "time": "time"},
                "buckets": 2,
                "prepared_dir": f"{folder}/prepared",
            },
            "tasks": {
                "next": {"kind": "retrieval", "label": "time > 0", "feedback_delay": 0, "params": {"negatives": 30}}
            },
            "history": {"max_events": 8},
            "features": {"min_count": 1, "aggregates": [], "id_dropout": 0.0},
            "backbone": "none",
            "matching": {"dim": 16},
            "train": {
                "epochs": 20,
                "batch_requests": 16,
                "patience": None,
                "learning_rate": {"adapters": 0.03, "towers": 0.03, "tables": 0.03},
                "metric": "next/ndcg@10",
            },
            "engine": {"name": "plain"},
            "evaluate": {"bootstrap": 20},
        }
    )


def write_log(folder: Path) -> None:
    """Each user walks through the items in a circle, from a place and a time of their own; one step in ten jumps."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        item, time = int(rng.integers(ITEMS)), int(1e9 + rng.integers(40) * HOUR)
        for _ in range(LENGTH):
            rows.append(f"{user},i{item:02d},{time}")
            item = int(rng.integers(ITEMS)) if rng.random() < 0.1 else (item + 1) % ITEMS
            time += int(rng.integers(1, 5)) * HOUR
    (folder / "log.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")


@dataclass(frozen=True)
class Finished:
    run: Run
    prepared: Prepared
    folder: str
    metrics: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("planted")
    write_log(folder)
    run = config(folder)
    data = prepare(run, serial_tasks)

    def stream(split: str) -> StepStream:
        return StepStream.local(data.path, data.manifest, order_settings(run, split, 1))

    valid = stream("valid")
    catalogue = load_catalogue(data.path, data.manifest)
    splits = TrainingData(stream("train"), valid, facts_of(valid.order.shards), catalogue)
    fitted = fit(run, data.manifest, splits, LocalContext(folder / "run"), lambda: None)
    tables = {}
    for split in ("valid", "test"):
        source = stream(split)
        kinds = build_kinds(data.manifest, run.tasks)
        scores = score(fitted.engine, source.steps(0, source.order.steps_per_epoch), kinds)
        assert scores is not None
        tables[split] = predictions_table(source.order.shards, scores, data.manifest.tasks)
    write_predictions(f"{folder}/run", tables)
    return Finished(run, data, f"{folder}/run", evaluate_run(f"{folder}/run", data.path, run))


def test_what_comes_next_is_found_and_popularity_does_not_know_it(finished: Finished) -> None:
    test = finished.metrics["splits"]["test"]
    found, popular = test["tasks"]["next"], test["baselines"]["popularity"]["next"]
    assert found["recall@10"] > 0.75
    assert found["ndcg@10"] > 0.6
    assert popular["recall@10"] < 0.45
    difference = found["difference"]["popularity"]["recall@10"]
    assert difference["value"] == pytest.approx(found["recall@10"] - popular["recall@10"])
    assert difference["interval"][0] > 0.3
    low, high = found["intervals"]["ndcg@10"]
    assert low < found["ndcg@10"] < high


def test_the_figures_follow_from_the_predictions_alone(finished: Finished) -> None:
    table = pq.read_table(f"{finished.folder}/predictions.parquet").to_pydict()
    rank = np.array([r for r, split in zip(table["rank.next"], table["split"], strict=True) if split == "test"])
    entry = finished.metrics["splits"]["test"]["tasks"]["next"]
    assert entry["recall@10"] == pytest.approx(np.mean(rank <= 10))
    assert entry["mrr"] == pytest.approx(np.mean(1 / rank))
    assert entry["ndcg@10"] == pytest.approx(np.mean(np.where(rank <= 10, 1 / np.log2(1 + rank), 0)))
    assert set(table["catalogue.next"]) == {ITEMS}
    again = evaluate_run(finished.folder, finished.prepared.path, finished.run)
    assert again["splits"] == finished.metrics["splits"]


def test_the_popularity_baseline_ranks_by_train_positives_among_what_existed(finished: Finished) -> None:
    catalogue = load_catalogue(finished.prepared.path, finished.prepared.manifest)
    assert catalogue is not None
    counts = catalogue.positives["next"]
    table = pq.read_table(f"{finished.folder}/baselines/popularity.parquet").to_pylist()
    items = {row["row_id"]: row for row in pq.read_table(f"{finished.folder}/predictions.parquet").to_pylist()}
    order = sorted(range(ITEMS), key=lambda j: (-counts[j], j))
    for row in table:
        said = items[row["row_id"]]
        own, time = catalogue.items.to_pylist().index(said["item"]), said["time"]
        exist = [j for j in order if catalogue.first_seen[j] <= time]
        assert row["rank.next"] == exist.index(own) + 1
        assert row["score.next"] == pytest.approx(np.log1p(counts[own]))


def test_the_report_shows_the_ranking_against_popularity(finished: Finished) -> None:
    page = Path(f"{finished.folder}/report.html").read_text()
    for text in ("NDCG@10", "Recall@10".lower(), "popularity", "positives, each among all items of its time"):
        assert text in page
