"""What the proofs share: their arguments, a run in this process by the package's own functions, and tables."""

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy import stats

from mtrec_ray.config import Run
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.streaming.chunks import LocalChunks, open_order
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.train.building import BackboneBuilder
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.evaluation import Scores, score
from mtrec_ray.train.worker import TrainingData, fit


def parsed(description: str | None, seeds: Sequence[int]) -> argparse.Namespace:
    """`--seeds` and `--json`; `description`: of which the first line is shown."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def test_scores(run: Run, data: Prepared) -> Scores:
    """Trains on train, chooses by valid, and scores test with the best weights; on one thread."""
    torch.set_num_threads(1)

    def stream(split: str) -> StepStream:
        settings = order_settings(run, split, 1)
        return StepStream(
            open_order(data.path, settings), 0, Collator(data.manifest), LocalChunks(data.path, settings, 0)
        )

    valid, test = stream("valid"), stream("test")
    splits = TrainingData(stream("train"), valid, facts_of(valid.order.shards))
    builder = BackboneBuilder(run, data.path, data.manifest)
    with tempfile.TemporaryDirectory(prefix="mtrec-proof-") as folder:
        fitted = fit(run, data.manifest, splits, LocalContext(folder), builder)
        kinds = build_kinds(data.manifest, run.tasks)
        scores = score(fitted.engine, test.steps(0, test.order.steps_per_epoch), kinds)
        fitted.engine.close()
    assert scores is not None
    return scores


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval of one figure over seeds (Student's t)."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean(values), "interval": [mean(values) - half, mean(values) + half], "seeds": list(values)}


def line(name: str, found: Mapping[str, Any], digits: int = 4, signed: bool = False) -> str:
    """A row of a Markdown table: name, mean, interval, figures of the seeds."""
    shown = [f"{value:{'+' if signed else ''}.{digits}f}" for value in (found["mean"], *found["interval"])]
    seeds = ", ".join(f"{value:{'+' if signed else ''}.{digits}f}" for value in found["seeds"])
    return f"| {name} | {shown[0]} | {shown[1]} … {shown[2]} | {seeds} |"
