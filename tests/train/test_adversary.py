"""The worst inputs: of toy losses by hand, and of a model against autograd and each request alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.config import Adversarial
from mtrec_ray.data.batch import Batch
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.perturbation import Place, Reading, reading, unit_norms, units
from mtrec_ray.multitask.losses import Objective
from mtrec_ray.train.adversary import perturbation
from tests.batches import make_batch, make_request, make_run
from tests.training import make_engine, make_objective

FGM = Adversarial(method="fgm", epsilon=0.1)
BATCH = make_batch([make_request(n) for n in range(6)], tokens=True)
REQUEST = BATCH.layout.token_requests()


def inputs(width: int = 3) -> Tensor:
    return torch.randn(BATCH.layout.length, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def toy(loss: Callable[[Tensor], Tensor]) -> Callable[[Reading], Tensor]:
    """The loss of the inputs of a batch's tokens, read as a model reads them."""
    rows = torch.arange(BATCH.layout.length)
    return lambda found: loss(found.read(inputs(), rows, len(rows)))


def by_request(rows: Tensor) -> list[Tensor]:
    return [rows[r == REQUEST] for r in range(BATCH.layout.num_requests)]


def test_a_linear_loss_moves_each_request_along_its_gradient() -> None:
    slope = torch.randn(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = perturbation(toy(lambda x: (x @ slope * (1.0 + REQUEST)).sum()), BATCH, "tokens", FGM)
    for r, (moved, own) in enumerate(zip(by_request(found), by_request(inputs()), strict=True)):
        gradient = (slope * (1.0 + r)).expand_as(own)
        torch.testing.assert_close(moved, 0.1 * own.norm() * gradient / gradient.norm())


def test_what_has_no_gradient_is_left_alone_and_left_out() -> None:
    first = torch.arange(BATCH.layout.length) == 0
    found = perturbation(toy(lambda x: x[first].sum()), BATCH, "tokens", FGM)
    assert not found[~first].any()
    assert float(found[0].norm()) == pytest.approx(0.1 * float(inputs()[0].norm()))


def curved(x: Tensor) -> Tensor:
    """Each request's loss turns away from the direction in which it rises at first."""
    return (torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64) * (x + 0.2) ** 2).sum() + (x[:, 0] * x[:, 1]).sum()


def test_steps_stay_in_the_ball_and_find_a_larger_loss_than_one_step() -> None:
    sizes = torch.stack([own.norm() for own in by_request(inputs())])
    look = toy(curved)
    losses = {}
    for name, config in {
        "fgm": Adversarial(method="fgm", epsilon=0.5),
        "pgd": Adversarial(method="pgd", epsilon=0.5, steps=6, step_size=0.2),
    }.items():
        found = perturbation(look, BATCH, "tokens", config)
        lengths = torch.stack([moved.norm() for moved in by_request(found)])
        assert (lengths <= 0.5 * sizes * (1 + 1e-12)).all()
        torch.testing.assert_close(lengths, 0.5 * sizes)  # 6 steps of 0.2 reach the edge
        losses[name] = float(look(Reading(found)))
    assert losses["pgd"] > losses["fgm"] * 1.001 > float(curved(inputs()))
    short = perturbation(look, BATCH, "tokens", Adversarial(method="pgd", epsilon=0.5, steps=2, step_size=0.05))
    assert (torch.stack([moved.norm() for moved in by_request(short)]) <= 0.1 * sizes * (1 + 1e-12)).all()


def test_one_step_of_epsilon_is_the_fast_method() -> None:
    one = Adversarial(method="pgd", epsilon=0.1, steps=1, step_size=0.1)
    found = [perturbation(toy(curved), BATCH, "tokens", config) for config in (FGM, one)]
    torch.testing.assert_close(*found, rtol=0, atol=0)
    default = perturbation(toy(curved), BATCH, "tokens", Adversarial(method="pgd", epsilon=0.1))
    given = Adversarial(method="pgd", epsilon=0.1, steps=3, step_size=0.2 / 3)
    torch.testing.assert_close(default, perturbation(toy(curved), BATCH, "tokens", given), rtol=0, atol=0)


class Case:
    """A model with all its dropouts, in float64, and its loss of a step whose counts are fixed."""

    def __init__(self, place: Place, mode: str = "packed", *overrides: str) -> None:
        run = make_run("adapter.dropout=0.2", *overrides)
        self.model: Any = make_engine(run, with_backbone=True).model.double().train()
        self.model.backbone.mode = mode
        self.objective: Objective = make_objective(run)
        self.place: Place = place
        self.scales = self.objective.scales(torch.tensor([9.0, 7.0, 5.0]))

    def loss(self, batch: Batch, found: Reading | None = None) -> Tensor:
        with reading(self.model, batch, self.place, found or Reading()):
            views = self.model(batch, DropoutKey(0, 3))
        return self.objective.loss(self.objective.loss_sums(views, batch), self.scales)

    def perturbation(self, batch: Batch, config: Adversarial) -> Tensor:
        return perturbation(lambda found: self.loss(batch, found), batch, self.place, config)


def batch_of(*numbers: int) -> Batch:
    return make_batch([make_request(n) for n in numbers], tokens=True)


@pytest.mark.parametrize("config", [FGM, Adversarial(method="pgd", epsilon=0.1, steps=2)], ids=["fgm", "pgd"])
@pytest.mark.parametrize(("place", "mode"), [("tokens", "packed"), ("tokens", "separate"), ("features", "packed")])
def test_each_unit_is_moved_as_it_is_alone(float64: None, place: Place, mode: str, config: Adversarial) -> None:
    case, numbers = Case(place, mode), (3, 5, 8, 9)
    whole = case.perturbation(batch_of(*numbers), config)
    alone = [Case(place).perturbation(batch_of(number), config) for number in numbers]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-9, atol=1e-12)
    assert all(float(rows.norm()) > 0 for rows in alone)


@pytest.mark.parametrize("place", ["tokens", "features"])
def test_the_loss_rises_by_the_gradients_length_times_the_move(float64: None, place: Place) -> None:
    case, batch, still = Case(place, "packed", "seed=3"), batch_of(*range(6)), Reading()
    loss = case.loss(batch, still)
    assert still.added is not None
    assert still.values is not None
    (gradient,) = torch.autograd.grad(loss, still.added)
    unit, count = units(batch, place)
    sizes = unit_norms(still.values * (gradient != 0).any(1, keepdim=True), unit, count)
    for epsilon, tolerance in ((1e-3, 2e-2), (1e-5, 2e-4)):
        moved = case.loss(batch, Reading(case.perturbation(batch, Adversarial(method="fgm", epsilon=epsilon))))
        rise = float((unit_norms(gradient, unit, count) * epsilon * sizes).sum())
        assert float((moved - loss).detach()) == pytest.approx(rise, rel=tolerance)
        assert rise > 0


def test_moved_features_are_the_inputs_of_their_network(float64: None) -> None:
    case, batch, found = Case("features"), batch_of(1, 2), Reading()
    seen = []
    case.model.side.network[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    case.loss(batch, found)
    torch.testing.assert_close(found.values, seen[0].detach(), rtol=0, atol=0)
    shift = torch.ones_like(seen[0])
    case.loss(batch, Reading(shift))
    torch.testing.assert_close(seen[1], seen[0] + 1)
    case.model(batch, DropoutKey(0, 3))
    torch.testing.assert_close(seen[2], seen[0], rtol=0, atol=0)  # nothing is left behind
