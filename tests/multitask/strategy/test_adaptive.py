"""Factors worked by hand, and what is refused before anything is trained."""

import math

import pytest
import torch
from torch import Tensor, nn

from mtrec_ray.config import Adaptive
from mtrec_ray.errors import ConfigError
from mtrec_ray.multitask.balancing.point import split
from mtrec_ray.multitask.strategy.adaptive import (
    AdaptiveWeights,
    check_adaptive,
    check_validation_labels,
    cosines,
)
from mtrec_ray.multitask.strategy.shared_layer import SharedLayer
from mtrec_ray.search.searchable import idle
from mtrec_ray.train.checks import check_data, check_parts
from tests.batches import make_manifest, make_run

TASKS = ("like", "stars", "kind")
NAN = float("nan")


def of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def at(*degrees: float) -> Tensor:
    """Gradients [n, 2] of length 1 at these angles to the first axis."""
    angles = torch.deg2rad(of(*degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


NORTH = of(0, 1)


def test_a_look_multiplies_by_the_exponential_of_rate_times_cosine_and_leaves_main_tasks_alone() -> None:
    weights = AdaptiveWeights(TASKS, Adaptive(main=["like"], rate=0.5, memory=0))
    found = weights.learn(NORTH, of(3, 7, 20)[:, None] * at(80, 30, -90))
    torch.testing.assert_close(found[1:], of(0.5, -1))
    weights.learn(5 * NORTH, at(80, -30, 90))
    weights.learn(NORTH, torch.stack([NORTH, NORTH, 0 * NORTH]))
    expected = of(1, math.exp(0.25 - 0.25 + 0.5), math.exp(-0.5 + 0.5))
    torch.testing.assert_close(weights.factors, expected, rtol=1e-12, atol=0)


def test_with_memory_the_means_over_looks_are_compared_whatever_the_factors_were() -> None:
    """Both gradients turn: none of a look's pairs agrees, the means do."""
    weights = AdaptiveWeights(TASKS, Adaptive(main=["like"], rate=1, memory=0.5))
    assert weights.learn(at(0)[0], at(0, 90, -90))[1].abs() < 1e-12
    before = weights.factors
    found = weights.learn(at(90)[0], before[:, None] * at(90, 0, 0))
    cosine = float(cosines(of(0.5, 0.25)[None], of(0.25, 0.5)))
    assert float(found[1]) == pytest.approx(cosine) == pytest.approx(0.8)
    torch.testing.assert_close(weights.factors[1], before[1] * math.exp(0.8))


def test_a_task_without_gradient_keeps_its_factor_and_its_mean() -> None:
    weights = AdaptiveWeights(TASKS, Adaptive(main=["like"], memory=0.5))
    weights.learn(NORTH, at(90, 60, 90))
    before = weights.state()
    found = weights.learn(NORTH, torch.stack([NORTH, 0 * NORTH, NORTH]))
    assert found.isnan().tolist() == [False, True, False]
    assert weights.factors[1] == before["factors"][1]
    assert weights.factors[2] > before["factors"][2]
    assert torch.equal(weights.state()["means"][2], before["means"][2])
    unmoved = weights.state()["factors"]
    assert weights.learn(0 * NORTH, at(90, 90, 90)).isnan().all()
    assert torch.equal(weights.factors, unmoved)


def test_factors_stay_between_their_bounds_and_come_back_from_them() -> None:
    weights = AdaptiveWeights(TASKS, Adaptive(main=["like"], rate=2.0, least=0.25, most=3.0, memory=0))
    for _ in range(5):
        weights.learn(NORTH, at(0, 90, -90))
    assert weights.factors.tolist() == [1, 3, 0.25]
    weights.learn(NORTH, at(0, -30, 30))
    torch.testing.assert_close(weights.factors, of(1, 3 / math.e, 0.25 * math.e), rtol=1e-12, atol=0)


def test_cosines_are_those_of_the_definition_and_missing_where_a_gradient_is() -> None:
    found = cosines(of(3, 4, -6, 8, 0, 0).view(3, 2), of(0, 2))
    torch.testing.assert_close(found, of(0.8, 0.8, NAN), equal_nan=True)
    assert cosines(torch.ones(2, 3), torch.zeros(3)).isnan().all()


def test_state_goes_on_exactly_and_that_of_another_run_is_refused() -> None:
    first, second = (AdaptiveWeights(TASKS, Adaptive(main=["like"])) for _ in range(2))
    first.learn(NORTH, at(10, 20, -40))
    second.load_state(first.state())
    for weights in (first, second):
        weights.learn(at(50)[0], at(0, -70, 30))
    assert torch.equal(first.factors, second.factors)
    with pytest.raises(
        ConfigError, match=r"the checkpoint holds the state \{\}, which is not that of adaptive weights"
    ):
        second.load_state({})


def test_gradients_of_the_shared_layer_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 6).double()
    fuse = nn.Sequential(linear, nn.ReLU())
    towers = [nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)).double() for _ in TASKS]
    layer, x = SharedLayer(fuse), torch.randn(9, 4, dtype=torch.float64)
    expected = []
    for tower in towers:
        of_weight, of_bias = torch.autograd.grad(tower(fuse(x)).square().sum(), [linear.weight, linear.bias])
        expected.append(torch.cat([of_weight, of_bias[:, None]], dim=1).flatten())

    layer.listens = True
    seen: list[Tensor] = []
    copies = split(fuse(x), 3, lambda g: torch.zeros(3, dtype=torch.float64), lambda g: seen.append(layer.gradients(g)))
    sum(tower(copy).square().sum() for tower, copy in zip(towers, copies, strict=True)).backward()
    torch.testing.assert_close(seen[0], torch.stack(expected), rtol=1e-12, atol=1e-14)


MAIN = "strategy.adaptive={main: [like]}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.adaptive={main: [lik]}"], r"there is no task 'lik'\. Did you mean 'like'"),
        ([MAIN, "tasks.like.weight=0"], r"names 'like', but tasks\.like\.weight is 0"),
        (["strategy.adaptive={main: [like, stars, kind]}"], "names all tasks that have a weight"),
        ([MAIN, "tasks.stars.weight=0", "tasks.kind.weight=0"], "names all tasks that have a weight"),
        ([MAIN, "strategy.tasks=round_robin"], r"strategy\.tasks is round_robin, which trains one task a step"),
        ([MAIN, "balance.method=pcgrad"], r"strategy\.adaptive and balance\.method 'pcgrad' both choose"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_anything_is_read(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_adaptive(make_run(*overrides))
    with pytest.raises(ConfigError, match=message):
        check_parts(make_run(*overrides))


def test_a_main_task_without_validation_labels_is_refused() -> None:
    manifest = make_manifest()
    check_validation_labels(make_run(MAIN), manifest)
    without = [task.model_copy(update={"observed": {**task.observed, "valid": 0}}) for task in manifest.tasks]
    empty = manifest.model_copy(update={"tasks": [without[0], *manifest.tasks[1:]]})
    with pytest.raises(ConfigError, match="names 'like', which has no observed label in the validation split"):
        check_data(make_run(MAIN), empty)
    check_validation_labels(make_run(MAIN), manifest.model_copy(update={"tasks": [manifest.tasks[0], *without[1:]]}))


def test_settings_without_a_main_task_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rate does nothing while `main` names no task"):
        make_run("strategy.adaptive={rate: 0.5}")


def test_a_search_over_settings_that_do_nothing_is_told() -> None:
    assert idle("strategy.adaptive.rate", [make_run()]) == "strategy.adaptive.main is empty"
    assert idle("strategy.adaptive.rate", [make_run(MAIN)]) is None
    assert idle("strategy.adaptive.main", [make_run()]) is None
