"""A trial in a stack is the trial alone: the same losses, metrics and weights."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrec_ray.config import Run
from mtrec_ray.data.streaming.shared import SharedSteps
from mtrec_ray.errors import UserError
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.train import checkpoint
from mtrec_ray.train.building import adapt
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.stack import Stack
from mtrec_ray.train.worker import TrainingData, fit
from tests.batches import make_manifest, make_run
from tests.train.test_worker import Source, lines
from tests.training import CPU, distance, small_model

LONG = ["backbone=nano", "engine.name=plain", "train.max_steps=20", "train.epochs=9", "train.log_every=1"]
RATES = "train.learning_rate={{adapters: {0}, towers: {0}, tables: {0}}}"
TRIALS = [
    ["adapter={rank: 2, alpha: 4, dropout: 0.2}", RATES.format(1e-3), "train.patience=null"],
    ["adapter={rank: 5, top_layers: 1}", RATES.format(5e-4), "tasks.like.weight=3", "train.clip_norm=0.1"],
    ["adapter={kind: frozen}", RATES.format(1e-3), "towers={z_dim: 5, hidden: [], dropout: 0.4}", "seed=3"],
    ["adapter={rank: 3, targets: [q_proj, down_proj]}", RATES.format(2e-4), "train.patience=1", "features.dropout=0.5"],
]


def frozen_model() -> Any:
    """The same weights each time."""
    torch.manual_seed(5)
    return small_model()


def run_of(number: int, *overrides: str) -> Run:
    return make_run(*LONG, *TRIALS[number], *overrides)


def users(row_ids: Any) -> Any:
    return row_ids // 500


def alone(number: int, folder: Path, *overrides: str) -> Any:
    run = run_of(number, *overrides)

    def build() -> Backbone:
        backbone = Backbone(frozen_model(), checkpointing=run.engine.activation_checkpointing)
        adapt(backbone, run)
        return backbone

    data = TrainingData(Source(), Source(valid=True), users)
    return fit(run, make_manifest(), data, LocalContext(folder), build)


@dataclass
class Stacked:
    """Trials in threads, on one stack."""

    folder: Path
    overrides: tuple[str, ...] = ()
    found: dict[int, Any] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = run_of(0, *self.overrides)
        self.stack = Stack(Backbone(frozen_model()), make_manifest(), run, CPU)
        self.data = TrainingData(SharedSteps(Source()), SharedSteps(Source(valid=True)), users)

    def start(self, number: int, report: Callable[..., None] = lambda metrics, checkpoint: None) -> None:
        thread = threading.Thread(target=self._fit, args=(number, report))
        self.threads.append(thread)
        thread.start()

    def _fit(self, number: int, report: Callable[..., None]) -> None:
        folder = self.folder / f"{number}"
        folder.mkdir()
        try:
            run = run_of(number, *self.overrides)
            self.found[number] = self.stack.fit(number, run, self.data, str(folder), report)
        except Exception as error:
            self.found[number] = error

    def join(self) -> None:
        for thread in self.threads:
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


@pytest.mark.parametrize("overrides", [(), ("engine.activation_checkpointing=true",), ("engine.precision=bf16",)])
def test_four_different_trials_in_a_stack_have_the_losses_they_have_alone(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    stacked = Stacked(tmp_path, overrides)
    for number in range(len(TRIALS)):
        stacked.start(number)
    stacked.join()
    for number in range(len(TRIALS)):
        folder = tmp_path / f"alone-{number}"
        folder.mkdir()
        expected, found = alone(number, folder, *overrides), stacked.found[number]
        tolerance = 2e-2 if overrides == ("engine.precision=bf16",) else 1e-5
        same_losses(tmp_path / f"{number}", folder, tolerance)
        if not overrides:
            assert (found.steps, found.best_step) == (expected.steps, expected.best_step)
            assert distance(found.engine.parameters(), expected.engine.parameters()) < 1e-4
    assert len(lines(tmp_path / "3", "train")) < 20  # it stopped early, and the others went on
    assert len(lines(tmp_path / "0", "train")) == 20


def test_a_slot_is_refilled_while_the_others_go_on(tmp_path: Path) -> None:
    stacked = Stacked(tmp_path)

    def second(metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        if metrics["step"] == 8:
            stacked.start(1)

    stacked.start(0, second)
    stacked.start(2)
    for thread in list(stacked.threads):
        thread.join(timeout=120)
    stacked.join()
    for number in range(3):
        folder = tmp_path / f"alone-{number}"
        folder.mkdir()
        alone(number, folder)
        same_losses(tmp_path / f"{number}", folder)


def test_a_trial_that_is_stopped_or_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    stacked = Stacked(tmp_path)

    def stop(metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        if metrics["step"] == 4:
            raise InterruptedError("stopped by the scheduler")

    def fail(metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        raise UserError("not this one")

    stacked.start(0)
    stacked.start(1, stop)
    stacked.start(2, fail)
    stacked.join()
    assert isinstance(stacked.found[1], InterruptedError)
    assert isinstance(stacked.found[2], UserError)
    folder = tmp_path / "alone"
    folder.mkdir()
    alone(0, folder)
    same_losses(tmp_path / "0", folder)


def test_a_trial_goes_on_from_a_checkpoint_and_saves_one_that_fits_a_training_alone(tmp_path: Path) -> None:
    stacked = Stacked(tmp_path)
    kept: list[Path] = []

    def keep(metrics: Mapping[str, float], folder: Path | None) -> None:
        if metrics["step"] == 8 and folder is not None:
            kept.append(folder.rename(tmp_path / "kept"))
            raise InterruptedError

    stacked.start(1, keep)
    stacked.join()
    (tmp_path / "on").mkdir()
    run = run_of(1)
    fitted = stacked.stack.fit(7, run, stacked.data, str(tmp_path / "on"), lambda m, c: None, kept[0])
    (tmp_path / "alone").mkdir()
    expected = alone(1, tmp_path / "alone")
    assert [line["step"] for line in lines(tmp_path / "on", "train")] == list(range(9, 21))
    assert distance(fitted.engine.parameters(), expected.engine.parameters()) < 1e-5
    saved, own = (checkpoint.read(tmp_path / name / "checkpoint") for name in ("on", "alone"))
    assert saved.parameters.keys() == own.parameters.keys()
    assert json.loads((tmp_path / "on/checkpoint/state.json").read_text())["backbone_checksum"] is not None


def test_trials_with_equal_batches_share_the_trunk(tmp_path: Path) -> None:
    """With adapters in the last of two layers only, the first layer reads each batch once for all trials."""
    stacked = Stacked(tmp_path, ("adapter={rank: 2, top_layers: 1}",))
    shared = stacked.stack._shared
    assert shared is not None
    widths: dict[str, list[int]] = {"0": [], "1": []}
    for name, layer in shared.backbone.model.layers.named_children():
        layer.register_forward_hook(lambda module, args, output, name=name: widths[name].append(_length(output)))
    for number in (0, 1):
        stacked.start(number)
    stacked.join()
    both = [first for first, second in zip(widths["0"], widths["1"], strict=True) if second == 2 * first]
    assert len(both) > 30
    for number in (0, 1):
        folder = tmp_path / f"alone-{number}"
        folder.mkdir()
        alone(number, folder, "adapter={rank: 2, top_layers: 1}")
        same_losses(tmp_path / f"{number}", folder)


def _length(output: Any) -> int:
    return int((output[0] if isinstance(output, tuple) else output).shape[1])


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
