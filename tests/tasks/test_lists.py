"""Objectives over lists against their sums in plain Python, and what they trade."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtrec_ray import config_file
from mtrec_ray.config import Task
from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.evaluate.metrics import METRICS
from mtrec_ray.multitask.losses import Objective
from mtrec_ray.tasks.columns import FeatureColumns
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.kinds import check_run, check_tasks
from tests.tasks.made import make
from tests.tasks.shown import at_random, members, part, shown

ROWS = 99
COLUMNS = FeatureColumns({"genres": slice(0, 3), "brand": slice(0, 1)}, {}, {"item.shown": 0}, ROWS)
PARAMS: dict[str, dict[str, Any]] = {"diversity": {"by": "genres"}, "novelty": {}}
NAMES = sorted(PARAMS)


def objective(kind: str, parent: TaskKind | None = None, **params: Any) -> Any:
    parent = parent or make("binary", name="click")
    return make(kind, PARAMS[kind] | params, index=1, parent=parent, columns=COLUMNS)


def draw(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()


def click(values: Tensor) -> dict[str, Tensor]:
    return {"click": values[:, None]}


def shares(scores: list[float], group: list[int], temperature: float = 1.0) -> dict[int, float]:
    bottom = sum(math.exp(scores[c] / temperature) for c in group)
    return {c: math.exp(scores[c] / temperature) / bottom for c in group}


def alike(categories: list[list[int]], i: int, j: int) -> float:
    if i == j:
        return 1.0
    a, b = ({value for value in categories[c] if value > 0} for c in (i, j))
    return len(a & b) / math.sqrt(len(a) * len(b)) if a and b else 0.0


def by_loops(kind: str, scores: list[float], candidates: Any, group: list[int], temperature: float = 1.0) -> float:
    p = shares(scores, group, temperature)
    if kind == "diversity":
        categories = candidates.categories.tolist()
        return sum(p[i] * p[j] * alike(categories, i, j) for i in group for j in group)
    seen = {c: round(math.expm1(n)) if (n := candidates.numbers[c, 0].item()) == n else 0 for c in group}
    novelty = {c: -math.log2((seen[c] + 1) / (ROWS + 1)) for c in group}
    return sum(p[c] * (1 - novelty[c] / math.log2(ROWS + 1)) for c in group)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.3}, {"group": "request"}], ids=str)
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_loops(seed: int, kind: str, params: dict[str, Any]) -> None:
    candidates, scores = at_random(seed), draw(40, seed)
    made = objective(kind, **params)
    expected, counts = torch.zeros(40, dtype=torch.float64), torch.zeros(40)
    for group in members(candidates, params.get("group", "shown")):
        expected[group[0]] = by_loops(kind, scores.tolist(), candidates, group, params.get("temperature", 1.0))
        counts[group[0]] = len(group) > 1
    torch.testing.assert_close(made.losses(click(scores), candidates), expected, rtol=1e-6, atol=1e-12)
    assert torch.equal(made.weights(candidates), counts)
    assert counts.sum() >= 3
    assert ((expected >= 0) & (expected <= 1 + 1e-12)).all()


def test_diversity_by_hand() -> None:
    """Equal shares of A, A, B: 5 of the 9 pairs of draws are alike."""
    candidates = shown([0.0] * 3, categories=[[1, -1, -1], [1, -1, -1], [2, -1, -1]])
    found = objective("diversity").losses(click(torch.zeros(3)), candidates)
    assert found.tolist() == pytest.approx([5 / 9, 0, 0])
    brand = objective("diversity", by="brand").losses(click(torch.zeros(3)), candidates)
    assert brand.tolist() == pytest.approx([5 / 9, 0, 0])


def test_sets_are_compared_by_their_cosine() -> None:
    """{1, 2} and {2, 3, 4} share one value: 1 / sqrt(2 * 3); a value that is there twice counts once."""
    candidates = shown([0.0] * 2, categories=[[1, 2, 2], [2, 3, 4]])
    found = objective("diversity").losses(click(torch.zeros(2)), candidates)
    assert found[0].item() == pytest.approx((1 + 1 + 2 / math.sqrt(6)) / 4)


@pytest.mark.parametrize("nothing", [[-1, -1, -1], [0, 0, 0], [0, -1, 0]])
def test_unknown_and_absent_values_are_like_nothing_else(nothing: list[int]) -> None:
    candidates = shown([0.0] * 2, categories=[nothing, nothing])
    assert objective("diversity").losses(click(torch.zeros(2)), candidates)[0].item() == pytest.approx(0.5)


def test_novelty_by_hand() -> None:
    """Of 99 rows one item has 24, one 0, and one is missing: log(25) / log(100), 0 and 0."""
    candidates = shown([0.0] * 3, numbers=[[math.log(25)], [0.0], [math.nan]])
    found = objective("novelty").losses(click(torch.zeros(3)), candidates)
    assert found[0].item() == pytest.approx(math.log(25) / math.log(100) / 3)


def test_an_item_that_is_shown_more_often_than_there_are_rows_is_as_known_as_can_be() -> None:
    candidates = shown([0.0] * 2, numbers=[[math.log(1000)]] * 2)
    kind = objective("novelty")
    assert kind.losses(click(torch.zeros(2)), candidates)[0].item() == pytest.approx(1)
    assert kind.traits(np.zeros((2, 0)), candidates.numbers.numpy()).tolist() == [0, 0]


def test_novelty_is_measured_in_bits() -> None:
    numbers = np.array([[math.log(25)], [0.0], [math.nan]], dtype=np.float32)
    assert objective("novelty").traits(np.zeros((3, 0)), numbers).tolist() == pytest.approx(
        [2, math.log2(100), math.log2(100)], rel=1e-6
    )


@pytest.mark.parametrize("kind", NAMES)
def test_gradients_are_finite_differences(kind: str) -> None:
    candidates, made = at_random(5), objective(kind, temperature=0.7)
    assert torch.autograd.gradcheck(lambda x: made.losses(click(x), candidates), draw(40))


@pytest.mark.parametrize("kind", NAMES)
def test_whole_lists_may_be_cut_into_batches(kind: str) -> None:
    candidates, scores, made = at_random(6), draw(40), objective(kind)
    parts = [[c for group in members(candidates)[k::2] for c in group] for k in range(2)]
    cut = sum(made.losses(click(scores[chosen]), part(candidates, chosen)).sum() for chosen in parts)
    torch.testing.assert_close(cut, made.losses(click(scores), candidates).sum())


@pytest.mark.parametrize("kind", NAMES)
def test_no_candidates(kind: str) -> None:
    none, made = part(at_random(0), []), objective(kind)
    assert made.losses(click(draw(0)), none).tolist() == []
    assert made.weights(none).tolist() == []


@pytest.mark.parametrize("kind", NAMES)
def test_there_is_no_tower_and_the_gradient_goes_into_the_parents_logits(kind: str) -> None:
    made, scores = objective(kind), draw(40)
    assert (made.outputs, made.initial_bias(), made.reads, made.ranks) == (0, [], ("click",), "click")
    made.losses(click(scores), at_random(0)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum() > 0


def test_a_conversion_is_ordered_by_the_probability_of_the_whole_chain() -> None:
    candidates, first, second = at_random(0), draw(40, 1), draw(40, 2)
    buy = make("conversion", name="buy", index=1, parent=make("binary", name="click", mean=0.3), mean=0.1)
    made = objective("novelty", parent=buy)
    assert made.reads == ("buy", "click")
    p = torch.sigmoid(first) * torch.sigmoid(second)
    expected = objective("novelty").losses(click(torch.logit(p)), candidates)
    found = made.losses({"click": first[:, None], "buy": second[:, None]}, candidates)
    torch.testing.assert_close(found, expected)


def test_the_order_of_a_regression_and_of_a_ranking_is_that_of_their_output() -> None:
    candidates, scores = at_random(0), draw(40)
    expected = objective("novelty").losses(click(scores), candidates)
    for parent in (make("regression", name="click", std=2.0), make("ranking", name="click")):
        found = objective("novelty", parent=parent).losses(click(scores), candidates)
        torch.testing.assert_close(found, expected)


def test_equal_lists_give_equal_losses_whatever_their_labels_and_weights() -> None:
    candidates, other, made = at_random(0), at_random(0), objective("diversity")
    other.labels[:], other.label_weights[:] = 1, torch.rand(40, 1)
    assert torch.equal(made.losses(click(draw(40)), candidates), made.losses(click(draw(40)), other))
    assert torch.equal(made.weights(candidates), made.weights(other))


CONFIG = """
name: lists
data: {logs: none.csv, columns: {user: user, item: item, time: time}, categories: [brand]}
tasks:
  click: {label: click}
  rating: {kind: multiclass, classes: 3, label: rating}
  varied: {kind: diversity, parent: click, weight: 0.1, params: {by: brand}}
"""


def test_a_config_of_a_list_objective() -> None:
    check_run(config_file.parse(CONFIG))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "tasks.varied.params.by=brnd",
            r"tasks\.varied\.params\.by: no category is called 'brnd'.*Did you mean 'brand'",
        ),
        ("tasks.varied.parent=rating", r"tasks\.varied\.parent: 'rating' is of kind 'multiclass', whose score"),
        ("tasks.varied.parent=null", r"tasks\.varied\.parent: kind 'diversity' is an objective over lists"),
        ("tasks.varied.parent=clck", r"there is no other task 'clck'.*Did you mean 'click'"),
        ("tasks.varied.params={}", r"tasks\.varied\.params\.by"),
        ("tasks.varied.params.temperature=0", r"tasks\.varied\.params\.temperature' is 0"),
        ("augment.negatives=0.5", r"augment\.negatives is 0\.5"),
    ],
)
def test_what_does_not_fit_is_refused_before_data_is_read(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(config_file.parse(CONFIG, [override]))


def test_nothing_is_a_step_after_a_list_objective() -> None:
    tasks = {
        "click": Task(label="click"),
        "varied": Task(kind="diversity", parent="click", params={"by": "brand"}),
        "buy": Task(kind="conversion", label="buy", parent="varied"),
    }
    with pytest.raises(ConfigError, match=r"tasks\.buy\.parent: 'varied' is of kind 'diversity'"):
        check_tasks(tasks)


def test_data_without_the_aggregate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no feature 'running item\.shown'; add 'running item' to features"):
        objective("novelty", popularity="running item.shown")


def trained(weight: float, candidates: Any, kind: str, steps: int = 150) -> Tensor:
    """One score per candidate, learned from its own label and the objective, as `Objective` adds them up."""
    parent = make("binary", name="click")
    made = Objective([parent, objective(kind, parent=parent)], {"click": 1.0, "t": weight})
    scores = torch.zeros(len(candidates.labels), requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        scales = made.scales(made.counts(candidates))
        made.loss(made.loss_sums([click(scores)], candidates), scales).backward()
        optimizer.step()
    return scores.detach()


@pytest.fixture(scope="module")
def planted() -> tuple[Any, Tensor]:
    """Twenty lists of twelve. Liked ones are of genre 1 and well known, others of many genres and new.

    Labels are probabilities of a click that fall slowly from the first to the last.
    """
    lists, size = 20, 12
    chance = torch.linspace(0.6, 0.3, size).repeat(lists)
    place = torch.arange(size).repeat(lists)
    genre = torch.where(place < 6, 1, place)
    numbers = torch.where(place < 6, math.log(90.0), math.log(2.0))
    candidates = shown(
        chance.tolist(),
        request=torch.arange(lists).repeat_interleave(size).tolist(),
        categories=[[g, -1, -1] for g in genre.tolist()],
        numbers=[[n] for n in numbers.tolist()],
    )
    candidates.labels = torch.cat([candidates.labels, torch.full_like(candidates.labels, math.nan)], dim=1)
    candidates.label_weights = torch.ones_like(candidates.labels)
    return candidates, (chance > torch.linspace(0.6, 0.3, size)[6]).float()


@pytest.mark.parametrize(("kind", "metric"), [("diversity", "ild@6"), ("novelty", "novelty@6")])
def test_a_weight_trades_the_parents_order_for_the_objective(planted, kind: str, metric: str) -> None:
    candidates, liked = planted
    made = objective(kind)
    traits = made.traits(candidates.categories.numpy(), candidates.numbers.numpy())
    request = candidates.request.numpy()
    found: dict[str, list[float]] = {"ndcg@6": [], metric: [], "logloss": []}
    for weight in (0.0, 0.1, 0.3):
        scores = trained(weight, candidates, kind)
        rows = Judged(liked.double().numpy(), scores.numpy(), request, 0.5, request, traits=traits)
        for name in ("ndcg@6", metric):
            found[name].append(METRICS[name](rows))
        found["logloss"].append(functional.binary_cross_entropy_with_logits(scores, candidates.labels[:, 0]).item())
    assert found["ndcg@6"][0] == pytest.approx(1)
    assert found["ndcg@6"][0] > found["ndcg@6"][1] > found["ndcg@6"][2]
    assert found[metric][0] < found[metric][1] < found[metric][2]
    assert found["logloss"] == sorted(found["logloss"])
