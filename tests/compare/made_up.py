"""Made-up comparisons: run folders as trainings leave them, with known better and worse ones."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.compare.plan import Plan, Variant, folder_name
from mtrec_ray.config_file import dump
from tests.evaluate.world import World, write_predictions

BASELINES = {"gbdt": {"like": {"auc": 0.71, "gauc": 0.6, "logloss": 0.55}}}
PAIRS = {"like~rating": 0.4, "like~mood": -0.3, "rating~mood": 0.05}


def write_runs(folder: Path, plan: Plan, world: World, noise: dict[tuple[str, str], float], without=()) -> None:
    """Every training of the plan but `without` (variant, seed). `noise`: (variant, task) -> what worsens its scores."""
    for variant, seed in plan.trainings():
        if (variant.name, seed) not in without:
            write_run(folder / folder_name(variant.slug, seed), plan, variant, seed, world, noise)


def write_run(
    folder: Path, plan: Plan, variant: Variant, seed: int, world: World, noise: dict[tuple[str, str], float]
) -> None:
    folder.mkdir(parents=True)
    run = plan.run_of(variant, seed)
    (folder / "config.yaml").write_text(dump(run))
    write_predictions(folder / "predictions.parquet", world, seed=7)
    worsen(
        folder / "predictions.parquet",
        {task: width for (name, task), width in noise.items() if name == variant.name},
        seed,
    )
    (folder / "training.json").write_text(json.dumps(summary(variant)))
    baselines = BASELINES if run.evaluate.baselines else {}
    (folder / "metrics.json").write_text(json.dumps({"splits": {"test": {"baselines": baselines}}}))
    write_log(folder / "metrics.jsonl", variant, seed)
    (folder / "report.html").write_text("<html>")


def worsen(path: Path, widths: dict[str, float], seed: int) -> None:
    """Adds normal noise to the scores of some tasks."""
    table, rng = pq.read_table(path), np.random.default_rng(seed)
    for task, width in widths.items():
        name = f"score.{task}"
        scores = table[name].to_numpy() + rng.normal(0, width, table.num_rows)
        scores = np.clip(scores, 0.01, 0.99) if task == "like" else scores
        table = table.set_column(table.column_names.index(name), name, pa.array(scores))
    pq.write_table(table, path)


def summary(variant: Variant) -> dict:
    seconds = {"like alone": 60.0, "rating alone": 50.0, "mood alone": 40.0}.get(variant.name, 75.0)
    speed = {"candidates_per_s": 900.0, "tokens_per_s": 5e4, "ingest_wait_share": 0.0, "seconds": seconds}
    kept = {"steps": 400, "best_step": 200, "best_metric": 0.8, "throughput": speed, "prepared": "prepared"}
    return kept | {"peak_memory_mib": 512.25, "trained_parameters": 1234}


def write_log(path: Path, variant: Variant, seed: int) -> None:
    """Two lines; cosines rise by .1 from the first to the second, and by .2 a seed. A method has weights and gates."""
    lines = []
    for n, step in enumerate((10, 20)):
        line = {"kind": "train", "step": step, "epoch": step / 20, "loss": 1.0}
        if variant.task is None:
            line |= {f"cosine/{pair}": value + 0.1 * n + 0.2 * seed for pair, value in PAIRS.items()}
        if variant.run.balance.method != "sum":
            line |= {"balance/like": 1.2, "balance/rating": 0.8, "gate/like/0": 0.7, "gate/like/1": 0.3}
        lines.append(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
