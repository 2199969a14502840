"""Small trainings in one process, or on the ranks of a group, that leave what another run starts from."""

import json
from pathlib import Path

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.train import checkpoint
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.start import CONFIG, SUMMARY
from mtrec_ray.train.worker import Fitted, TrainingData, fit
from tests.training import Source, facts_of, small_backbone
from tests.worlds import World

NOW = World()
FAST = "train.learning_rate={adapters: 0.01, towers: 0.01, tables: 0.01}"
STILL = "train.learning_rate={adapters: 0, towers: 0, tables: 0}"
NANO = "backbone={name: nano, width: 16, layers: 2, heads: 2}"


class Requests(Source):
    """Those of a world."""

    def __init__(self, world: World, valid: bool, fails_at: int | None = None) -> None:
        super().__init__(valid, fails_at)
        self.world = world

    def batches(self, numbers: list[int]) -> list[Batch]:
        return [self.world.batch(numbers, tokens=True)]


def config(place: Path, name: str, world: World, *overrides: str) -> Run:
    steps = ("train.epochs=3", "train.patience=null", "train.log_every=2", "train.metric=like/auc")
    return world.run(f"name={name}", FAST, *steps, *(o.replace("{place}", str(place)) for o in overrides))


def data_of(place: Path, name: str, world: World, fails_at: int | None = None) -> TrainingData:
    prepared = place / f"{name}-prepared"
    if not prepared.exists():
        world.write(prepared)
    return TrainingData(Requests(world, False, fails_at), Requests(world, True), facts_of, prepared=str(prepared))


def finish(place: Path, name: str, run: Run) -> None:
    """What `mtrec train` leaves beside what `fit` does."""
    (place / name / CONFIG).write_text(config_file.dump(run))
    (place / name / SUMMARY).write_text(json.dumps({"prepared": str(place / f"{name}-prepared")}))


def train(place: Path, name: str, world: World, *overrides: str, fails_at: int | None = None) -> Fitted:
    run = config(place, name, world, *overrides)
    data = data_of(place, name, world, fails_at)
    build = lambda: None if run.backbone.name == "none" else small_backbone(run)  # noqa: E731
    fitted = fit(run, world.manifest(), data, LocalContext(place / name), build)
    finish(place, name, run)
    return fitted


def best(place: Path, name: str) -> checkpoint.Checkpoint:
    return checkpoint.read(place / name / "checkpoint")
