"""`fit`: one worker's whole training run: when to log, evaluate, checkpoint and stop. How to step is `train.loop`."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.base import Engine
from mtrec_ray.multitask.losses import Objective
from mtrec_ray.train import checkpoint
from mtrec_ray.train.building import open_engine
from mtrec_ray.train.context import Context
from mtrec_ray.train.evaluation import ChosenMetric, UsersOf, chosen_metric, flat, score, task_metrics
from mtrec_ray.train.loop import Recipe, StepData, training_steps
from mtrec_ray.train.meters import Meter, MetricsLog, rates
from mtrec_ray.train.schedule import evaluation_interval, planned_steps
from mtrec_ray.train.stopping import Stopping

OpenEngine = Callable[..., tuple[Engine, str | None]]


class StepSource(Protocol):
    """One rank's view of a split: `data.streaming.stream.StepStream`."""

    @property
    def order(self) -> Any:
        """Has `steps_per_epoch`."""
        ...

    def steps(self, first: int, last: int) -> Iterator[StepData]:
        """Steps [first, last), counted over epochs."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What `fit` reads: the shuffled train split, and the validation split with its users."""

    train: StepSource
    valid: StepSource
    valid_users: UsersOf


@dataclass(frozen=True)
class Fitted:
    """A finished run, with the best weights in the engine."""

    engine: Engine
    steps: int
    best_step: int
    best_metric: float
    """`train.metric`, signed so that higher is better."""
    throughput: dict[str, float]
    """`candidates_per_s`, `tokens_per_s`, `ingest_wait_share` of all training steps, evaluations left out."""


def fit(
    run: Run,
    manifest: Manifest,
    data: TrainingData,
    context: Context,
    build_backbone: Callable[[], nn.Module | None],
    open_engine: OpenEngine = open_engine,
) -> Fitted:
    """Trains until the steps are done or patience ends; every rank calls it. `open_engine`: see `train.building`.

    Starts from the context's latest checkpoint if there is one, and then goes on as if it had never stopped.

    Raises:
        UserError: a metric that is unknown or undefined, a loss that is not finite, a checkpoint that does not fit.
    """
    weights = {name: task.weight for name, task in run.tasks.items()}
    metric = chosen_metric(run, manifest)  # before the backbone is loaded: it may be wrong
    engine, unpacked = open_engine(run, manifest, context.device, build_backbone)
    fitting = _Fitting(run, manifest, data, context, engine, metric)
    fitting.resume()
    if unpacked is not None:
        fitting.note(unpacked)
    recipe = Recipe(
        objective=Objective(manifest.tasks, weights),
        num_steps=fitting.num_steps,
        warmup=run.train.warmup,
        decay=run.train.decay,
        seed=run.seed,
    )
    first = fitting.num_steps if fitting.stopping.stop else fitting.step
    with closing(data.train.steps(first, fitting.num_steps)) as source:  # type: ignore[type-var]
        for result in training_steps(engine, source, recipe, first):
            fitting.step = result.step
            fitting.meter.add(result)
            if fitting.is_time(run.train.log_every):
                fitting.log()
            if fitting.is_time_to_evaluate():
                fitting.evaluate()
            if fitting.stopping.stop:
                break
    return fitting.finish()


@dataclass
class _Fitting:
    """The state of a run between steps."""

    run: Run
    manifest: Manifest
    data: TrainingData
    context: Context
    engine: Engine
    metric: ChosenMetric
    step: int = 0
    num_steps: int = field(init=False)
    stopping: Stopping = field(init=False)
    meter: Meter = field(init=False)
    lines: MetricsLog | None = None
    """On rank 0."""

    def __post_init__(self) -> None:
        per_epoch = self.data.train.order.steps_per_epoch
        self.num_steps = planned_steps(self.run.train, per_epoch)
        self.interval = evaluation_interval(self.run.train, per_epoch)
        self.stopping = Stopping(self.run.train.patience)
        self.meter = Meter(self.engine, [task.name for task in self.manifest.tasks])

    def resume(self) -> None:
        with self.context.restored() as folder:
            if folder is not None:
                found = checkpoint.read(folder)
                state = found.state
                checkpoint.load_weights(self.engine, found, self._backbone_checksum())
                self.engine.load_optimizer_state(found.optimizer)
                self.step = state.step
                self.stopping = Stopping(self.run.train.patience, state.best, state.best_step, state.waited)
                self.meter.totals += torch.tensor(state.work, dtype=torch.float64)
        if self.context.world_rank == 0:
            self.lines = MetricsLog(self.context.run_folder, self.step)

    def is_time(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.num_steps

    def is_time_to_evaluate(self) -> bool:
        return self.is_time(self.interval)

    def note(self, text: str) -> None:
        """Tells the user now, and the reader of the report later."""
        if self.lines is not None:
            self.context.say(text)
            self.lines.add(self._where("note") | {"text": text})

    def log(self) -> None:
        line = self.meter.flush()
        if self.lines is not None:
            self.lines.add(self._where("train") | line)

    def evaluate(self) -> None:
        """Scores the validation split, and reports its metrics with a checkpoint, which is kept if it is the best."""
        if self.meter.pending:
            self.log()
        value, tasks = self._validate()
        self.stopping = self.stopping.after(value, self.step)
        if self.lines is not None:
            self.lines.add(self._where("valid") | {"metric": value} | flat(tasks))
        with tempfile.TemporaryDirectory(prefix="mtrec-") as parent:
            folder = Path(parent) / "checkpoint"
            checkpoint.save(self.engine, folder, self._state())
            leads = self.context.world_rank == 0
            if leads and self.stopping.best_step == self.step:
                checkpoint.publish(folder, self._best_folder())
            self.context.report(self._report(value, tasks), folder if leads else None)

    def finish(self) -> Fitted:
        """The best weights, wherever the run ended."""
        assert self.stopping.best is not None
        assert self.stopping.best_step is not None
        with checkpoint.fetched(self._best_folder()) as folder:
            checkpoint.load_weights(self.engine, checkpoint.read(folder), self._backbone_checksum())
        return Fitted(self.engine, self.step, self.stopping.best_step, self.stopping.best, rates(self.meter.totals))

    def _validate(self) -> tuple[float, dict[str, Any]]:
        """The chosen metric, on all ranks, and on rank 0 all metrics by task."""
        valid = self.data.valid
        with closing(valid.steps(0, valid.order.steps_per_epoch)) as source:  # type: ignore[type-var]
            scores = score(self.engine, source, self.manifest.tasks)
        tasks = {} if scores is None else task_metrics(scores, self.manifest.tasks, self.data.valid_users)
        value = 0.0 if scores is None else self.metric.value(tasks)
        agreed = self.engine.sum_over_ranks(torch.tensor([value], dtype=torch.float64, device=self.engine.device))
        return float(agreed), tasks

    def _state(self) -> checkpoint.State:
        return checkpoint.State(
            step=self.step,
            num_steps=self.num_steps,
            seed=self.run.seed,
            data_fingerprint=self.manifest.fingerprint,
            best=self.stopping.best,
            best_step=self.stopping.best_step,
            waited=self.stopping.waited,
            backbone=self.run.backbone.name,
            backbone_checksum=self._backbone_checksum(),
            work=self.meter.totals.tolist(),
        )

    def _report(self, value: float, tasks: dict[str, Any]) -> dict[str, Any]:
        """What is handed over; metrics by task on rank 0 alone. `last`: no other report follows."""
        return {
            "evaluation": math.ceil(self.step / self.interval),
            "step": self.step,
            "epoch": self.step / self.data.train.order.steps_per_epoch,
            "metric": value,
            "last": self.step == self.num_steps or self.stopping.stop,
            **flat(tasks),
        }

    def _where(self, kind: str) -> dict[str, Any]:
        return {"kind": kind, "step": self.step, "epoch": self.step / self.data.train.order.steps_per_epoch}

    def _best_folder(self) -> str:
        return f"{self.context.run_folder}/checkpoint"

    def _backbone_checksum(self) -> str | None:
        backbone: Any = self.engine.model.backbone
        return None if backbone is None else str(backbone.checksum())
