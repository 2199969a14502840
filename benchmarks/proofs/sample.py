"""Generated logs judge models: in every scenario the ideal observer is beyond simple methods, by each of its senses.

    python benchmarks/proofs/sample.py [--scenarios ecommerce ads ...] [--users 2000] [--seeds 0] [--json sample.json]

Of every binary task with 1,000 ones on the test rows: the observer is at least .05 AUC above the best of popularity,
running rates, ids alone, text alone and gradient-boosted trees; and without text, ids or history it loses at least .02
each. About half a minute of one processor for each scenario and seed.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtrec_ray.data.sample import SCENARIOS, Size, World
from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.judging import BLIND, Figures, judge

LEAST_GAP, LEAST_WORTH, LEAST_ONES = 0.05, 0.02, 1000
_COLUMNS = (
    "rows",
    "ones",
    "oracle",
    "GAUC",
    "observer",
    "GAUC",
    "best simple",
    "gap",
    *(f"no {name}" for name in BLIND),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"| scenario, seed | task | {' | '.join(_COLUMNS)} |\n|{'---|' * (2 + len(_COLUMNS))}")
    found, missed = [], []
    for name in arguments.scenarios:
        for seed in arguments.seeds:
            figures, seconds = judged(name, Size(users=arguments.users, seed=seed))
            for task, of_task in figures.items():
                print(f"| {name}, {seed} | {task} | {' | '.join(cells(of_task))} |", flush=True)
                missed += [f"{name}, {seed}: {task}: {what}" for what in misses(of_task)]
            told = {task: asdict(of_task) for task, of_task in figures.items()}
            found.append({"scenario": name, "seed": seed, "seconds": seconds, "tasks": told})
    print("\n" + ("\n".join(missed) if missed else "held in all of them"))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"found": found, "missed": missed}, indent=1))
    raise SystemExit(bool(missed))


def judged(name: str, size: Size) -> tuple[dict[str, Figures], dict[str, float]]:
    """Figures of each task, and seconds of generating and of judging."""
    start = time.perf_counter()
    world = World.drawn(SCENARIOS[name], size)
    days = list(world.days())
    log, truth = Exposures.joined([rows for rows, _ in days]), Truth.joined([truth for _, truth in days])
    generated = time.perf_counter()
    figures, _ = judge(world, log, truth, worth=True)
    return figures, {"generate": generated - start, "judge": time.perf_counter() - generated}


def cells(figures: Figures) -> list[str]:
    areas = [*figures.oracle, *figures.observer]
    shown = [f"{figures.rows:,}", f"{figures.positives:,}", *(f"{area:.3f}" for area in areas)]
    best = f"{figures.floors[figures.best_floor]:.3f} {figures.best_floor}"
    return [*shown, best, f"{figures.gap:+.3f}", *(f"{-figures.worth[name]:+.3f}" for name in BLIND)]


def misses(figures: Figures) -> list[str]:
    if figures.positives < LEAST_ONES:
        return []
    small: dict[str, Any] = {
        f"{name} is worth {worth:.3f}": worth < LEAST_WORTH for name, worth in figures.worth.items()
    }
    small[f"the gap is {figures.gap:.3f}"] = figures.gap < LEAST_GAP
    return [what for what, too_small in small.items() if too_small]


if __name__ == "__main__":
    main()
