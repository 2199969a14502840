"""Steps of row tables, against rules worked by hand in float64, row by row."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.engine.plain import PlainEngine
from mtrec_ray.engine.row_rules import RowAdafactor, RowAdamW, RowSGD, Rule
from mtrec_ray.engine.tables import row_sums, summed
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.row_table import RowTable, row_tables
from tests.batches import make_batch, make_manifest, make_request, make_run, make_steps
from tests.training import CPU, backward, distance, make_engine, make_objective, take_steps

RATE, DECAY, DIM, ROWS = 0.1, 0.2, 3, 6
TOUCHED = [[1, 3], [3], [0, 3, 4], [1, 4], [1, 3, 4]]
"""Rows of each step; rows 2 and 5 are never touched."""
TABLES = "features={user_dim: 4, item_dim: 4, category_dim: 3, history_dim: 4, id_dropout: 0}"
DECAYS = "train.weight_decay={adapters: 0, towers: 0, tables: 0.3}"


def gradients_of(step: int) -> Tensor:
    return torch.randn(len(TOUCHED[step]), DIM, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def adamw(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    first = second = torch.zeros(DIM, dtype=torch.float64)
    for t, gradient in enumerate(gradients, 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        mean, square = first / (1 - 0.9**t), second / (1 - 0.999**t)
        weight = weight - RATE * (mean / (square.sqrt() + 1e-8) + DECAY * weight)
    return weight


def sgd(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    velocity = torch.zeros(DIM, dtype=torch.float64)
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient + DECAY * weight
        weight = weight - RATE * velocity
    return weight


def adafactor(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    variance = torch.zeros(DIM, dtype=torch.float64)
    for t, gradient in enumerate(gradients, 1):
        beta = 1 - t**-0.8
        variance = beta * variance + (1 - beta) * gradient**2
        update = gradient / variance.sqrt()
        update = update / max(1.0, rms(update))
        size = max(1e-3, rms(weight)) * min(RATE, t**-0.5)
        weight = weight * (1 - RATE * DECAY) - size * update
    return weight


def rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rule", "by_hand"), [(RowAdamW(), adamw), (RowSGD(0.9), sgd), (RowAdafactor(), adafactor)])
def test_a_row_is_stepped_as_if_the_steps_that_touched_it_were_all(
    rule: Rule, by_hand: Any, dtype: torch.dtype
) -> None:
    before = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = before.clone().to(dtype)
    state = rule.first_state(weight)
    never = {key: value[[2, 5]].clone() for key, value in state.items()}
    for step, rows in enumerate(TOUCHED):
        rule.step(weight, state, torch.tensor(rows), gradients_of(step).to(dtype), RATE, DECAY)
    for row in range(ROWS):
        own = [gradients_of(step)[rows.index(row)] for step, rows in enumerate(TOUCHED) if row in rows]
        assert len(own) in (0, 1, 3, 4)
        torch.testing.assert_close(
            weight[row].double(), by_hand(before[row], own), rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6
        )
    assert torch.equal(weight[[2, 5]], before[[2, 5]].to(dtype))
    assert all(torch.equal(state[key][[2, 5]], value) for key, value in never.items())


def test_a_row_that_is_touched_late_starts_as_one_that_is_touched_first() -> None:
    rule, weight = RowAdamW(), torch.zeros(2, DIM)
    state = rule.first_state(weight)
    for _ in range(50):
        rule.step(weight, state, torch.tensor([0]), torch.ones(1, DIM), RATE, 0.0)
    rule.step(weight, state, torch.tensor([1]), torch.ones(1, DIM), RATE, 0.0)
    torch.testing.assert_close(weight[1], torch.full((DIM,), -RATE))


def test_sums_are_by_row_in_order_and_leave_out_zeros() -> None:
    rows = torch.tensor([7, 2, 7, 4, 9, 9])
    values = torch.tensor([[1.0, 2.0], [3.0, 0.0], [10.0, 20.0], [0.0, 0.0], [5.0, 1.0], [-5.0, -1.0]]).double()
    found, sums = row_sums(rows, values)
    assert found.tolist() == [2, 7]
    assert sums.tolist() == [[3.0, 0.0], [11.0, 22.0]]
    found, sums = summed(
        [(found, sums), row_sums(torch.tensor([2, 1]), torch.tensor([[-3.0, 0.0], [0.0, 4.0]]).double())]
    )
    assert found.tolist() == [1, 7]
    assert sums.tolist() == [[0.0, 4.0], [11.0, 22.0]]
    nothing = row_sums(rows[:0], values[:0])
    assert [tuple(part.shape) for part in nothing] == [(0,), (0, 2)]


def test_how_reads_are_dealt_out_does_not_show() -> None:
    """float32 gradients of very different sizes, in any order and any parts."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 50, (5000,), generator=generator)
    sizes = 10.0 ** torch.randint(-4, 4, (5000, 1), generator=generator)
    values = (torch.randn(5000, DIM, generator=generator) * sizes).double()
    found, sums = row_sums(rows, values)
    for _ in range(3):
        order = torch.randperm(5000, generator=generator)
        parts = [row_sums(rows[part], values[part]) for part in order.split(1234)]
        again, others = summed(parts)
        assert torch.equal(again, found)
        assert torch.equal(others.float(), sums.float())


def test_gradients_are_those_of_whole_tables() -> None:
    run = make_run(TABLES)
    engine, reference = (make_engine(run, with_backbone=False) for _ in range(2))
    batch = make_batch([make_request(n) for n in range(6)])
    backward(engine, [batch], make_objective(run))
    for table in row_tables(reference.model).values():
        table.is_trained = False
        table.weight.requires_grad_()
    backward(reference, [batch], make_objective(run))
    expected = {name: table.weight.grad for name, table in row_tables(reference.model).items()}
    found = {name: gradient for name, gradient in engine.gradients().items() if name in expected}
    assert len(found) == 5
    assert distance(found, expected) < 1e-6


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_rows_that_no_step_touched_stay_bit_for_bit(optimizer: str) -> None:
    """Decay included; and of the others every one moves."""
    run = make_run(TABLES, DECAYS, f"engine.optimizer={optimizer}", "train.momentum=0.9")
    engine = make_engine(run)
    before, state = engine.parameters(), engine.optimizer_state()
    steps = make_steps(3, requests=1)
    gradients = take_steps(engine, steps, make_objective(run))
    after, later = engine.parameters(), engine.optimizer_state()
    for name in row_tables(engine.model):
        touched = sum(gradient[name].abs() for gradient in gradients).any(dim=1)
        assert touched.any(), name
        assert not touched.all() or len(touched) <= 5, name  # there are few categories
        assert torch.equal((after[name] != before[name]).any(dim=1), touched), name
        assert later[name].keys() == state[name].keys()
        for key, value in later[name].items():
            assert torch.equal(value[~touched], state[name][key][~touched]), (name, key)


def test_their_gradients_count_in_the_norm_and_are_clipped_by_it() -> None:
    overrides = ("engine.optimizer=sgd", "train.learning_rate={adapters: 10, towers: 10, tables: 10}")
    run = make_run(
        TABLES, *overrides, "train.weight_decay={adapters: 0, towers: 0, tables: 0}", "train.clip_norm=0.001"
    )
    model = Recommender(None, make_manifest(), run)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "side.network.0.bias")  # beside all others the tables' gradients would be lost
    engine = PlainEngine(run, model, CPU)
    before = engine.parameters()
    backward(engine, make_steps(1)[0].batches, make_objective(run))
    gradients = engine.gradients()
    norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()
    of_tables = torch.stack([gradients[name].double().square().sum() for name in row_tables(engine.model)]).sum().sqrt()
    assert 0.1 * norm < of_tables < 0.99 * norm
    assert float(engine.step(1.0)) == pytest.approx(float(norm), rel=1e-5)
    after = engine.parameters()
    moved = {name: after[name] - before[name] for name in gradients}
    assert (
        distance(moved, {name: -10 * 0.001 / (norm + 1e-6) * gradient for name, gradient in gradients.items()}) < 1e-4
    )


def test_a_stage_may_train_tables_alone_or_not_at_all() -> None:
    for trains, others in (("tables", "towers"), ("towers", "tables")):
        run = make_run(TABLES, f"strategy.stages=[{{until: 0.5, train: [{trains}]}}, {{until: 1}}]")
        model = Recommender(None, make_manifest(), run).train_stage(run.strategy.stages[0])
        engine = PlainEngine(run, model, CPU)
        before = engine.parameters()
        take_steps(engine, make_steps(1), make_objective(run))
        moved = {name for name, value in engine.parameters().items() if not torch.equal(value, before[name])}
        tables = set(row_tables(model))
        assert moved
        assert (moved <= tables) if trains == "tables" else (moved & tables == set()), others


def test_a_pass_without_a_backward_pass_leaves_nothing_behind() -> None:
    engine = make_engine(make_run(TABLES))
    batch = make_batch([make_request(n) for n in range(6)])
    engine.model.train()
    engine.forward(batch, DropoutKey(0, 0))
    backward(engine, [make_batch([])], make_objective(make_run(TABLES)))
    assert not any(engine.gradients()[name].any() for name in row_tables(engine.model))


def test_the_first_vectors_are_a_function_of_seed_name_and_row() -> None:
    torch.manual_seed(3)
    small, large = (RowTable("a", rows, 5, 0.5).weight for rows in (5000, 20_000))
    torch.randn(100)  # what was drawn before does not matter
    assert torch.equal(RowTable("a", 5000, 5, 0.5).weight, small)
    assert torch.equal(large[:5000], small)
    assert not torch.equal(RowTable("b", 5000, 5, 0.5).weight, small)
    assert float(large.std()) == pytest.approx(0.5, rel=0.02)
    assert float(large.mean()) == pytest.approx(0.0, abs=0.01)
    assert len(large.unique(dim=0)) == len(large)
    torch.manual_seed(4)
    assert not torch.equal(RowTable("a", 5000, 5, 0.5).weight, small)
