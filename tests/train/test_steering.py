"""Adaptive weights in the training loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.engine.base import Engine
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.strategy.adaptive import AdaptiveWeights, cosines
from mtrec_ray.train import checkpoint
from mtrec_ray.train.loop import Recipe, training_steps
from mtrec_ray.train.steering import Steering
from tests.batches import Step, make_batch, make_request, make_run, make_steps
from tests.multitask.balancing.training import SGD
from tests.train.test_worker import lines
from tests.train.test_worker import train as fit
from tests.training import distance, make_engine, make_objective, make_recipe, run_ranks

STEERED = "strategy.adaptive={main: [like], every: 1, rate: 0.5, memory: 0.5}"
STEPS = 3


class Valid:
    """A validation split: step n has the requests 1000 + 8n to 1008 + 8n, dealt as those of `make_steps`."""

    def __init__(self, ranks: int = 1, rank: int = 0, micro_steps: int = 1, tokens: bool = False) -> None:
        self.ranks, self.rank, self.micro_steps, self.tokens = ranks, rank, micro_steps, tokens
        self.read: list[int] = []

    def steps(self, first: int, last: int) -> Iterator[Step]:
        for step in range(first, last):
            self.read.append(step)
            mine = [n for n in range(1000 + 8 * step, 1008 + 8 * step) if n % self.ranks == self.rank]
            parts = [mine[m :: self.micro_steps] for m in range(self.micro_steps)]
            yield Step(step, [make_batch([make_request(n) for n in part], self.tokens) for part in parts])


def steered(run: Run, num_steps: int, engine: Engine, valid: Any) -> Recipe:
    objective = make_objective(run)
    weights = AdaptiveWeights(objective.tasks, run.strategy.adaptive)
    steering = Steering(weights, run.strategy.adaptive, objective, engine, valid, run.seed)
    return replace(make_recipe(run, num_steps, engine), steering=steering)


def train(
    run: Run, data: Sequence[Step], valid: Any, with_backbone: bool = False, start: Any = lambda name, value: value
) -> dict[str, Any]:
    """Factors and cosines of each step, the last factors and the last weights."""
    engine = make_engine(run, with_backbone)
    engine.load_parameters({name: start(name, value) for name, value in engine.parameters().items()})
    recipe = steered(run, len(data), engine, valid)
    assert recipe.steering is not None
    results = list(training_steps(engine, data, recipe))
    recipe.steering.close()
    found = {
        "factors": [result.factors for result in results],
        "agreement": [result.agreement for result in results],
        "last": recipe.steering.weights.factors,
        "parameters": engine.parameters(),
    }
    engine.close()
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(
        torch.stack(found["agreement"]), torch.stack(expected["agreement"]), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(found["last"], expected["last"], rtol=1e-4, atol=0)
    assert distance(found["parameters"], expected["parameters"]) < 1e-5


def test_the_cosines_are_those_of_plain_autograd() -> None:
    run = make_run(STEERED, "tasks.like.weight=2", *SGD)
    (train_step,), (valid_step,) = make_steps(1), Valid().steps(0, 1)
    there, looked = (
        replace(step.batches[0], numbers=step.batches[0].numbers.double()) for step in (train_step, valid_step)
    )
    engine = make_engine(run)
    engine.model.double().train()
    of_train, of_valid = (_gradients(engine.model, run, batch) for batch in (there, looked))
    expected = cosines(of_train, of_valid[0])

    class One:
        def steps(self, first: int, last: int) -> Iterator[Step]:
            yield Step(0, [looked])

    (result,) = training_steps(engine, [Step(0, [there])], steered(run, 1, engine, One()))
    assert result.agreement is not None
    torch.testing.assert_close(result.agreement, expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().min() > 1e-3


def _gradients(model: Any, run: Run, batch: Batch) -> Tensor:
    """[T, P] of each task's mean loss, by a backward pass per task."""
    objective = make_objective(run)
    means = objective.loss_sums(model(batch, DropoutKey(run.seed, 0)), batch) / objective.counts(batch)
    found = []
    for mean in means:
        of_weight, of_bias = torch.autograd.grad(mean, [model.fuse[0].weight, model.fuse[0].bias], retain_graph=True)
        found.append(torch.cat([of_weight, of_bias[:, None]], dim=1).flatten())
    return torch.stack(found)


def test_factors_of_one_step_are_in_force_in_the_next() -> None:
    found = train(make_run(STEERED, *SGD), make_steps(STEPS), Valid())
    factors = [*found["factors"], found["last"]]
    assert factors[0].tolist() == [1, 1, 1]
    for before, after, agreement in zip(factors, factors[1:], found["agreement"], strict=False):
        torch.testing.assert_close(after[1:], before[1:] * (0.5 * agreement[1:]).exp(), rtol=1e-12, atol=0)
        assert after[0] == 1


@dataclass(frozen=True)
class Replayed(Recipe):
    """Without a look at anything, the factors that were found elsewhere."""

    found: tuple[Tensor, ...] = ()

    def factors(self, step: int) -> Tensor:
        return self.found[step]


def test_looking_changes_nothing_but_the_factors() -> None:
    run, data = make_run(STEERED, *SGD), make_steps(STEPS)
    looked, engine = train(run, data, Valid()), make_engine(run)
    recipe = Replayed(**vars(make_recipe(run, STEPS, engine)), found=tuple(looked["factors"]))
    list(training_steps(engine, data, recipe))
    assert distance(engine.parameters(), looked["parameters"]) < 1e-6
    assert distance(weights_without(run, data), looked["parameters"]) > 1e-4


def weights_without(run: Run, data: Sequence[Step]) -> dict[str, Tensor]:
    """With factors of one in all steps."""
    engine = make_engine(run)
    list(training_steps(engine, data, make_recipe(run, len(data), engine)))
    return engine.parameters()


def test_looks_are_taken_every_so_many_steps_and_read_one_validation_step_each() -> None:
    valid = Valid()
    found = train(make_run("strategy.adaptive={main: [like], every: 2}", *SGD), make_steps(5), valid)
    assert [agreement is not None for agreement in found["agreement"]] == [True, False, True, False, True]
    assert valid.read == [0, 1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        "main: [stars], every: 1, rate: 0.5, memory: 0.5",
        "main: [like, stars], every: 1, rate: 0.5, memory: 0.5",
        "main: [like], every: 2, rate: 0.5, memory: 0.5",
        "main: [like], every: 1, rate: 0.1, memory: 0.5",
        "main: [like], every: 1, rate: 0.5, memory: 0.9",
        "main: [like], every: 1, rate: 0.5, memory: 0.5, least: 0.99",
        "main: [like], every: 1, rate: 0.5, memory: 0.5, most: 1.01",
    ],
)
def test_each_setting_changes_the_training(changed: str) -> None:
    first, second = (
        train(make_run(setting, *SGD), make_steps(8), Valid())
        for setting in (STEERED, f"strategy.adaptive={{{changed}}}")
    )
    assert not torch.equal(first["last"], second["last"])
    assert distance(first["parameters"], second["parameters"]) > 1e-7


def test_accumulation_changes_nothing() -> None:
    run = make_run(STEERED, *SGD)
    whole = train(run, make_steps(STEPS, tokens=True), Valid(tokens=True), with_backbone=True)
    parts = train(
        run, make_steps(STEPS, tokens=True, micro_steps=4), Valid(micro_steps=3, tokens=True), with_backbone=True
    )
    assert_same(parts, whole)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_task_with_the_same_labels_gains_weight_and_one_with_opposite_labels_loses_it(sign: int) -> None:
    """Both frozen towers read z alike and say next to nothing yet, so that both gradients are those of the labels; in
    train rows stars follow likes, or are the other way round."""
    data = make_steps(12, requests=16)
    for step in data:
        for batch in step.batches:
            batch.labels[:, 1] = 3.5 + sign * 2 * (batch.labels[:, 0] - 0.5)

    def alike(name: str, value: Tensor) -> Tensor:
        small = 0.01 if name.endswith("out.weight") else 0.0
        return torch.full_like(value, small) if name.startswith("towers.") else value

    overrides = ("towers={z_dim: 4, hidden: [], dropout: 0}", "train.learning_rate={adapters: 0, towers: 0, tables: 0}")
    factor = float(train(make_run(STEERED, *SGD, *overrides), data, Valid(), start=alike)["last"][1])
    assert factor > 2 if sign > 0 else factor < 0.5


def test_killed_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    overrides = ("backbone=none", "strategy.adaptive={main: [like], every: 3, rate: 0.5}")
    never_stopped = fit(tmp_path / "whole", *overrides).engine.parameters()
    with pytest.raises((ConnectionError, RuntimeError)):
        fit(tmp_path / "stopped", *overrides, fails_at=10)
    assert distance(fit(tmp_path / "stopped", *overrides).engine.parameters(), never_stopped) == 0
    found = [checkpoint.read(tmp_path / name / "latest").balance for name in ("whole", "stopped")]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert found[0]["factors"][1] != 1
    logged = lines(tmp_path / "whole", "train")
    assert [line["factor/like"] for line in logged] == [1] * 6
    assert logged[-1]["factor/stars"] == found[0]["factors"][1]
    looked = [line["agreement/stars"] for line in logged if "agreement/stars" in line]
    assert len(looked) == 4, "steps 1, 4, 7 and 10, each in a line of its own"
    assert all(0 < abs(cosine) < 1 for cosine in looked)


def test_stages_go_on_with_the_factors_of_those_before(tmp_path: Path) -> None:
    stages = "strategy.stages=[{until: 0.5, train: [towers]}, {until: 1}]"
    fit(tmp_path, "backbone=none", "strategy.adaptive={main: [like], every: 2, rate: 0.5}", stages, "train.log_every=1")
    factors = [line["factor/stars"] for line in lines(tmp_path, "train")]
    moves = [after / before for before, after in pairwise(factors)]
    assert len(factors) == 12
    assert [move != 1 for move in moves] == [True, False] * 5 + [True]


def _on_rank() -> dict[str, Any]:
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    data = make_steps(STEPS, ranks=ranks, rank=rank, micro_steps=2, tokens=True)
    found = {}
    for name in ("plain", *map(str, range(4))):
        kind = () if name == "plain" else ("engine.name=deepspeed", f"engine.zero_stage={name}")
        run = make_run(STEERED, *SGD, *kind)
        found[name] = train(run, data, Valid(ranks, rank, 2, tokens=True), with_backbone=True)
    return found


class NothingOnRank1(Valid):
    """All validation rows are rank 0's."""

    def steps(self, first: int, last: int) -> Iterator[Step]:
        for step, whole in zip(super().steps(first, last), Valid(tokens=self.tokens).steps(first, last), strict=True):
            yield Step(step.plan, whole.batches if self.rank == 0 else [make_batch([], tokens=self.tokens)])


def _with_empty_ranks() -> dict[str, Any]:
    rank = torch.distributed.get_rank()
    data = (
        make_steps(STEPS, tokens=True) if rank == 0 else [Step(n, [make_batch([], tokens=True)]) for n in range(STEPS)]
    )
    found = {}
    for name, kind in (("plain", ()), ("3", ("engine.name=deepspeed", "engine.zero_stage=3"))):
        run = make_run(STEERED, *SGD, *kind)
        found[name] = train(run, data, NothingOnRank1(2, rank, tokens=True), with_backbone=True)
    return found


def _both() -> tuple[dict[str, Any], dict[str, Any]]:
    return _on_rank(), _with_empty_ranks()


@pytest.mark.distributed
def test_two_ranks_are_one_at_every_zero_stage_also_where_one_has_no_candidate() -> None:
    first, second = run_ranks(_both, 2)
    one = train(make_run(STEERED, *SGD), make_steps(STEPS, tokens=True), Valid(tokens=True), with_backbone=True)
    for mine, other in zip(first, second, strict=True):
        for name, found in mine.items():
            assert_same(found, one)
            assert torch.equal(found["last"], other[name]["last"]), "the ranks weigh alike"
