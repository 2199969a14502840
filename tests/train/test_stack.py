"""A trial in a stack is the trial alone: the same losses, metrics and weights."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.config import Run
from mtrec_ray.data.streaming.order import pack
from mtrec_ray.data.streaming.shared import SharedSteps
from mtrec_ray.errors import UserError
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.nano import build_nano
from mtrec_ray.train import checkpoint
from mtrec_ray.train.building import adapt
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.stack import Stack
from mtrec_ray.train.worker import Fitted, TrainingData, fit
from tests.batches import VOCAB, Step, make_batch, make_manifest, make_request, make_run
from tests.train.test_worker import lines
from tests.training import CPU, distance, facts_of

pytestmark = pytest.mark.slow

SMALL = "backbone={name: nano, width: 16, layers: 2, heads: 2}"
LONG = [SMALL, "engine.name=plain", "train.max_steps=20", "train.epochs=9", "train.log_every=1"]
RATES = "train.learning_rate={{adapters: {0}, towers: {0}, tables: {0}}}"
TRIALS = [
    ["adapter={rank: 2, alpha: 4, dropout: 0.2}", RATES.format(1e-3), "train.patience=null"],
    ["adapter={rank: 5, top_layers: 1}", RATES.format(5e-4), "tasks.like.weight=3", "train.clip_norm=0.1"],
    [
        "adapter={kind: frozen}",
        "towers={z_dim: 5, hidden: [], dropout: 0.4}",
        RATES.format(1e-3),
        "seed=3",
        "train.batch_requests=5",
    ],
    [
        "adapter={rank: 3, targets: [q_proj, down_proj]}",
        "features.dropout=0.5",
        RATES.format(2e-4),
        "train.patience=1",
        "train.evaluations_per_epoch=2",
        "train.batch_requests=6",
    ],
]
ALL = range(len(TRIALS))
ACCUMULATED = "train.micro_tokens=28"
"""Steps of 8 requests then have 3 or 4 micro-steps, those of 5 or 6 requests 1 to 3; without it all have one."""
TRUNK = "adapter={rank: 2, top_layers: 1}"
"""Trials 0 and 1, which read the same batches, then share the first of the two layers."""
WIDE = "backbone.width=128"
"""Wide enough that float32 rounds a row of several trials otherwise than each alone: weights by up to 3e-6."""
R_DROP = "regularization.r_drop.weight=2"
CHECKPOINTED, BF16 = "engine.activation_checkpointing=true", "engine.precision=bf16"
TRAIN, VALID = range(32), range(1000, 1041)


class Split:
    """Requests in steps of `batch_requests`, cut into micro-steps as the order cuts them."""

    def __init__(self, requests: range, batch_requests: int, micro_tokens: int) -> None:
        self.steps_of_epoch = [requests[i : i + batch_requests] for i in range(0, len(requests), batch_requests)]
        self.micro_tokens = micro_tokens
        self.order = SimpleNamespace(steps_per_epoch=len(self.steps_of_epoch))

    def steps(self, first: int, last: int) -> Iterator[Step]:
        for index in range(first, last):
            numbers = np.array(self.steps_of_epoch[index % len(self.steps_of_epoch)])
            costs = np.array([tokens(n) for n in numbers.tolist()])
            parts = pack(numbers, costs, self.micro_tokens)
            yield Step(index, [make_batch([request(n) for n in part.tolist()], tokens=True) for part in parts])


@cache
def request(number: int) -> dict[str, Any]:
    return make_request(number)


def tokens(number: int) -> int:
    return int(request(number)["event_tokens"].sum() + request(number)["candidate_tokens"].sum())


def data_of(run: Run) -> TrainingData:
    train = Split(TRAIN, run.train.batch_requests, run.train.micro_tokens)
    return TrainingData(train, Split(VALID, len(VALID), run.train.micro_tokens), facts_of)


def run_of(number: int, *overrides: str) -> Run:
    return make_run(*LONG, *TRIALS[number], *overrides)


def frozen_model(run: Run) -> Any:
    """The same weights each time."""
    return build_nano(VOCAB, run.backbone.width, run.backbone.layers, run.backbone.heads, max_positions=64)


@dataclass(frozen=True)
class Alone:
    """A training of its own, which has ended."""

    folder: Path
    fitted: Fitted


TrainAlone = Callable[..., Alone]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainAlone:
    """`(number, *overrides)` -> the trial trained alone, once for all tests."""

    @cache
    def trained(dtype: torch.dtype, number: int, *overrides: str) -> Alone:
        run, folder = run_of(number, *overrides), tmp_path_factory.mktemp("alone")

        def build() -> Backbone:
            backbone = Backbone(frozen_model(run), checkpointing=run.engine.activation_checkpointing)
            adapt(backbone, run)
            return backbone

        return Alone(folder, fit(run, make_manifest(), data_of(run), LocalContext(folder), build))

    return lambda number, *overrides: trained(torch.get_default_dtype(), number, *overrides)


Report = Callable[[Mapping[str, float]], None]


@dataclass
class Stacked:
    """Trials in threads, on one stack; like trainings alone they leave their latest checkpoint in their folder."""

    folder: Path
    overrides: tuple[str, ...] = ()
    found: dict[int, Any] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    shared: dict[Any, SharedSteps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = run_of(0, *self.overrides)
        self.stack = Stack(Backbone(frozen_model(run)), make_manifest(), run, CPU)

    def start(self, number: int, report: Report = lambda metrics: None) -> None:
        run, folder = run_of(number, *self.overrides), self.folder / f"{number}"
        folder.mkdir()
        thread = threading.Thread(target=self._fit, args=(number, run, self.data(run), LocalContext(folder), report))
        self.threads.append(thread)
        thread.start()

    def data(self, run: Run) -> TrainingData:
        """As in `launch.stack_trials`: what trials read alike they read together."""
        own = data_of(run)
        train = self.shared.setdefault(run.train.batch_requests, SharedSteps(own.train))
        return TrainingData(train, self.shared.setdefault("valid", SharedSteps(own.valid)), own.valid_facts)

    def _fit(self, number: int, run: Run, data: TrainingData, context: LocalContext, report: Report) -> None:
        def keep(metrics: Mapping[str, float], folder: Path | None) -> None:
            context.report(metrics, folder)
            report(metrics)

        try:
            self.found[number] = self.stack.fit(number, run, data, context.run_folder, keep)
        except Exception as error:
            self.found[number] = error

    def join(self) -> None:
        for thread in self.threads:  # also of those that are started meanwhile
            thread.join(timeout=120)
            assert not thread.is_alive()


def same_losses(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    left, right = lines(ours, "train"), lines(theirs, "train")
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for a, b in zip(left, right, strict=True):
        for name in ("loss", "grad_norm", *(key for key in a if key.startswith("loss/"))):
            assert a[name] == pytest.approx(b[name], rel=tolerance), (a["step"], name)
    values = [[line["like/auc"] for line in lines(folder, "valid")] for folder in (ours, theirs)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def same_weights(ours: Path, theirs: Path, tolerance: float) -> None:
    """Of the latest checkpoints, tensor by tensor."""
    left, right = (checkpoint.read(folder / "latest") for folder in (ours, theirs))
    assert left.state.step == right.state.step
    assert left.parameters.keys() == right.parameters.keys()
    for name, value in left.parameters.items():
        assert distance({name: value}, {name: right.parameters[name]}) < tolerance, name


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [((), 1e-5), ((CHECKPOINTED,), 1e-5), ((ACCUMULATED,), 1e-5), ((BF16,), 2e-2)],
)
def test_four_different_trials_in_a_stack_have_the_losses_they_have_alone(
    tmp_path: Path, alone: TrainAlone, overrides: tuple[str, ...], tolerance: float
) -> None:
    stacked = Stacked(tmp_path, overrides)
    for number in ALL:
        stacked.start(number)
    stacked.join()
    for number in ALL:
        same_losses(tmp_path / f"{number}", alone(number, *overrides).folder, tolerance)
    assert len(lines(tmp_path / "3", "train")) < 20  # it stopped early, and the others went on
    assert len(lines(tmp_path / "0", "train")) == 20


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("overrides", [(), (ACCUMULATED, TRUNK), (R_DROP, TRUNK)])
def test_in_float64_losses_and_last_weights_agree_to_nine_digits(
    tmp_path: Path, alone: TrainAlone, overrides: tuple[str, ...]
) -> None:
    overrides = (*overrides, WIDE, "train.patience=null")
    stacked = Stacked(tmp_path, overrides)
    for number in ALL:
        stacked.start(number)
    stacked.join()
    for number in ALL:
        expected, found = alone(number, *overrides), stacked.found[number]
        same_losses(tmp_path / f"{number}", expected.folder, 1e-9)
        same_weights(tmp_path / f"{number}", expected.folder, 1e-9)
        assert (found.steps, found.best_step) == (20, expected.fitted.best_step)
        assert distance(found.engine.parameters(), expected.fitted.engine.parameters()) < 1e-9


@pytest.mark.parametrize("overrides", [(), (ACCUMULATED,)])
def test_a_slot_is_refilled_while_the_others_go_on(
    tmp_path: Path, alone: TrainAlone, overrides: tuple[str, ...]
) -> None:
    stacked = Stacked(tmp_path, overrides)

    def second(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 8:
            stacked.start(1)

    stacked.start(0, second)
    stacked.start(2)
    stacked.join()
    for number in range(3):
        same_losses(tmp_path / f"{number}", alone(number, *overrides).folder)


def test_a_trial_that_is_stopped_or_fails_leaves_the_others_alone(tmp_path: Path, alone: TrainAlone) -> None:
    stacked = Stacked(tmp_path)

    def stop(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 4:
            raise InterruptedError("stopped by the scheduler")

    def fail(metrics: Mapping[str, float]) -> None:
        raise UserError("not this one")

    stacked.start(0)
    stacked.start(1, stop)
    stacked.start(2, fail)
    stacked.join()
    assert isinstance(stacked.found[1], InterruptedError)
    assert isinstance(stacked.found[2], UserError)
    same_losses(tmp_path / "0", alone(0).folder)


def test_a_trial_goes_on_from_a_checkpoint_and_saves_one_that_fits_a_training_alone(
    tmp_path: Path, alone: TrainAlone
) -> None:
    stacked = Stacked(tmp_path)

    def stop(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 8:
            raise InterruptedError

    stacked.start(1, stop)
    stacked.join()
    run, on, latest = run_of(1), tmp_path / "on", tmp_path / "1/latest"
    on.mkdir()
    fitted = stacked.stack.fit(7, run, stacked.data(run), str(on), lambda metrics, folder: None, latest)
    expected = alone(1)
    assert [line["step"] for line in lines(on, "train")] == list(range(9, 21))
    assert distance(fitted.engine.parameters(), expected.fitted.engine.parameters()) < 1e-5
    saved, own = (checkpoint.read(folder / "checkpoint") for folder in (on, expected.folder))
    assert saved.parameters.keys() == own.parameters.keys()
    assert saved.state.backbone_checksum is not None


def test_trials_with_equal_batches_share_the_trunk(tmp_path: Path, alone: TrainAlone) -> None:
    """With adapters in the last of two layers only, the first layer reads each batch once for all trials."""
    stacked = Stacked(tmp_path, (TRUNK,))
    shared = stacked.stack._shared
    assert shared is not None
    widths: dict[str, list[int]] = {"0": [], "1": []}
    for name, layer in shared.backbone.model.layers.named_children():
        layer.register_forward_hook(lambda module, args, output, name=name: widths[name].append(_length(output)))
    for number in (0, 1):
        stacked.start(number)
    stacked.join()
    both = [first for first, second in zip(widths["0"], widths["1"], strict=True) if second == 2 * first]
    assert len(both) > 20
    for number in (0, 1):
        same_losses(tmp_path / f"{number}", alone(number, TRUNK).folder)


def _length(output: Any) -> int:
    return int((output[0] if isinstance(output, tuple) else output).shape[1])


def test_a_stack_keeps_no_more_activations_than_one_trial_may(tmp_path: Path) -> None:
    """A row of several trials ends at `train.micro_tokens`; a longer part goes alone."""
    stacked = Stacked(tmp_path, ("train.micro_tokens=150",))
    shared = stacked.stack._shared
    assert shared is not None
    kept: list[tuple[int, float]] = []
    forward = shared.forward

    def recorded(parts: Any, training: bool) -> Any:
        if training:
            kept.append((len(parts), shared.kept_tokens(parts)))
        return forward(parts, training)

    shared.forward = recorded  # type: ignore[method-assign]
    for number in (0, 1, 3):
        stacked.start(number)
    stacked.join()
    assert max(tokens for parts, tokens in kept if parts > 1) <= 150
    assert {parts for parts, _ in kept} == {1, 2}


def test_shared_steps_are_read_once_by_those_in_step_and_anew_by_latecomers() -> None:
    opened: list[tuple[int, int]] = []

    class Counted:
        order = None

        def steps(self, first: int, last: int) -> Any:
            opened.append((first, last))
            yield from range(first, last)

    shared = SharedSteps(Counted())
    a, b = shared.steps(0, 6), shared.steps(0, 6)
    assert [(next(a), next(b)) for _ in range(4)] == [(i, i) for i in range(4)]
    assert opened == [(0, 6)]
    late = shared.steps(0, 9)
    assert [next(late) for _ in range(9)] == list(range(9))
    assert list(a) == list(b) == [4, 5]
    assert len(opened) <= 4
    shared.close()
