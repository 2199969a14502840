"""Ways to carry out a search's trials, each timed in a process of its own: what `search.py` compares."""

import json
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sampled import sample_run
from turns import tree_pss

from mtrec_ray.config_file import dump, load
from mtrec_ray.train.schedule import evaluation_interval

STACK = 8
"""Trials on one backbone copy."""
CORES = max(2, os.cpu_count() or 1)
JOB_CPUS = int(100 * (CORES - 1) / CORES) / 100
"""CPUs of a job of (ii), so that there is room for `CORES` of them and for the reading of their data."""
LAYERS, TOP = 12, 2
SETTINGS = (
    f"backbone.layers={LAYERS}",
    "history.max_events=8",
    "history.event_tokens=8",
    "history.candidate_tokens=8",
    "train.epochs=100000",
    "train.patience=null",
    "evaluate.batch_requests=8",
    "train.learning_rate={adapters: 1e-4, towers: 1e-3, tables: 1e-3}",
    "tune.scheduler=none",
    f"tune.stack={STACK}",
    "tune.max_failures=0",
    "plugins=[timed]",
)
TINY = ("backbone.width=32", "train.log_every=2")
VALID_ROWS, ROWS_PER_USER = 300, 40
"""Candidates wanted in the validation split, which is small beside minutes of training; rows that a user has."""
MEMORY_EVERY_S = 5.0
_RUN = "run.yaml"


@dataclass(frozen=True)
class Way:
    """How a list of trials is carried out."""

    name: str
    settings: tuple[str, ...]
    lanes: int
    """Trials at a time."""
    warm: bool = False
    """In one process without Ray; else by `mtrec tune`."""


STACKED = ("tune.mode=stacked", f"tune.max_concurrent={STACK}")
WAYS = {
    "i": Way("distributed, one after another", ("tune.mode=distributed", "tune.max_concurrent=1"), 1),
    "ii": Way(
        f"distributed, {CORES} at a time",
        ("tune.mode=distributed", f"tune.max_concurrent={CORES}", f"cluster.cpus_per_worker={JOB_CPUS}"),
        CORES,
    ),
    "iii": Way("stacked", STACKED, STACK),
    "iv": Way("stacked, shared trunk", STACKED, STACK),
    "v": Way("one after another, one warm process", ("engine.name=plain",), 1, warm=True),
}


@dataclass(frozen=True)
class Sample:
    """Prepared data with the config that all searches on it have in common."""

    folder: str
    prepared: str
    steps_per_epoch: int
    facts: dict[str, float]

    @classmethod
    def make(cls, folder: str, users: int, batch_requests: int, tiny: bool) -> Self:
        """Writes logs and config below `folder`, and prepares them."""
        from mtrec_ray.data.prepare import prepare
        from mtrec_ray.data.streaming.chunks import open_order
        from mtrec_ray.launch.ingest import order_settings
        from mtrec_ray.launch.session import ray_session

        share = min(0.2, VALID_ROWS / (ROWS_PER_USER * users))
        splits = (f"split.valid={share}", f"split.test={share}", f"train.batch_requests={batch_requests}")
        run = sample_run(folder, users, (*SETTINGS, *splits, *(TINY if tiny else ())))
        Path(folder, _RUN).write_text(dump(run))
        with ray_session(run.cluster):
            prepared = prepare(run)
        order = open_order(prepared.path, order_settings(run, "train", 1))
        train, valid = (prepared.manifest.shards[split] for split in ("train", "valid"))
        facts = {
            "tokens_per_step": sum(shard.tokens for shard in train) / order.steps_per_epoch,
            "candidates_per_step": sum(shard.candidates for shard in train) / order.steps_per_epoch,
            "valid_candidates": sum(shard.candidates for shard in valid),
        }
        return cls(folder, prepared.path, order.steps_per_epoch, facts)

    def length(self, steps: int, evaluations: int) -> tuple[int, tuple[str, ...]]:
        """As nearly so many steps as can be cut into equal parts, with an evaluation after each; and the settings.

        An epoch has at least one evaluation, so it must not be shorter than such a part.
        """
        per_epoch = self.steps_per_epoch
        parts = max(1, per_epoch // max(1, round(steps / evaluations)))
        run = load(f"{self.folder}/{_RUN}", [f"train.evaluations_per_epoch={parts}"])
        length = evaluations * evaluation_interval(run.train, per_epoch)
        if length < 0.8 * steps:
            raise SystemExit(f"{evaluations} evaluations in {steps} steps: an epoch has {per_epoch}; raise USERS")
        return length, (f"train.evaluations_per_epoch={parts}", f"train.max_steps={length}")

    def search(self, name: str) -> str:
        """The folder of a search."""
        return f"{self.folder}/runs/{name}"

    def carry_out(self, way: Way, name: str, settings: tuple[str, ...], most: int | None = None) -> dict[str, Any]:
        """One search, in a process of its own. `most`: trials of a warm way, if not all."""
        whole = (f"name={name}", *settings, *way.settings)
        function, arguments = (_warm, (self.prepared, most)) if way.warm else (_tuned, ())
        began, peak = time.monotonic(), 0.0
        process = multiprocessing.get_context("spawn").Process(target=function, args=(self.folder, whole, *arguments))
        process.start()
        while process.is_alive():
            process.join(MEMORY_EVERY_S)
            peak = max(peak, tree_pss(int(process.pid or 0)))
        wall = time.monotonic() - began
        if process.exitcode:
            raise SystemExit(f"the search {name} ({way.name}) failed; see above")
        return measured(self.search(name), way, wall, began) | {"all_processes_mib": peak}


def _tuned(folder: str, settings: tuple[str, ...]) -> None:
    from mtrec_ray.launch.tune import tune

    tune(load(f"{folder}/{_RUN}", settings))


def _warm(folder: str, settings: tuple[str, ...], prepared: str, most: int | None) -> None:
    from timed import train_warm

    run = load(f"{folder}/{_RUN}", settings)
    train_warm(run, prepared, f"{folder}/runs/{run.name}", most)


def measured(folder: str, way: Way, wall: float, began: float) -> dict[str, Any]:
    """What a search took, from the `times.json` of its trials.

    A step's time is what it took while `way.lanes` trials stepped, divided by their number: so the rate is that of all
    trials together. First steps wait for data to come; they count as steps at the pace of the others.
    """
    trials = [json.loads((place / "times.json").read_text()) for place in sorted(Path(folder, "trials").iterdir())]
    lanes, steps = min(way.lanes, len(trials)), sum(trial["steps"] for trial in trials)
    pace = sum(trial["seconds"]["steps"] for trial in trials) / lanes / (steps - len(trials))
    evaluations = sum(trial["seconds"]["evaluations"] for trial in trials) / lanes
    return {
        "wall_s": wall,
        "steps_s": pace * steps,
        "evaluations_s": evaluations,
        "startup_s": wall - pace * steps - evaluations,
        "trials": len(trials),
        "trial_steps": steps,
        "trial_steps_per_s": 1 / pace,
        "own_mib": max(trial["memory"]["own"] for trial in trials),
        "shared_mib": max(trial["memory"]["shared"] for trial in trials),
        "reports": [[{**one, "at": one["at"] - began} for one in trial["reports"]] for trial in trials],
    }
