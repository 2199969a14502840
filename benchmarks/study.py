"""Runs a study, that is one config in several variants and seeds, and prints its table.

    python benchmarks/study.py benchmarks/studies/movielens_a.yaml [--only NAME ...] [--seeds 0 1] [--table] [--paired]

A study is a YAML file: `config`, `seeds` and `variants`, a map from a name to a list of `--set` assignments. Every run
is a plain `mtrec train`, so its folder holds the report; finished runs are not repeated. The figures are read from
each run's metrics.json: test metrics, mean over seeds, with the baselines of the first seed beside them. `--paired`
adds the difference of each variant to the first one, with intervals by user.
"""

import argparse
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import yaml
from paired import paired_table

from mtrec_ray import config_file
from mtrec_ray.config import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--only", nargs="*", help="variants to run; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, help="instead of the study's seeds")
    parser.add_argument("--table", action="store_true", help="train nothing, print what is finished")
    parser.add_argument("--paired", action="store_true", help="add the paired differences to the first variant")
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text())
    seeds = arguments.seeds if arguments.seeds is not None else study["seeds"]
    runs = {
        (variant, seed): variant_run(study["config"], variant, assignments, seed)
        for variant, assignments in study["variants"].items()
        if not arguments.only or variant in arguments.only
        for seed in seeds
    }
    if not arguments.table:
        train_missing(runs)
    print(table(runs))
    if arguments.paired:
        first, *others = dict.fromkeys(variant for variant, _ in runs)
        for other in others:
            sides = [[runs[variant, seed] for seed in seeds] for variant in (first, other)]
            print("\n" + paired_table(*sides, (first, other)))


def variant_run(config: str, variant: str, assignments: list[str], seed: int) -> Run:
    slug = re.sub(r"[^a-z0-9]+", "-", variant.lower()).strip("-")
    name = config_file.load(config).name
    return config_file.load(config, [*assignments, f"seed={seed}", f"name={name}-{slug}-{seed}"])


def train_missing(runs: dict[tuple[str, int], Run]) -> None:
    """One Ray session for all runs that have no metrics.json yet."""
    from mtrec_ray.launch.session import ray_session
    from mtrec_ray.launch.train import train

    missing = {name: run for name, run in runs.items() if read_metrics(run) is None}
    if not missing:
        return
    largest = max((run.cluster for run in missing.values()), key=lambda of: of.workers * of.cpus_per_worker)
    with ray_session(largest):
        for (variant, seed), run in missing.items():
            started = time.monotonic()
            train(run)
            print(f"{variant}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)


def read_metrics(run: Run) -> dict[str, Any] | None:
    path = Path(run.cluster.storage) / run.name / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(runs: dict[tuple[str, int], Run]) -> str:
    """Markdown: a row per variant, test metrics of every task as mean ± deviation over seeds; then the baselines."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for (variant, _), run in runs.items():
        metrics = read_metrics(run)
        if metrics is not None:
            by_variant.setdefault(variant, []).append(metrics)
    if not by_variant:
        return "Nothing is finished yet."
    first = next(iter(by_variant.values()))[0]
    columns = [
        (task, metric)
        for task, values in first["splits"]["test"]["tasks"].items()
        for metric in ("auc", "gauc", "logloss", "rmse", "mae")
        if metric in values
    ]
    lines = ["| variant | seeds | " + " | ".join(f"{task} {metric}" for task, metric in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for variant, results in by_variant.items():
        cells = [spread([m["splits"]["test"]["tasks"][t].get(k) for m in results]) for t, k in columns]
        lines.append(f"| {variant} | {len(results)} | " + " | ".join(cells) + " |")
    for name, tasks in first.get("baselines", {}).items():
        cells = [spread([tasks.get(t, {}).get(k)]) for t, k in columns]
        lines.append(f"| *{name}* | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float | None]) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    deviation = f" ± {statistics.stdev(present):.4f}" if len(present) > 1 else ""
    return f"{statistics.mean(present):.4f}{deviation}"


if __name__ == "__main__":
    main()
