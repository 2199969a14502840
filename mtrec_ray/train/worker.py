"""`fit`: one worker's whole training run: when to log, evaluate, checkpoint and stop. How to step is `train.loop`."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mtrec_ray.config import Run, Stage
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import DivergedError
from mtrec_ray.evaluate.facts import FactsOf
from mtrec_ray.multitask.balancing.balancer import Balancer, make_method
from mtrec_ray.multitask.balancing.method import Method
from mtrec_ray.multitask.losses import Objective, make_objective
from mtrec_ray.multitask.strategy.adaptive import AdaptiveWeights
from mtrec_ray.multitask.strategy.stages import Span, span_at, spans
from mtrec_ray.train import checkpoint
from mtrec_ray.train.building import open_engine
from mtrec_ray.train.carrying import told
from mtrec_ray.train.checks import check_data
from mtrec_ray.train.context import Context
from mtrec_ray.train.evaluation import ChosenMetric, chosen_metric, flat, score, task_metrics
from mtrec_ray.train.guards import Guard, chosen_guards, guarded_values
from mtrec_ray.train.loop import Recipe, StepData, training_steps
from mtrec_ray.train.meters import Meter, MetricsLog, rates
from mtrec_ray.train.schedule import evaluation_interval, planned_steps
from mtrec_ray.train.start import start_weights
from mtrec_ray.train.steering import Steering
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
    """What `fit` reads: the shuffled train split, the validation split with its users, and the catalogue of items, if
    the prepared data has one."""

    train: StepSource
    valid: StepSource
    valid_facts: FactsOf
    catalogue: Catalogue | None = None
    prepared: str | None = None
    """The prepared folder, which `train.start_from` asks for names of rows."""


@dataclass(frozen=True)
class Fitted:
    """A finished run, with the best weights in the engine."""

    engine: Engine
    steps: int
    best_step: int
    best_metric: float
    """`train.metric`, signed so that higher is better."""
    throughput: dict[str, float]
    """`candidates_per_s`, `tokens_per_s`, `ingest_wait_share` and `seconds` of all training steps, those before a
    restart included and evaluations left out."""


def fit(
    run: Run,
    manifest: Manifest,
    data: TrainingData,
    context: Context,
    build_backbone: Callable[[], nn.Module | None],
    open_engine: OpenEngine = open_engine,
) -> Fitted:
    """Trains until the steps are done or patience ends; every rank calls it. `open_engine`: see `train.building`.

    Starts from the context's latest checkpoint if there is one, and then goes on as if it had never stopped; else from
    the run that `train.start_from` names, if any.

    Raises:
        UserError: a metric that is unknown or undefined, a loss that is not finite, a checkpoint that does not fit.
    """
    # Before the backbone is loaded: they may be wrong.
    check_data(run, manifest)
    metric, guards = chosen_metric(run, manifest), chosen_guards(run, manifest)
    objective, method = make_objective(run, manifest), make_method(run)
    num_steps = planned_steps(run.train, data.train.order.steps_per_epoch)
    with context.restored() as folder:
        found = None if folder is None else checkpoint.read(folder)
    stages = spans(run.strategy.stages, num_steps)
    span = span_at(stages, 0 if found is None else found.state.step)

    def open_stage(stage: Stage) -> Engine:
        engine, unpacked = open_engine(run, manifest, context.device, build_backbone, stage, data.catalogue)
        if unpacked is not None:
            notes.append(unpacked)
        return engine

    notes: list[str] = []
    fitting = _Fitting(
        run, manifest, data, context, open_stage(span.stage), objective, metric, guards, method, num_steps
    )
    fitting.resume(found, span)
    if found is None and run.train.start_from is not None:
        fitting.start()
    for text in notes:
        fitting.note(text)
    for stage in stages[stages.index(span) :]:
        if stage != span:
            fitting.move_to(open_stage, stage.stage)
        try:
            fitting.train(stage)
        except DivergedError as error:
            raise DivergedError(f"{error} {fitting.kept()}") from None
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
    objective: Objective
    metric: ChosenMetric
    guards: tuple[Guard, ...]
    method: Method
    num_steps: int
    step: int = 0
    stopping: Stopping = field(init=False)
    meter: Meter = field(init=False)
    adaptive: AdaptiveWeights | None = field(init=False)
    lines: MetricsLog | None = None
    """On rank 0."""

    def __post_init__(self) -> None:
        self.interval = evaluation_interval(self.run.train, self.data.train.order.steps_per_epoch)
        self.stopping = Stopping(self.run.train.patience, guards=self.guards)
        adaptive = self.run.strategy.adaptive
        self.adaptive = AdaptiveWeights(self.objective.tasks, adaptive) if adaptive.is_on else None
        self.meter = Meter([task.name for task in self.manifest.tasks], self.run.balance.method != "sum")

    def resume(self, found: checkpoint.Checkpoint | None, span: Span) -> None:
        """Goes on from a checkpoint, in the stage that `span` is."""
        if found is not None:
            state = found.state
            checkpoint.load_weights(self.engine, found, self._backbone_checksum())
            if state.step > span.first:  # else the stage is about to begin, with an empty optimizer
                self.engine.load_optimizer_state(found.optimizer)
            self.weighing.load_state(found.balance)
            self.step = state.step
            self.stopping = replace(
                self.stopping,
                best=state.best,
                best_step=state.best_step,
                waited=state.waited,
                guarded=state.guarded,
                guarded_best=state.guarded_best,
            )
            self.meter.totals += torch.tensor(state.work, dtype=torch.float64)
        if self.context.world_rank == 0:
            self.lines = MetricsLog(self.context.run_folder, self.step)

    def start(self) -> None:
        """Begins with the weights of another run, and says what was carried over."""
        assert self.data.prepared is not None, "the names of rows are in the prepared folder"
        step, parts = start_weights(self.engine, self.run, self.data.prepared, self.manifest)
        if self.lines is not None:
            path = str(self.run.train.start_from)
            self.context.say(told(path, step, parts))
            carried = [asdict(part) for part in parts]
            self.lines.add(self._where("start") | {"from": path, "from_step": step, "parts": carried})

    def move_to(self, open_stage: Callable[[Stage], Engine], stage: Stage) -> None:
        """The same weights in a new engine, which trains others of them."""
        weights = checkpoint.whole_weights(self.engine)
        self.engine.close()
        del self.engine  # before the next one needs the memory
        self.engine = open_stage(stage)
        checkpoint.put_weights(self.engine, weights)

    def train(self, span: Span) -> None:
        """All steps of a stage that are left; ends early where patience does."""
        train, run = self.data.train, self.run
        recipe = Recipe(
            objective=self.objective,
            balancer=Balancer(self.method, run.balance.scope, self.objective, self.engine, run.balance.conflict),
            num_steps=self.num_steps,
            warmup=run.train.warmup,
            decay=run.train.decay,
            seed=run.seed,
            log_every=run.train.log_every,
            turns=run.strategy.tasks,
            labels=tuple(task.observed["train"] for task in self.manifest.tasks),
            regularization=run.regularization,
            steering=self._steering(),
        )
        first = span.last if self.stopping.stop else self.step
        steered = nullcontext() if recipe.steering is None else closing(recipe.steering)
        with closing(train.steps(first, span.last)) as source, steered:  # type: ignore[type-var]
            for result in training_steps(self.engine, source, recipe, first, span):
                self.step = result.step
                self.meter.add(result)
                if self.is_time(run.train.log_every):
                    self.log()
                if self.is_time_to_evaluate():
                    self.evaluate()
                if self.stopping.stop:
                    return

    def _steering(self) -> Steering | None:
        if self.adaptive is None:
            return None
        config, valid = self.run.strategy.adaptive, self.data.valid
        return Steering(self.adaptive, config, self.objective, self.engine, valid, self.run.seed)

    @property
    def weighing(self) -> Method | AdaptiveWeights:
        """What weighs the tasks and learns from steps. Beside adaptive weights, `method` is the sum, with no memory."""
        return self.method if self.adaptive is None else self.adaptive

    def is_time(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.num_steps

    def is_time_to_evaluate(self) -> bool:
        return self.is_time(self.interval)

    def kept(self) -> str:
        """What there is of a run that cannot go on."""
        if self.stopping.best_step is None:
            return "No checkpoint had been written yet."
        return f"The best weights so far, of step {self.stopping.best_step}, are in {self._best_folder()}."

    def note(self, text: str) -> None:
        """Tells the user now, and the reader of the report later."""
        if self.lines is not None:
            self.context.say(text)
            self.lines.add(self._where("note") | {"text": text})

    def log(self) -> None:
        line = self.meter.flush(self.engine)
        if self.lines is not None:
            self.lines.add(self._where("train") | line)

    def evaluate(self) -> None:
        """Scores the validation split, and reports its metrics with a checkpoint, which is kept if it is the best."""
        if self.meter.pending:
            self.log()
        value, guarded, tasks = self._validate()
        self.stopping = self.stopping.after(value, self.step, guarded)
        if self.lines is not None:
            self.lines.add(self._where("valid") | {"metric": value} | flat(tasks))
        if self._has_ended() and self.stopping.problem is not None:
            self.note(self.stopping.problem)
        with tempfile.TemporaryDirectory(prefix="mtrec-") as parent:
            folder = Path(parent) / "checkpoint"
            checkpoint.save(self.engine, folder, self._state(), self.weighing.state())
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
        throughput = rates(self.meter.totals) | {"seconds": float(self.meter.totals[2])}
        return Fitted(self.engine, self.step, self.stopping.best_step, self.stopping.best, throughput)

    def _validate(self) -> tuple[float, dict[str, float], dict[str, Any]]:
        """The chosen metric and the guarded ones, on all ranks, and on rank 0 all metrics by task."""
        valid = self.data.valid
        with closing(valid.steps(0, valid.order.steps_per_epoch)) as source:  # type: ignore[type-var]
            scores = score(self.engine, source, self.objective.kinds)
        tasks = {} if scores is None else task_metrics(scores, self.objective.kinds, self.data.valid_facts)
        figures = [0.0] * (1 + len(self.guards))
        if scores is not None:
            figures = [self.metric.value(tasks), *guarded_values(self.guards, tasks).values()]
        agreed = self.engine.sum_over_ranks(torch.tensor(figures, dtype=torch.float64, device=self.engine.device))
        value, *guarded = agreed.tolist()
        return value, {guard.metric: one for guard, one in zip(self.guards, guarded, strict=True)}, tasks

    def _state(self) -> checkpoint.State:
        return checkpoint.State(
            step=self.step,
            num_steps=self.num_steps,
            seed=self.run.seed,
            data_fingerprint=self.manifest.fingerprint,
            best=self.stopping.best,
            best_step=self.stopping.best_step,
            waited=self.stopping.waited,
            guarded=dict(self.stopping.guarded),
            guarded_best=dict(self.stopping.guarded_best),
            backbone=self.run.backbone.name,
            backbone_checksum=self._backbone_checksum(),
            work=self.meter.totals.tolist(),
        )

    def _report(self, value: float, tasks: dict[str, Any]) -> dict[str, Any]:
        """What is handed over; metrics by task on rank 0 alone. `last`: no other report follows. `kept`, with guards:
        its weights are the best so far; without guards that can be seen from the metric."""
        return {
            "evaluation": math.ceil(self.step / self.interval),
            "step": self.step,
            "epoch": self.step / self.data.train.order.steps_per_epoch,
            "metric": value,
            "last": self._has_ended(),
            **({"kept": self.stopping.best_step == self.step} if self.guards else {}),
            **flat(tasks),
        }

    def _has_ended(self) -> bool:
        return self.step == self.num_steps or self.stopping.stop

    def _where(self, kind: str) -> dict[str, Any]:
        return {"kind": kind, "step": self.step, "epoch": self.step / self.data.train.order.steps_per_epoch}

    def _best_folder(self) -> str:
        return f"{self.context.run_folder}/checkpoint"

    def _backbone_checksum(self) -> str | None:
        backbone: Any = self.engine.model.backbone
        return None if backbone is None else str(backbone.checksum())
