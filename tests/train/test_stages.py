"""Staged and alternating training through `fit`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.errors import ConfigError
from mtrec_ray.train import checkpoint
from mtrec_ray.train.context import LocalContext
from tests.train.test_worker import lines, train
from tests.training import distance, run_ranks

STAGED = (
    "backbone=nano",
    "strategy.stages=[{until: 0.34, train: [towers]}, {until: 0.67, layers: 1, train: [adapters, towers]}, {until: 1}]",
    "train.evaluations_per_epoch=4",
    "train.weight_decay={adapters: 0, towers: 0, tables: 0}",
)
"""12 steps, each evaluated and so reported with a checkpoint: 4 train the towers, 4 the top layer too, 4 everything."""


class Keeping(LocalContext):
    """Keeps the weights of every checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.weights: list[dict[str, Tensor]] = []

    def report(self, metrics: Any, folder: Path | None) -> None:
        super().report(metrics, folder)
        if folder is not None:
            self.weights.append(checkpoint.read(folder).parameters)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {group_of(name) for name in before if not torch.equal(before[name], after[name])}


def group_of(name: str) -> str:
    if name.startswith("backbone."):
        return f"layer {name.split('.layers.')[1][0]}"
    return "tables" if ".table." in name else "towers"


def groups_by_stage(weights: list[dict[str, Tensor]]) -> list[set[str]]:
    """What moves within the stages; weights after steps 1 to 12."""
    return [moved(weights[first], weights[last]) for first, last in ((0, 3), (3, 7), (7, 11))]


EXPECTED = [{"towers"}, {"towers", "layer 1"}, {"towers", "tables", "layer 0", "layer 1"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Keeping, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("staged")
    context = Keeping(folder)
    return folder, context, train(folder, *STAGED, context=context).engine.parameters()


def test_each_stage_moves_its_own_weights_and_no_others(whole: tuple[Path, Keeping, dict[str, Tensor]]) -> None:
    assert groups_by_stage(whole[1].weights) == EXPECTED


def test_each_stage_warms_up(whole: tuple[Path, Keeping, dict[str, Tensor]], tmp_path: Path) -> None:
    train(tmp_path, *STAGED, "train.log_every=1", "train.warmup=0.2", "train.decay=constant")
    assert [line["lr_scale"] for line in lines(tmp_path, "train")] == pytest.approx([1 / 3, 2 / 3, 1, 1] * 3)


@pytest.mark.parametrize("fails_at", [2, 4, 6, 8, 11])
def test_killed_and_resumed_equals_never_stopped(
    whole: tuple[Path, Keeping, dict[str, Tensor]], tmp_path: Path, fails_at: int
) -> None:
    with pytest.raises((ConnectionError, RuntimeError)):
        train(tmp_path, *STAGED, fails_at=fails_at)
    resumed = train(tmp_path, *STAGED)
    assert distance(resumed.engine.parameters(), whole[2]) == 0
    assert lines(tmp_path, "valid") == lines(whole[0], "valid")


def test_a_stage_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the stage until 0\.5 trains adapters, of which this run has"):
        train(tmp_path, "backbone=none", "strategy.stages=[{until: 0.5, train: [adapters]}, {until: 1}]")


@pytest.mark.parametrize("turns", ["round_robin", "proportional", "annealed"])
def test_alternating_changes_the_training_and_resumes(turns: str, tmp_path: Path) -> None:
    overrides = ("backbone=none", f"strategy.tasks={turns}")
    never_stopped = train(tmp_path / "whole", *overrides).engine.parameters()
    assert distance(train(tmp_path / "joint", "backbone=none").engine.parameters(), never_stopped) > 1e-4
    with pytest.raises((ConnectionError, RuntimeError)):
        train(tmp_path / "stopped", *overrides, fails_at=9)
    assert distance(train(tmp_path / "stopped", *overrides).engine.parameters(), never_stopped) == 0


@pytest.mark.parametrize("method", ["famo", "gradnorm", "db_mtl"])
def test_what_a_balance_method_learned_is_resumed(method: str, tmp_path: Path) -> None:
    params = "{first_steps: 1}" if method == "gradnorm" else "{}"
    overrides = ("backbone=none", f"balance.method={method}", f"balance.params={params}")
    never_stopped = train(tmp_path / "whole", *overrides).engine.parameters()
    with pytest.raises((ConnectionError, RuntimeError)):
        train(tmp_path / "stopped", *overrides, fails_at=9)
    assert distance(train(tmp_path / "stopped", *overrides).engine.parameters(), never_stopped) == 0
    assert {"balance/like", "balance/stars", "cosine/like~stars"} <= set(lines(tmp_path / "whole", "train")[-1])


@pytest.mark.distributed
def test_stages_at_every_zero_stage_are_those_of_the_plain_engine(
    whole: tuple[Path, Keeping, dict[str, Tensor]], tmp_path: Path
) -> None:
    for stage, (parameters, weights) in run_ranks(_fit_stages, 2, str(tmp_path))[0].items():
        assert groups_by_stage(weights) == EXPECTED, f"ZeRO {stage}"
        assert distance(parameters, whole[2]) < 1e-4, f"ZeRO {stage}"


def _fit_stages(folder: str) -> dict[int, Any]:
    found = {}
    for stage in range(4):
        path = Path(folder) / str(stage)
        overrides = (*STAGED, "engine.name=deepspeed", f"engine.zero_stage={stage}")
        first, second = Keeping(path), Keeping(path)
        with pytest.raises((ConnectionError, RuntimeError)):
            train(path, *overrides, fails_at=6, context=first)
        fitted = train(path, *overrides, context=second)
        found[stage] = fitted.engine.parameters(), [*first.weights, *second.weights]
        fitted.engine.close()
    return found
