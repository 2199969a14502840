"""What the proofs share: their arguments, a run in this process by the package's own functions, and tables."""

import argparse
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple, TypeVar

import torch
from scipy import stats

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import load_catalogue
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.streaming.augment.augmenter import Augmenter
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.data.vectors import load_vectors
from mtrec_ray.evaluate.facts import Facts, facts_of
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.train.augmentation import open_augmenter
from mtrec_ray.train.building import BackboneBuilder
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.evaluation import Scores, score
from mtrec_ray.train.worker import TrainingData, fit

Found = TypeVar("Found")


def parsed(description: str | None, seeds: Sequence[int]) -> argparse.Namespace:
    """`--seeds` and `--json`; `description`: of which the first line is shown."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2:
        parser.error("--seeds: an interval needs at least two")
    return arguments


def by_seed(measured: Callable[[int, Path], Found], seeds: Sequence[int]) -> list[Found]:
    """`measured(seed, empty folder)` of each seed, in their order; two at a time, in processes of their own."""
    with tempfile.TemporaryDirectory(prefix="mtrec-proof-") as parent:
        folders = [Path(parent) / f"{seed}" for seed in seeds]
        for folder in folders:
            folder.mkdir()
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
            return list(processes.map(measured, seeds, folders))


def small_run(name: str, folder: Path, seed: int, **parts: Any) -> Run:
    """A run without a language model, history and aggregates on `log.parquet` of a folder, in which the prepared data
    is kept, too; `parts` of the config go over it, key by key."""
    common = {
        "name": name,
        "seed": seed,
        "data": {
            "logs": str(folder / "log.parquet"),
            "columns": {"user": "user", "item": "item", "time": "time"},
            "prepared_dir": str(folder / "prepared"),
            "buckets": 4,
        },
        "history": {"max_events": 0, "max_candidates": 64},
        "split": {"by": "column", "column": "part"},
        "features": {"aggregates": [], "time": False, "hidden": [64], "dropout": 0.0},
        "backbone": "none",
        "towers": {"z_dim": 32, "hidden": [], "dropout": 0.0},
        "train": {"batch_requests": 8, "patience": None, "learning_rate": {"adapters": 1e-3}},
        "engine": {"name": "plain"},
    }
    return Run.model_validate(_laid_over(common, parts))


def _laid_over(common: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    merged = {
        key: _laid_over(common[key], part)
        if isinstance(part, Mapping) and isinstance(common.get(key), Mapping)
        else part
        for key, part in parts.items()
    }
    return {**common, **merged}


class Trained(NamedTuple):
    """What came of a training."""

    test: Scores
    kinds: list[TaskKind]
    facts: Facts
    """Of the test rows, in the order of the scores."""
    valid_metric: float
    """`train.metric` of the weights that were kept, higher is better."""


def test_scores(run: Run, data: Prepared) -> Scores:
    """Trains on train, chooses by valid, and scores test with the best weights; on one thread."""
    return trained(run, data).test


def trained(run: Run, data: Prepared) -> Trained:
    """As `test_scores`, with what is needed to measure lists, and the figure that chose the weights."""
    torch.set_num_threads(1)

    def stream(split: str, augmenter: Augmenter | None = None) -> StepStream:
        return StepStream.local(data.path, data.manifest, order_settings(run, split, 1), augmenter=augmenter)

    train = stream("train", open_augmenter(run, data.path, data.manifest))
    valid, test = stream("valid"), stream("test")
    catalogue = load_catalogue(data.path, data.manifest, load_vectors(data.path, data.manifest))
    splits = TrainingData(train, valid, facts_of(valid.order.shards), catalogue)
    builder = BackboneBuilder(run, data.path, data.manifest)
    with tempfile.TemporaryDirectory(prefix="mtrec-proof-") as folder:
        fitted = fit(run, data.manifest, splits, LocalContext(folder), builder)
        kinds = build_kinds(data.manifest, run.tasks)
        scores = score(fitted.engine, test.steps(0, test.order.steps_per_epoch), kinds)
        fitted.engine.close()
    assert scores is not None
    return Trained(scores, kinds, facts_of(test.order.shards)(scores.row_ids, kinds), fitted.best_metric)


def defined(figure: float | None) -> float:
    """A metric's value. Raises `ValueError` where the rows do not define it."""
    if figure is None:
        raise ValueError("the test rows do not define the metric: all labels are alike")
    return figure


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval of one figure over seeds (Student's t)."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean(values), "interval": [mean(values) - half, mean(values) + half], "seeds": list(values)}


def line(name: str, found: Mapping[str, Any], digits: int = 4, signed: bool = False) -> str:
    """A row of a Markdown table: name, mean, interval, figures of the seeds."""
    shown = [f"{value:{'+' if signed else ''}.{digits}f}" for value in (found["mean"], *found["interval"])]
    seeds = ", ".join(f"{value:{'+' if signed else ''}.{digits}f}" for value in found["seeds"])
    return f"| {name} | {shown[0]} | {shown[1]} … {shown[2]} | {seeds} |"
