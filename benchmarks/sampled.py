"""What benchmarks share: a generated sample as a run with their backbone, a step's data, and clocks."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.sample import write_sample

BACKBONE = (
    "backbone.name=nano",
    "backbone.width=256",
    "backbone.layers=6",
    "backbone.heads=8",
    "backbone.pretrained=false",
)


class Enough(Exception):  # noqa: N818  # ends a training job that has been measured; no error
    """Raised in place of the next step; carries what was measured."""


@dataclass(frozen=True)
class StepData:
    """One optimizer step."""

    plan: int
    batches: list[Batch]


@dataclass(frozen=True)
class Spent:
    """Seconds: of the clock on the wall, of all threads of this process, and of the calling thread alone."""

    wall: float
    process: float
    thread: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter(), time.process_time(), time.thread_time())

    def since(self, start: "Spent") -> "Spent":
        return Spent(self.wall - start.wall, self.process - start.process, self.thread - start.thread)


def sample_run(folder: str, users: int, settings: tuple[str, ...]) -> Run:
    """Writes a sample below `folder` and gives the config of one worker on one thread that trains on it."""
    folder = str(Path(folder).resolve())
    write_sample(folder, seed=0, users=users, items=300, days=20)
    places = (f"data.prepared_dir={folder}/prepared", f"cluster.storage={folder}/runs")
    quiet = ("evaluate.baselines=[]", "train.metric=click/auc", "cluster.max_failures=0")
    return config_file.load(f"{folder}/config.yaml", [*BACKBONE, *places, *quiet, *settings])


def machine() -> str:
    """The processor's name and how many of it there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else 'unknown processor'}, load {os.getloadavg()[0]:.1f}"
