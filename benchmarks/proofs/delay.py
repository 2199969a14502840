"""Planted delays: how many conversions each way of reading young rows promises, against those that came.

    python benchmarks/proofs/delay.py [--seeds 101 102 103 104 105] [--json delay.json]

The log: a row converts some time with probability sigmoid(-1 + x1 + x2 x3), after an exponential delay whose mean is 2
days, or 5 for half of the items, at random. What comes after the window of 7 days does not count. Training ends after
14 days, and reads what is known then. The log was written after 31 days, without what came later. Test rows are those
of the days 18 to 31; the package measures those of them whose window is over then.

All ways make one pass over the rows and keep the last weights: a choice by validation rows, whose labels are those of
days to come, would tell the naive way what it lacks. Judged is the sum of the scores over the conversions on the test
rows: 1 is right, 0.8 promises a fifth too few.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from proof import defined, line, parsed, small_run, summary, test_scores

from mtrec_ray.config import Run
from mtrec_ray.data.prepare import prepare
from mtrec_ray.evaluate.metrics import auc, calibration_ratio
from mtrec_ray.launch.session import ray_session

SEEDS = [101, 102, 103, 104, 105]
"""Fixed before anything was tuned, which was done on seeds 1 to 3."""
DAY = 86_400
START = 18_600 * DAY
TRAIN_DAYS, VALID_DAYS, LOG_DAYS, WINDOW_DAYS = 14, 3, 31, 7
ROWS_PER_DAY, USERS, ITEMS = 3000, 2000, 300
MEAN_DAYS = (2.0, 5.0)
WAYS: dict[str, dict[str, Any]] = {
    "inside_window: negative": {"inside_window": "negative"},
    "inside_window: unobserved": {"inside_window": "unobserved"},
    "inside_window: excluded": {"inside_window": "excluded"},
    "delayed, dfm": {"kind": "delayed", "params": {"loss": "dfm"}},
    "delayed, fnw": {"kind": "delayed", "params": {"loss": "fnw"}},
}
NAIVE = "inside_window: negative"
CORRECTED = ("delayed, dfm", "delayed, fnw")
RIGHT, TOO_LOW = (0.97, 1.03), 0.9


def main() -> None:
    arguments = parsed(__doc__, SEEDS)
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    areas: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="mtrec-proof-") as place:
        folder = Path(place)
        for seed in arguments.seeds:
            (folder / f"{seed}").mkdir()
            pq.write_table(log(np.random.default_rng(seed)), folder / f"{seed}/log.parquet")
        runs = {(seed, way): config(folder, seed, task) for seed in arguments.seeds for way, task in WAYS.items()}
        with ray_session(next(iter(runs.values())).cluster):
            data = {key: prepare(run) for key, run in runs.items()}
        for (seed, way), run in runs.items():
            scores = test_scores(run, data[seed, way])
            labels, promised = scores.labels[:, 0], scores.scores["buy"]
            over = ~np.isnan(labels)
            ratios[way].append(defined(calibration_ratio(labels[over], promised[over])))
            areas[way].append(defined(auc(labels[over], promised[over])))
            print(f"seed {seed} {way}: {ratios[way][-1]:.4f}, AUC {areas[way][-1]:.4f}", flush=True)
    result = conclude(ratios, areas, arguments.seeds)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1))


def log(rng: np.random.Generator) -> pa.Table:
    """One row per shown item, as the log stands when it is written."""
    size = ROWS_PER_DAY * LOG_DAYS
    items = rng.normal(size=(ITEMS, 3))
    slow = rng.random(ITEMS) < 0.5
    item = rng.integers(0, ITEMS, size)
    x = items[item]
    time = np.sort(rng.uniform(0, LOG_DAYS * DAY, size))
    converts = rng.random(size) < 1 / (1 + np.exp(1 - x[:, 0] - x[:, 1] * x[:, 2]))
    came = time + rng.exponential(np.where(slow[item], MEAN_DAYS[1], MEAN_DAYS[0]) * DAY)
    written = converts & (came <= LOG_DAYS * DAY)
    return pa.table(
        {
            "user": rng.integers(0, USERS, size),
            "item": item,
            "time": START + time,
            "buy": written.astype(int),
            "bought_at": pa.array(START + came, mask=~written),
            "slow": np.where(slow[item], "slow", "fast"),
            **{f"x{i + 1}": x[:, i] for i in range(3)},
        }
    )


def config(folder: Path, seed: int, task: dict[str, Any]) -> Run:
    train_until = START + TRAIN_DAYS * DAY
    return small_run(
        "delay",
        folder / f"{seed}",
        seed,
        data={"numbers": ["x1", "x2", "x3"], "categories": ["slow"]},
        tasks={"buy": {"label": "buy", "feedback_time": "bought_at", "window": f"{WINDOW_DAYS}d", **task}},
        split={"by": "time", "column": None, "train_until": train_until, "valid_until": train_until + VALID_DAYS * DAY},
        towers={"hidden": [32]},
        train={
            "epochs": 1,
            "batch_requests": 4,
            "patience": 3,
            "metric": "buy/auc",
            "learning_rate": {"towers": 4e-3, "tables": 4e-3},
        },
    )


def conclude(ratios: dict[str, list[float]], areas: dict[str, list[float]], seeds: list[int]) -> dict[str, Any]:
    """Prints the tables."""
    found = {way: summary(values) for way, values in ratios.items()}
    print(f"\n| promised / actual conversions | mean | 95 % | seeds {', '.join(map(str, seeds))} |\n|---|---|---|---|")
    for way, figures in found.items():
        print(line(way, figures, digits=3))
    print("\n| AUC | mean | 95 % | by seed |\n|---|---|---|---|")
    of_areas = {way: summary(values) for way, values in areas.items()}
    for way, figures in of_areas.items():
        print(line(way, figures))
    held = {f"{way} within {RIGHT[0]} .. {RIGHT[1]}": RIGHT[0] <= found[way]["mean"] <= RIGHT[1] for way in CORRECTED}
    held[f"{NAIVE} below {TOO_LOW}"] = found[NAIVE]["mean"] < TOO_LOW
    print("\n" + "; ".join(f"{name}: {'yes' if yes else 'NO'}" for name, yes in held.items()))
    return {"ratio": found, "auc": of_areas, "held": held}


if __name__ == "__main__":
    main()
