"""The whole `mtrec train` step against a bare torch loop on the same batches: candidates/s of one over the other.

    python benchmarks/stack.py [--turns 8] [--json stack.json]

The training job is the one of `mtrec train`, on one Ray Train worker with one thread: Ray Data reads and orders, a
thread collates, DeepSpeed steps, metrics are logged and progress is shown. After every few steps its clock stops, and
the bare loop (model, loss, backward, AdamW; no clipping, no schedule, no logs) does the same, already collated batches
in the same process, with a model of its own from the same first weights. Evaluations and checkpoints are left out.

Two ratios, medians over turns: by wall clock, which on a busy machine is noisy, and by processor time, where the job
pays for all threads of its process: training, collating (also what it collates ahead during the bare loop's turns) and
Ray's own. What Ray's other processes do shows in the wall clock only.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from sampled import Enough, Spent, machine, sample_run

from mtrec_ray.config import Run
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.probe import choose_mode
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.multitask.losses import make_objective
from mtrec_ray.train.meters import Meter, MetricsLog

TARGET = 0.9
LEAST_STEP_S = 0.3
USERS = 600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=8, help="measured turns of each side; one more warms up")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps in a turn")
    parser.add_argument("--batch-requests", type=int, default=4, help="requests in a step")
    parser.add_argument("--engine", choices=("deepspeed", "plain"), default="deepspeed")
    parser.add_argument("--json", type=Path, default=Path("stack.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtrec-stack-") as folder:
        settings = (f"train.batch_requests={arguments.batch_requests}", f"engine.name={arguments.engine}")
        run = sample_run(folder, USERS, (*settings, "train.epochs=100", "train.evaluations_per_epoch=1"))
        measured = train_measured(run, arguments.turns, arguments.steps)
    result = summary(measured, arguments.steps) | {"machine": machine(), "engine": arguments.engine}
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print_result(result)


def train_measured(run: Run, turns: int, steps: int) -> dict[str, Any]:
    """Starts the training job as `mtrec train` does, and ends it when it has been measured."""
    from mtrec_ray.data.prepare import prepare
    from mtrec_ray.launch.jobs import absolute
    from mtrec_ray.launch.relay import relayed
    from mtrec_ray.launch.runs import RunFolder
    from mtrec_ray.launch.session import ray_session
    from mtrec_ray.launch.train import run_training_job

    folder = RunFolder.of(run)
    with ray_session(run.cluster):
        folder.open(run, overwrite=False)
        prepared = absolute(prepare(run).path)
        arguments = {"run": run, "prepared": prepared, "run_folder": folder.path, "title": ""}
        with relayed() as relay:
            sizes = {"turns": turns, "steps": steps}
            measured: dict[str, Any] = run_training_job(measured_worker, arguments | sizes, run, folder, relay)
    return measured


def measured_worker(relay: Any, turns: int, steps: int, **arguments: Any) -> dict[str, Any]:
    """`launch.worker.train_worker`, whose stream of train steps takes turns with the bare loop."""
    from mtrec_ray.launch import worker

    def fit_in_turns(run: Run, manifest: Any, data: Any, context: Any, build_backbone: Callable[[], Any]) -> Any:
        if data.train.order.steps_per_epoch <= (turns + 1) * steps:
            raise ValueError(f"an epoch of {data.train.order.steps_per_epoch} steps would end, with an evaluation")
        bare = BareLoop(run, manifest, build_backbone())
        taking_turns = TakingTurns(data.train, bare, clock, turns, steps)
        return fit(run, manifest, replace(data, train=taking_turns), context, build_backbone)

    from dataclasses import replace

    fit = worker.fit
    with ExitStack() as stack:
        clock = JobClock(stack)
        stack.enter_context(patch.object(worker, "fit", fit_in_turns))
        try:
            worker.train_worker(relay, **arguments)
        except Enough as enough:
            found: dict[str, Any] = enough.args[0]
            return found
    raise RuntimeError("the training job ended before it was measured")


class JobClock:
    """What the parts of the training job cost, in processor seconds of the thread that runs them."""

    def __init__(self, stack: ExitStack) -> None:
        from mtrec_ray.data.streaming.collate import Collator
        from mtrec_ray.engine.deepspeed import DeepSpeedEngine
        from mtrec_ray.engine.plain import PlainEngine

        self.seconds: dict[str, float] = defaultdict(float)
        self.first_loss: float | None = None
        for engine in (DeepSpeedEngine, PlainEngine):
            self._time(stack, engine, "forward", "forward")
            self._time(stack, engine, "backward", "backward")
            self._time(stack, engine, "step", "optimizer")
        for owner, method in ((Meter, "add"), (Meter, "flush"), (MetricsLog, "add")):
            self._time(stack, owner, method, "logging")
        self._time(stack, Collator, "__call__", "collate")

    def _time(self, stack: ExitStack, owner: Any, method: str, part: str) -> None:
        whole = getattr(owner, method)

        def timed(this: Any, *arguments: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return whole(this, *arguments, **named)
            finally:
                self.seconds[part] += time.thread_time() - start
                if owner is Meter and method == "add" and self.first_loss is None:
                    self.first_loss = float(arguments[0].loss)

        stack.enter_context(patch.object(owner, method, timed))


class BareLoop:
    """What one would write without anything of ours but the model and its loss."""

    def __init__(self, run: Run, manifest: Any, backbone: Any) -> None:
        choose_mode(backbone, run.backbone.packing)
        self.model = Recommender(backbone, manifest, run).train()
        self.objective = make_objective(run, manifest)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        self.seed = run.seed
        self.done = 0
        self.first_loss: float | None = None
        self.seconds: dict[str, float] = defaultdict(float)

    def step(self, batches: list[Any]) -> None:
        scales = self.objective.scales(torch.stack([self.objective.counts(batch) for batch in batches]).sum(0))
        loss = torch.zeros(())
        for batch in batches:
            start = time.thread_time()
            logits = self.model(batch, DropoutKey(self.seed, self.done))
            middle = time.thread_time()
            part = self.objective.loss(self.objective.loss_sums(logits, batch), scales)
            part.backward()
            loss += part.detach()
            self.seconds["forward"] += middle - start
            self.seconds["backward"] += time.thread_time() - middle
        start = time.thread_time()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds["optimizer"] += time.thread_time() - start
        self.done += 1
        if self.first_loss is None:
            self.first_loss = float(loss)


class TakingTurns:
    """The job's stream of train steps; after every `length` steps the bare loop has them while the job waits."""

    def __init__(self, stream: Any, bare: BareLoop, clock: JobClock, turns: int, length: int) -> None:
        self.order = stream.order
        self._stream, self._bare, self._clock = stream, bare, clock
        self._turns, self._length = turns, length

    def steps(self, first: int, last: int) -> Iterator[Any]:
        found: list[dict[str, Any]] = []
        with closing(self._stream.steps(first, last)) as source:
            while len(found) <= self._turns:
                taken: list[list[Any]] = []
                wait, start = Spent(0, 0, 0), Spent.now()
                for _ in range(self._length):
                    asked = Spent.now()
                    step = next(source)
                    waited = Spent.now().since(asked)
                    wait = Spent(wait.wall + waited.wall, 0, wait.thread + waited.thread)
                    taken.append(step.batches)
                    yield step
                job, start, ahead = Spent.now().since(start), Spent.now(), self._clock.seconds["collate"]
                for batches in taken:
                    self._bare.step(batches)
                bare, ahead = Spent.now().since(start), self._clock.seconds["collate"] - ahead
                found.append(turn(taken, job, wait, bare, ahead))
                if len(found) == 1:  # warmed up
                    check_equal(self._clock.first_loss, self._bare.first_loss)
                    self._clock.seconds.clear()
                    self._bare.seconds.clear()
        parts = {"job": dict(self._clock.seconds), "bare": dict(self._bare.seconds)}
        raise Enough({"turns": found[1:], "parts": parts})


def turn(taken: list[list[Any]], job: Spent, wait: Spent, bare: Spent, ahead: float) -> dict[str, Any]:
    """What one turn of each side took; `ahead`: processor seconds of collating during the bare loop's turn."""
    return {
        "candidates": sum(batch.num_candidates for batches in taken for batch in batches),
        "tokens": sum(len(batch.ids) for batches in taken for batch in batches),
        "job": {"wall": job.wall, "cpu": job.process + ahead, "thread": job.thread},
        "wait": {"wall": wait.wall, "thread": wait.thread},
        "bare": {"wall": bare.wall, "cpu": bare.thread},
    }


def check_equal(job: float | None, bare: float | None) -> None:
    """Both sides have the same weights, batch and dropout, so their first losses agree, or they do not do the same."""
    if job is None or bare is None or abs(job - bare) > 1e-4 * abs(bare):
        raise RuntimeError(f"the first loss of the training job is {job}, that of the bare loop {bare}")


def summary(measured: dict[str, Any], steps: int) -> dict[str, Any]:
    """Medians over turns; the parts are means per step."""
    turns, parts = measured["turns"], measured["parts"]
    count = len(turns) * steps

    def total(side: str, clock: str) -> float:
        return sum(float(turn[side][clock]) for turn in turns)

    def ratio(clock: str) -> float:
        return statistics.median(turn["bare"][clock] / turn["job"][clock] for turn in turns)

    job, bare = ({part: 1e3 * seconds / count for part, seconds in parts[side].items()} for side in ("job", "bare"))
    collate = job.pop("collate", 0.0)
    job["waiting for data"] = 1e3 * total("wait", "thread") / count
    job["the rest of the step"] = 1e3 * total("job", "thread") / count - sum(job.values())
    job["collate, in its thread"] = collate
    job["Ray's threads"] = 1e3 * (total("job", "cpu") - total("job", "thread")) / count - collate
    bare["the rest of the step"] = 1e3 * total("bare", "cpu") / count - sum(bare.values())
    candidates = sum(turn["candidates"] for turn in turns)
    return {
        "target": TARGET,
        "ratio_cpu": ratio("cpu"),
        "ratio_wall": ratio("wall"),
        "ratios_cpu": [turn["bare"]["cpu"] / turn["job"]["cpu"] for turn in turns],
        "ratios_wall": [turn["bare"]["wall"] / turn["job"]["wall"] for turn in turns],
        "candidates_per_s_wall": {side: candidates / total(side, "wall") for side in ("job", "bare")},
        "candidates_per_s_cpu": {side: candidates / total(side, "cpu") for side in ("job", "bare")},
        "step_ms_wall": {side: 1e3 * total(side, "wall") / count for side in ("job", "bare")},
        "step_ms_cpu": {side: 1e3 * total(side, "cpu") / count for side in ("job", "bare")},
        "wait_for_data_ms_wall": 1e3 * total("wait", "wall") / count,
        "parts_ms_cpu": {"job": job, "bare": bare},
        "steps": count,
        "candidates_per_step": candidates / count,
        "tokens_per_step": sum(turn["tokens"] for turn in turns) / count,
    }


def print_result(result: dict[str, Any]) -> None:
    job, bare = result["parts_ms_cpu"]["job"], result["parts_ms_cpu"]["bare"]
    print(f"\n{result['machine']}; {result['engine']}; {result['steps']} steps of each, in turns;", end=" ")
    print(f"{result['candidates_per_step']:.0f} candidates and {result['tokens_per_step']:.0f} tokens a step")
    print(f"\n{'ms a step, processor time':<28}{'mtrec train':>13}{'bare loop':>13}{'difference':>13}")
    for part in job:
        print(f"{part:<28}{job[part]:>13.2f}{bare.get(part, 0.0):>13.2f}{job[part] - bare.get(part, 0.0):>13.2f}")
    all_job, all_bare = sum(job.values()), sum(bare.values())
    print(f"{'all':<28}{all_job:>13.2f}{all_bare:>13.2f}{all_job - all_bare:>13.2f}")
    walls, rates = result["step_ms_wall"], result["candidates_per_s_wall"]
    print(f"{'wall clock, all':<28}{walls['job']:>13.2f}{walls['bare']:>13.2f}{walls['job'] - walls['bare']:>13.2f}")
    print(f"{'  of it waiting for data':<28}{result['wait_for_data_ms_wall']:>13.2f}{0:>13.2f}")
    print(f"{'candidates/s, wall clock':<28}{rates['job']:>13.1f}{rates['bare']:>13.1f}")
    print(f"\n{'ratio of candidates/s':<28}{'processor':>13}{'wall clock':>13}{'at least':>13}")
    print(f"{'mtrec train / bare loop':<28}{result['ratio_cpu']:>13.3f}{result['ratio_wall']:>13.3f}{TARGET:>13.2f}")
    if min(walls.values()) < 1e3 * LEAST_STEP_S:
        print(f"steps are shorter than {LEAST_STEP_S} s: raise --batch-requests")


if __name__ == "__main__":
    main()
