"""Kinds that match: their losses from logits, what they count, and what they are refused for."""

from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.model.negatives import NegativeSampler
from mtrec_ray.multitask.losses import Objective, make_objective
from mtrec_ray.train.checks import check_data, check_parts
from tests.batches import make_request
from tests.matching import TASKS, manifest, matching_batch, matching_run


def objective(run: Run | None = None) -> Objective:
    return make_objective(run or matching_run(), manifest())


def test_the_loss_of_a_positive_is_the_log_share_of_its_item_and_rows_without_one_count_nothing() -> None:
    batch = matching_batch([make_request(n) for n in range(3)])
    kind = objective().kinds[1]
    logits = {"next": torch.tensor([[1.0, 0.5, -2.0]]).expand(batch.num_candidates, 3)}
    expected = -np.log(np.exp(1.0) / (np.exp(1.0) + np.exp(0.5) + np.exp(-2.0)))
    assert kind.losses(logits, batch).numpy() == pytest.approx(expected)
    assert kind.weights(batch).tolist() == (batch.labels[:, 1] == 1).float().tolist()
    assert kind.score(logits, batch).tolist() == [1.0] * batch.num_candidates


def test_interest_is_a_cross_entropy_of_zeros_and_ones() -> None:
    batch = matching_batch([make_request(n) for n in range(3)])
    kind = objective().kinds[2]
    logits = {"interest": torch.linspace(-2, 2, batch.num_candidates)[:, None]}
    p = 1 / (1 + np.exp(-logits["interest"][:, 0].numpy()))
    label = batch.labels[:, 2].nan_to_num(0.0).numpy()
    assert kind.losses(logits, batch).numpy() == pytest.approx(-np.log(np.where(label == 1, p, 1 - p)), rel=1e-5)
    assert kind.weights(batch).tolist() == (~torch.isnan(batch.labels[:, 2])).float().tolist()
    assert kind.score(logits, batch).numpy() == pytest.approx(p, rel=1e-6)
    assert kind.initial_bias() == [pytest.approx(np.log(0.3 / 0.7))]


COUNTS = np.array([40, 0, 1, 9, 25])


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_negatives_come_as_often_as_their_counts_to_the_power_say_and_never_without_a_count(power: float) -> None:
    sampler = NegativeSampler(COUNTS, power)
    expected = np.where(COUNTS > 0, COUNTS.astype(float) ** power, 0)
    expected /= expected.sum()
    rows, log_q = sampler.draw(200_000, salt=7)
    share = np.bincount(rows, minlength=len(COUNTS)) / len(rows)
    assert share == pytest.approx(expected, abs=4e-3)
    assert share[1] == 0
    assert np.exp(log_q) == pytest.approx(expected[rows])
    assert np.array_equal(rows, sampler.draw(200_000, salt=7)[0])
    assert not np.array_equal(rows[:50], sampler.draw(50, salt=8)[0])


def sampled_gradient(scores: torch.Tensor, own: int, power: float, negatives: int, draws: int) -> torch.Tensor:
    """Mean gradient with respect to the scores [I] of all items, over independent draws."""
    sampler, kind = NegativeSampler(COUNTS, power), objective().kinds[1]
    scores = scores.clone().requires_grad_()
    rows, log_q = (torch.from_numpy(x).reshape(draws, negatives) for x in sampler.draw(draws * negatives, salt=3))
    corrected = scores[rows] - (log_q + np.log(negatives))
    corrected = corrected.masked_fill(rows == own, -1e30)
    logits = torch.cat([scores[own].expand(draws, 1), corrected], dim=1)
    kind.losses({"next": logits}, None).mean().backward()  # type: ignore[arg-type]
    assert scores.grad is not None
    return scores.grad


def test_the_expected_gradient_approaches_that_of_the_full_softmax_whatever_is_drawn_often() -> None:
    scores = torch.tensor([0.3, 5.0, -0.4, 1.1, 0.2], dtype=torch.float64)
    shown = torch.from_numpy(COUNTS > 0)
    full = torch.softmax(scores.masked_fill(~shown, -torch.inf), 0)
    full[3] -= 1
    errors = {}
    for negatives in (2, 20, 400):
        found = [sampled_gradient(scores, 3, power, negatives, 400_000 // negatives) for power in (0.0, 0.75, 1.0)]
        errors[negatives] = max(float((gradient - full).abs().max()) for gradient in found)
        assert all(gradient[1] == 0 for gradient in found), "an item that is never shown is never drawn"
    assert errors[400] < 4e-3
    assert errors[2] > 3 * errors[20] > 9 * errors[400], "the bias falls with the number of negatives"


def test_without_the_correction_the_gradient_would_be_another_one() -> None:
    """What the test above can see."""
    scores = torch.tensor([0.3, 5.0, -0.4, 1.1, 0.2], dtype=torch.float64)
    log_q = np.full(len(COUNTS), -np.inf)
    rows, log = NegativeSampler(COUNTS, 1.0).draw(1000, salt=0)
    log_q[rows] = log
    drawn = torch.softmax(scores + torch.from_numpy(log_q), 0)
    full = torch.softmax(scores.masked_fill(torch.from_numpy(COUNTS == 0), -torch.inf), 0)
    assert (drawn - full).abs().max() > 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.next.params={negative: 3}", r"tasks\.next\.params\.negative"),
        ("tasks.next.params={negatives: 0}", r"tasks\.next\.params.*negatives"),
        ("tasks.next.params={power: -1}", r"tasks\.next\.params.*power"),
        ("tasks.interest.params={negatives: 3}", r"tasks\.interest\.params\.negatives"),
        ("tasks.like={label: like, kind: conversion, parent: interest}", r"'interest'.*has no tower"),
        ("balance.method=pcgrad", r"balance\.method: 'pcgrad' looks at the tasks' gradients at z, but task 'next'"),
        ("balance.method=gradnorm", r"balance\.method: 'gradnorm'.*Known: .*uncertainty"),
    ],
)
def test_bad_settings_are_refused_with_the_place(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_parts(matching_run(override))


def test_the_place_does_not_act_on_matches() -> None:
    place = "data.columns={user: user, item: item, time: time, position: place}"
    assert [kind.placed for kind in objective().kinds] == [True, False, False]
    with pytest.raises(ConfigError, match=r"position\.tasks: 'next' .*kind 'retrieval' matches users with items"):
        check_parts(matching_run(place, "position={method: pal, tasks: [next]}"))


@pytest.mark.parametrize("backbone", ["none", "nano"])
def test_adversarial_training_is_refused_where_the_inputs_are_not_theirs(backbone: str) -> None:
    on = "regularization.adversarial={method: fgm, epsilon: 0.1, weight: 1}"
    with pytest.raises(ConfigError, match=r"regularization\.adversarial"):
        check_parts(matching_run(on, f"backbone={backbone}", only=True))
    check_parts(matching_run("regularization.adversarial={method: fgm, epsilon: 0.1, weight: 1, on: features}"))


def test_methods_that_look_at_losses_are_welcome() -> None:
    check_parts(matching_run("balance.method=uncertainty"))


def test_what_the_data_tells() -> None:
    check_data(matching_run(), manifest())
    with pytest.raises(ConfigError, match=r"params\.negatives is 12, but there are 11 other items with train rows"):
        check_data(matching_run("tasks.next.params={negatives: 12}"), manifest())
    nothing: Any = [task.model_copy(update={"positives": {"train": 0, "valid": 1, "test": 1}}) for task in TASKS]
    with pytest.raises(DataError, match=r"tasks\.next: no train row has label 1 \(label: next\)"):
        check_data(matching_run(), manifest(nothing))


def test_the_divergence_of_two_predictions_is_that_of_the_distributions_over_the_negatives() -> None:
    """Also where a negative is left out, in both."""
    kind = objective().kinds[1]
    first, second = torch.tensor([[1.0, 0.0, -1e30]]), torch.tensor([[0.0, 1.0, -1e30]])
    p, q = torch.softmax(first, 1), torch.softmax(second, 1)
    by_hand = 0.5 * ((p - q)[:, :2] * (torch.log(p) - torch.log(q))[:, :2]).sum()
    found = kind.divergence({"next": first}, {"next": second}, None)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(float(by_hand))
    assert float(found) > 0.1
