"""A log with a planted answer, from the log to scores: what comes next is known from the items' vectors alone.

Items lie on a circle, and after an item comes the one that lies nearest to a quarter of the circle further on. After
train all users move on to items that train has never seen.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import load_catalogue
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.data.vectors import load_vectors
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.launch import stack_trials, worker
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.evaluation import score
from mtrec_ray.train.worker import TrainingData, fit

OLD, NEW, USERS, HOUR = 24, 16, 60, 3600
START, LATER = 10**9, 10**9 + 400 * HOUR
ANGLES = 2 * np.pi * (np.arange(OLD + NEW) * 0.618034 % 1)
STEP, NOISE = np.pi / 2, 0.1
WITHOUT = 5
"""An item whose vector is missing."""


def config(folder: Path, vectors: list[str]) -> Run:
    return Run.model_validate(
        {
            "name": "planted",
            "data": {
                "logs": f"{folder}/log.csv",
                "columns": {"user": "user", "item": "item", "time": "time"},
                "items": {"path": f"{folder}/items.jsonl", "key": "item", "vectors": vectors},
                "buckets": 2,
                "prepared_dir": f"{folder}/prepared",
            },
            "tasks": {
                "next": {"kind": "retrieval", "label": "time > 0", "feedback_delay": 0, "params": {"negatives": 20}}
            },
            "split": {"train_until": LATER, "valid_until": LATER + 6 * HOUR},
            "history": {"max_events": 4},
            "features": {"min_count": 1, "aggregates": [], "id_dropout": 0.5},
            "backbone": "none",
            "matching": {"dim": 16},
            "train": {
                "epochs": 8,
                "batch_requests": 32,
                "patience": None,
                "learning_rate": {"adapters": 0.03, "towers": 0.03, "tables": 0.03},
                "metric": "next/recall@10",
            },
            "engine": {"name": "plain"},
        }
    )


def after(item: int, among: np.ndarray, rng: np.random.Generator) -> int:
    turned = np.exp(1j * (ANGLES[among] - ANGLES[item] - STEP - rng.normal(0, NOISE)))
    return int(among[np.abs(np.angle(turned)).argmin()])


def write(folder: Path) -> None:
    """Vectors of other lengths and other means, which say nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        item = int(rng.integers(OLD))
        for first, among, length in ((START, np.arange(OLD), 9), (LATER, np.arange(OLD, OLD + NEW), 4)):
            time = first + int(rng.integers(10 * HOUR))
            for _ in range(length):
                item, time = after(item, among, rng), time + int(rng.integers(1, 4)) * HOUR
                rows.append(f"{user},i{item:02d},{time}")
    (folder / "log.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    lines = []
    for item, (x, y) in enumerate(zip(np.cos(ANGLES), np.sin(ANGLES), strict=True)):
        image = rng.normal() + rng.uniform(1, 9) * np.array([x, -x, y, -y])
        lines.append(json.dumps({"item": f"i{item:02d}", "image": None if item == WITHOUT else image.tolist()}))
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("vectors")
    write(found)
    return found


def recall_in_test(folder: Path, run: Run, data: Prepared) -> float:
    """The share of rows whose item is among the first ten of all that exist by then."""

    def stream(split: str) -> StepStream:
        return StepStream.local(data.path, data.manifest, order_settings(run, split, 1))

    valid, test = stream("valid"), stream("test")
    catalogue = load_catalogue(data.path, data.manifest, load_vectors(data.path, data.manifest))
    splits = TrainingData(stream("train"), valid, facts_of(valid.order.shards), catalogue)
    fitted = fit(run, data.manifest, splits, LocalContext(folder), lambda: None)
    kinds = build_kinds(data.manifest, run.tasks)
    scores = score(fitted.engine, test.steps(0, test.order.steps_per_epoch), kinds)
    assert scores is not None
    assert (scores.catalogue["next"] > 20).all()
    return float(np.mean(scores.ranks["next"] <= 10))


@pytest.mark.parametrize("vectors", [["image"], []])
def test_next_items_that_train_has_not_seen_are_found_by_their_vectors_alone(folder: Path, vectors: list[str]) -> None:
    run = config(folder, vectors)
    found = recall_in_test(folder / f"run{len(vectors)}", run, prepare(run, serial_tasks))
    assert found > 0.8 if vectors else found < 0.25, found


def test_workers_and_stacks_of_trials_have_the_vectors_that_are_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that read them share one array."""
    run = config(folder, ["image"])
    data = prepare(run, serial_tasks)
    for module in (worker, stack_trials):
        monkeypatch.setattr(module, "use_threads", lambda cluster: None)
    anyone: Any = SimpleNamespace(world_rank=0)
    one = worker.Worker(anyone, run, data.path, anyone)
    stack = stack_trials.StackTrials(run, data.path, 1)
    stack.open()
    for catalogue, stored in ((one.catalogue, one.collator.stored), (stack._catalogue, stack._vectors)):
        assert catalogue is not None
        assert catalogue.vectors is stored["item"].values
        assert isinstance(stored["item"].values, np.memmap)
        assert stored["item"].values.shape == (1 + OLD + NEW, 4)
