"""What the size of an id table costs: a step with ten million rows, over the same step with a hundred thousand.

    python benchmarks/id_tables.py [--rows 100000 10000000] [--rounds 9] [--json id_tables.json]

A model of side features alone (`backbone: none`, so that nothing hides the tables' share) with a table of users and one
of items, 16 wide, in the plain engine on one thread. All sizes step in turns on the same batches but for their ids,
which are drawn anew for every batch, from all rows of the table alike. Each round gives a ratio to the first size of
that round; medians over rounds, of processor time and of wall time. Memory: the resident set of a process of its own
for each size, before the model was built and after a hundred steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from sampled import StepData, machine
from turns import resident_mib

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import Manifest, NumberEntry, TaskEntry
from mtrec_ray.engine.base import Engine
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.multitask.balancing.balancer import Balancer, make_method
from mtrec_ray.multitask.losses import make_objective
from mtrec_ray.train.building import open_engine
from mtrec_ray.train.loop import Recipe, training_steps

TARGET, TARGET_ROWS = 1.2, (100_000, 10_000_000)
"""Most that a step with the larger table may cost over one with the smaller."""
DIM, STEPS, NUMBERS = 16, 8, 16
"""Steps of a turn"""
CONFIG = """
name: tables
data: {logs: none.csv, columns: {user: user, item: item, time: time}}
tasks: {click: {label: click}}
backbone: none
features: {user_dim: 16, item_dim: 16}
train: {log_every: 1000000, decay: constant, warmup: 0}
balance: {conflict: false}
engine: {name: plain}
"""


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    if arguments.memory:
        print(json.dumps(memory_of(arguments.rows[0], arguments.candidates)))
        return
    result = measure(arguments.rows, arguments.rounds, arguments.candidates)
    result["memory_mib"] = {str(rows): memory_apart(rows, arguments.candidates) for rows in arguments.rows}
    result["machine"] = machine()
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print_table(result)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(TARGET_ROWS), help="of each table, in its sizes")
    parser.add_argument("--rounds", type=int, default=9, help="in which each size takes its turn; two more warm up")
    parser.add_argument("--candidates", type=int, default=1024, help="in a step")
    parser.add_argument("--memory", action="store_true", help="of the first size alone, in this process")
    parser.add_argument("--json", type=Path, default=Path("id_tables.json"))
    return parser.parse_args()


def measure(sizes: list[int], rounds: int, candidates: int) -> dict[str, Any]:
    """Seconds of each size's steps, in turns."""
    ways = {rows: stepping(rows, candidates) for rows in sizes}
    seconds: dict[int, dict[str, list[float]]] = {rows: {"cpu": [], "wall": []} for rows in sizes}
    for turn in range(rounds + 2):
        for rows, steps in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(STEPS):
                next(steps)
            if turn > 1:
                seconds[rows]["cpu"].append((time.process_time() - cpu) / STEPS)
                seconds[rows]["wall"].append((time.perf_counter() - wall) / STEPS)
    return {
        "candidates": candidates,
        "rows": sizes,
        "seconds": {str(rows): {k: statistics.median(v) for k, v in of.items()} for rows, of in seconds.items()},
        "ratios": {
            str(rows): {clock: _ratio(of[clock], seconds[sizes[0]][clock]) for clock in of}
            for rows, of in seconds.items()
        },
    }


def _ratio(own: list[float], first: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(own, first, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def stepping(rows: int, candidates: int) -> Any:
    """Takes one optimizer step each time it is asked."""
    run = config_file.parse(CONFIG, [])
    manifest = manifest_of(rows)
    engine = engine_of(run, manifest)
    objective = make_objective(run, manifest)
    balancer = Balancer(make_method(run), run.balance.scope, objective, engine, run.balance.conflict)
    recipe = Recipe(objective, balancer, 1_000_000, 0.0, "constant", run.seed, 1_000_000)
    return training_steps(engine, steps_of(rows, candidates), recipe)


def engine_of(run: Run, manifest: Manifest) -> Engine:
    return open_engine(run, manifest, torch.device("cpu"), lambda: None)[0]


def steps_of(rows: int, candidates: int) -> Any:
    """Batches that differ between sizes in their ids alone, which are never the same twice."""
    ids = torch.Generator().manual_seed(1)
    same = [batch_of(candidates, seed) for seed in range(STEPS)]
    for n, batch in enumerate(cycle(same)):
        user, item = (torch.randint(1, rows, (candidates,), generator=ids) for _ in range(2))
        yield StepData(n, [replace(batch, user_index=user, item_index=item)])


def batch_of(candidates: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(candidates, NUMBERS, generator=generator)
    labels = (numbers[:, :1] + torch.randn(candidates, 1, generator=generator) > 0).float()
    zeros, count = torch.zeros(candidates, dtype=torch.int64), torch.arange(candidates)
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        ids=nothing,
        layout=RequestLayout.from_arrays([], [], [], [], True),
        token_uids=nothing,
        user_index=zeros,
        item_index=zeros,
        categories=zeros[:, None][:, :0],
        numbers=numbers,
        labels=labels,
        label_weights=torch.ones_like(labels),
        row_ids=count + seed * candidates,
        times=zeros,
        event_item=nothing,
        event_feedback=torch.zeros(0, 1),
        event_time=nothing,
        request=count,
        context=torch.zeros(candidates, 0),
        delays=torch.full((candidates, 1), torch.nan),
        elapsed=torch.full((candidates,), torch.nan),
        domain=zeros,
        policy=zeros,
        shown=zeros,
        candidate_event_start=zeros,
        candidate_event_end=zeros,
    )


def manifest_of(rows: int) -> Manifest:
    seen = {"train": 1, "valid": 1, "test": 1}
    task = TaskEntry(name="click", kind="binary", labels="binary", observed=seen, positives=seen, mean=0.5, std=0.5)
    return Manifest(
        fingerprint="0" * 16,
        tasks=[task],
        categories=[],
        numbers=[
            NumberEntry(name=f"n{n}", index=n, kind="number", mean=0.0, std=1.0, quantiles=[]) for n in range(NUMBERS)
        ],
        num_users=rows,
        num_items=rows,
        context=[],
        domains=[""],
        policies=[""],
        positions=[],
        propensities=0,
        history_layout="staircase",
        vocab_size=0,
        max_request_tokens=0,
        max_position=0,
        row_group_requests=32,
        shards={},
        documents=[],
        boundaries={},
        counts={},
    )


def memory_of(rows: int, candidates: int) -> dict[str, float]:
    """MiB of this process before the model was built, and after a hundred steps."""
    before = resident_mib("VmRSS")
    steps = stepping(rows, candidates)
    for _ in range(100):
        next(steps)
    return {"before": before, "after": resident_mib("VmRSS"), "peak": resident_mib("VmHWM")}


def memory_apart(rows: int, candidates: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", "--rows", str(rows), "--candidates", str(candidates)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def print_table(result: dict[str, Any]) -> None:
    print(f"{result['candidates']} candidates a step, two tables {DIM} wide")
    heads = f"{'rows of each':>12}{'ms a step':>11}{'ratio, cpu':>12}{'least':>7}{'most':>7}{'wall':>7}"
    print(f"{heads}{'MiB':>10}{'the model':>10}")
    for rows in map(str, result["rows"]):
        ratio, memory = result["ratios"][rows], result["memory_mib"][rows]
        cpu = ratio["cpu"]
        print(
            f"{int(rows):>12,}{1e3 * result['seconds'][rows]['cpu']:>11.2f}{cpu['median']:>12.3f}{cpu['least']:>7.3f}"
            f"{cpu['most']:>7.3f}{ratio['wall']['median']:>7.3f}{memory['after']:>10.0f}"
            f"{memory['after'] - memory['before']:>10.0f}"
        )
    if tuple(result["rows"]) == TARGET_ROWS:
        print(f"wanted: at most {TARGET}")
    print(f"\n{result['machine']}")


if __name__ == "__main__":
    main()
