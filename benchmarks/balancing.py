"""What balancing costs: an optimizer step with each method, over the same step with the plain sum of the tasks.

    python benchmarks/balancing.py [--tasks 2 4 8] [--rounds 7] [--json balancing.json]

A decoder with LoRA on a generated log, the plain engine, one thread, one micro-step a step. All methods step on one
model and the same batches, taking turns, and each round gives a ratio to the plain sum of that round; medians over
rounds, of processor time. Beside the methods, per number of tasks:

- `conflict`: the plain sum with the cosines between tasks measured in every step (by default: every `train.log_every`);
- `backward per task`: the plain sum, with the gradient of each task's loss taken by a backward pass of its own through
  the backbone, which is what balancing costs where it is done at the parameters.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from sampled import StepData, machine, sample_run

from mtrec_ray.config import Balance, Run
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.engine.base import Engine
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.multitask.balancing.balancer import Balancer, make_method
from mtrec_ray.multitask.losses import Objective, make_objective
from mtrec_ray.train.building import BackboneBuilder, open_engine
from mtrec_ray.train.loop import Recipe, training_steps

TARGET_TASKS, TARGET = 8, 1.10
"""Most that a step with `micro_step` may cost over the plain sum's, with so many tasks."""
SUM, CONFLICT, PER_TASK = "sum", "sum, conflict", "sum, backward per task"
USERS, BATCHES = 300, 3
TWICE = ("stch", "famo", "pcgrad", "upgrad", "nash_mtl")
"""Also measured in scope `step`, which costs every method a forward pass: two that read losses and three solvers."""
TASKS = {
    "click": {"label": "click"},
    "like": {"label": "like"},
    "dwell": {"kind": "regression", "label": "log(dwell_s + 1)"},
    "purchase": {"label": "purchase"},
    "stay": {"label": "dwell_s > 10"},
    "long": {"label": "dwell_s > 60"},
    "engaged": {"label": "click + like >= 1"},
    "seconds": {"kind": "regression", "label": "dwell_s", "params": {"loss": "mae"}},
}


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "quick": arguments.quick, "tables": []}
    with tempfile.TemporaryDirectory(prefix="mtrec-balancing-") as folder:
        for tasks in arguments.tasks:
            table = measure(Bench.make(f"{folder}/{tasks}", tasks, arguments.batch_requests), arguments)
            result["tables"].append(table)
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
            print_table(table)
    print(f"\n{result['machine']}")
    if arguments.quick:
        print("--quick: none of these figures means anything")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8], help=f"numbers of tasks, 2 to {len(TASKS)}")
    parser.add_argument("--rounds", type=int, default=7, help="in which each method takes its turn; one more warms up")
    parser.add_argument("--batch-requests", type=int, default=2, help="requests in a step")
    parser.add_argument("--quick", action="store_true", help="one round of two tasks: whether it runs")
    parser.add_argument("--json", type=Path, default=Path("balancing.json"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks, arguments.rounds = [2], 1
    if not all(2 <= tasks <= len(TASKS) for tasks in arguments.tasks):
        parser.error(f"--tasks: 2 to {len(TASKS)}")
    return arguments


@dataclass(frozen=True)
class Bench:
    """One model of so many tasks, and the steps that all methods take turns on."""

    run: Run
    data: Prepared
    engine: Engine
    objective: Objective
    steps: list[StepData]

    @classmethod
    def make(cls, folder: str, tasks: int, batch_requests: int) -> "Bench":
        wanted = dict(list(TASKS.items())[:tasks])
        settings = (f"train.batch_requests={batch_requests}", "engine.name=plain", "train.micro_tokens=1000000")
        run = sample_run(folder, USERS, (f"tasks={json.dumps(wanted)}", "train.log_every=1000000", *settings))
        data = prepare(run, serial_tasks)
        stream = StepStream.local(data.path, data.manifest, order_settings(run, "train", 1))
        steps = [StepData(n, step.batches) for n, step in enumerate(stream.steps(0, BATCHES))]
        engine, _ = open_engine(run, data.manifest, torch.device("cpu"), BackboneBuilder(run, data.path, data.manifest))
        return cls(run, data, engine, make_objective(run, data.manifest), steps)

    def stepping(self, balance: Balance, every_step: bool = False) -> Callable[[], object]:
        """Takes one optimizer step each time it is called; `every_step`: and logs it, with the tasks' conflict."""
        run = self.run.model_copy(update={"balance": balance})
        balancer = Balancer(make_method(run), balance.scope, self.objective, self.engine, balance.conflict)
        many, log_every = 1_000_000, 1 if every_step else 1_000_000
        recipe = Recipe(self.objective, balancer, many, run.train.warmup, run.train.decay, run.seed, log_every)
        taken = training_steps(self.engine, cycle(self.steps), recipe)
        return lambda: next(taken)

    def per_task(self) -> Callable[[], object]:
        """The plain sum's step with a backward pass for each task."""

        def steps() -> Iterator[None]:
            for n, data in enumerate(cycle(self.steps)):
                (batch,) = data.batches
                scales = self.objective.scales(self.objective.counts(batch))
                self.engine.model.train()
                sums = self.objective.loss_sums(self.engine.forward(batch, DropoutKey(self.run.seed, n)), batch)
                *others, last = sums * scales
                for loss in others:
                    loss.backward(retain_graph=True)
                self.engine.backward(last, last=True)
                self.engine.step(1.0)
                yield

        taken = steps()
        return lambda: next(taken)


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of processor time of each way's steps, in turns."""
    quiet = {"conflict": False}
    ways: dict[str, Callable[[], object]] = {SUM: bench.stepping(Balance(**quiet))}
    ways[CONFLICT] = bench.stepping(Balance(), every_step=True)
    ways[PER_TASK] = bench.per_task()
    for method in sorted(METHODS.names()):
        if method == SUM:
            continue
        ways[method] = bench.stepping(Balance(method=method, **quiet))
        if method in TWICE:
            ways[f"{method}, scope step"] = bench.stepping(Balance(method=method, scope="step", **quiet))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds + 1):
        for name, take_step in ways.items():
            start = time.process_time()
            for _ in bench.steps:
                take_step()
            if turn:
                seconds[name].append((time.process_time() - start) / len(bench.steps))
    bench.engine.close()
    ratios = {
        name: [own / plain for own, plain in zip(taken, seconds[SUM], strict=True)] for name, taken in seconds.items()
    }
    return {
        "tasks": len(bench.run.tasks),
        "tokens_per_step": statistics.mean(len(batch.ids) for step in bench.steps for batch in step.batches),
        "candidates_per_step": statistics.mean(b.num_candidates for step in bench.steps for b in step.batches),
        "seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "ratios": {name: statistics.median(found) for name, found in ratios.items()},
        "spread": {name: [min(found), max(found)] for name, found in ratios.items()},
    }


def print_table(table: dict[str, Any]) -> None:
    print(f"\n{table['tasks']} tasks, {table['tokens_per_step']:.0f} tokens and ", end="")
    print(f"{table['candidates_per_step']:.0f} candidates a step")
    print(f"{'':<28}{'ms a step':>10}{'ratio':>8}{'least':>8}{'most':>8}")
    for name, ratio in table["ratios"].items():
        low, high = table["spread"][name]
        print(f"{name:<28}{1e3 * table['seconds'][name]:>10.0f}{ratio:>8.3f}{low:>8.3f}{high:>8.3f}")
    if table["tasks"] == TARGET_TASKS:
        methods = {name: r for name, r in table["ratios"].items() if name in METHODS.names()}
        worst = max(methods, key=methods.__getitem__)
        print(f"most of all methods in scope micro_step: {worst} {methods[worst]:.3f}, at most {TARGET:.2f}")


if __name__ == "__main__":
    main()
