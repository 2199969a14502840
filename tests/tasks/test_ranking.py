"""Losses over groups against their equations in plain Python, and what they do to an order."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray import config_file
from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.evaluate.metrics import METRICS
from mtrec_ray.tasks.kinds import check_run
from tests.tasks.made import NAN, make
from tests.tasks.shown import at_random, logits, members, part, shown

LOSSES = [{"loss": "pairwise"}, {"loss": "listwise"}, {"loss": "listwise", "calibrated": True}, {"loss": "bce"}]
ids = [" ".join(map(str, params.values())) for params in LOSSES]


def draw(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()


def total(kind: Any, scores: Tensor, candidates: Any) -> Tensor:
    """What the objective divides by the sum of weights."""
    return (kind.losses(logits(scores), candidates) * kind.weights(candidates)).sum()


def test_ranknet_by_hand() -> None:
    candidates, scores = shown([0, 1, 0, NAN]), torch.tensor([2.0, 1.0, 0.0, 9.0])
    expected = (math.log(1 + math.exp(2 - 1)) + math.log(1 + math.exp(0 - 1))) / 2
    kind = make("ranking", {"loss": "pairwise"})
    assert kind.losses(logits(scores), candidates).tolist() == pytest.approx([expected, 0, 0, 0])
    assert kind.weights(candidates).tolist() == [1, 0, 0, 0]


def test_listnet_by_hand() -> None:
    candidates, scores = shown([0, 1, 1, NAN]), torch.tensor([2.0, 1.0, 0.0, 9.0])
    bottom = math.exp(2) + math.exp(1) + math.exp(0)
    expected = -(math.log(math.exp(1) / bottom) + math.log(math.exp(0) / bottom)) / 2
    kind = make("ranking")
    assert kind.losses(logits(scores), candidates).tolist() == pytest.approx([expected, 0, 0, 0])


def by_loops(params: dict[str, Any], scores: list[float], candidates: Any) -> tuple[float, float]:
    """Weighted sum of losses, and sum of weights."""
    loss, temperature = params["loss"], params.get("temperature", 1.0)
    label, weight = candidates.labels[:, 0].tolist(), candidates.label_weights[:, 0].tolist()
    losses = weights = 0.0
    for group in members(candidates, params.get("group", "shown")):
        seen = [c for c in group if label[c] == label[c] and weight[c] > 0]
        positive, negative = [c for c in seen if label[c] == 1], [c for c in seen if label[c] == 0]
        if params.get("calibrated"):
            p = {c: 1 / (1 + math.exp(-scores[c])) for c in seen}
            losses -= sum(weight[c] * math.log(p[c] if label[c] else 1 - p[c]) for c in seen)
            losses -= sum(
                weight[c] * math.log(weight[c] * p[c] / sum(weight[j] * p[j] for j in seen)) for c in positive
            )
            weights += sum(weight[c] for c in seen)
            continue
        if not positive or not negative:
            continue
        if loss == "pairwise":
            pairs = [(weight[i] * weight[j], (scores[j] - scores[i]) / temperature) for i in positive for j in negative]
            own = sum(w * math.log(1 + math.exp(gap)) for w, gap in pairs) / sum(w for w, _ in pairs)
        else:
            bottom = sum(weight[j] * math.exp(scores[j] / temperature) for j in seen)
            terms = [weight[i] * -math.log(weight[i] * math.exp(scores[i] / temperature) / bottom) for i in positive]
            own = sum(terms) / sum(weight[i] for i in positive)
        counts = sum(weight[i] for i in positive) / len(positive)
        losses, weights = losses + counts * own, weights + counts
    return losses, weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "params",
    [
        *LOSSES[:3],
        {"loss": "pairwise", "temperature": 0.5, "group": "request"},
        {"loss": "listwise", "temperature": 3.0},
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_vectorised_losses_are_those_of_loops(seed: int, params: dict[str, Any], weighted: bool) -> None:
    candidates, scores = at_random(seed, weighted=weighted), draw(40, seed)
    kind = make("ranking", params)
    losses, weights = by_loops(params, scores.tolist(), candidates)
    assert total(kind, scores, candidates).item() == pytest.approx(losses, rel=1e-6)
    assert kind.weights(candidates).sum().item() == pytest.approx(weights)
    assert weights > 0


@pytest.mark.parametrize("params", LOSSES, ids=ids)
def test_gradients_are_finite_differences(params: dict[str, Any]) -> None:
    candidates, kind = at_random(1, weighted=True), make("ranking", params)
    assert torch.autograd.gradcheck(lambda x: kind.losses(logits(x), candidates), draw(40))


@pytest.mark.parametrize("params", LOSSES, ids=ids)
def test_whole_groups_may_be_cut_into_batches_and_put_in_any_order(params: dict[str, Any]) -> None:
    candidates, scores, kind = at_random(2), draw(40), make("ranking", params)
    parts = [[c for group in members(candidates)[k::3] for c in group][::-1] for k in range(3)]
    cut = sum(total(kind, scores[chosen], part(candidates, chosen)) for chosen in parts)
    torch.testing.assert_close(cut, total(kind, scores, candidates))
    assert sum(kind.weights(part(candidates, chosen)).sum() for chosen in parts) == kind.weights(candidates).sum()


@pytest.mark.parametrize("params", LOSSES, ids=ids)
def test_no_candidates_and_groups_that_say_nothing(params: dict[str, Any]) -> None:
    kind, scores = make("ranking", params), draw(3)
    for candidates in (part(shown([1.0]), []), shown([NAN, NAN, NAN]), shown([1.0, 0.0, 1.0], weights=[0.0, 0.0, 0.0])):
        own = scores[: len(candidates.labels)]
        assert torch.isfinite(kind.losses(logits(own), candidates)).all()
        assert kind.weights(candidates).sum() == 0
        (gradient,) = torch.autograd.grad(total(kind, own, candidates), scores, allow_unused=False)
        assert gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize("params", LOSSES[:2], ids=ids[:2])
def test_a_group_of_one_label_has_no_order(params: dict[str, Any]) -> None:
    candidates = shown([1, 1, 0, 0, 1], request=[0, 0, 1, 1, 2])
    assert make("ranking", params).weights(candidates).sum() == 0


@pytest.mark.parametrize("params", LOSSES[:3], ids=ids[:3])
def test_a_negative_that_counts_three_is_three_negatives(params: dict[str, Any]) -> None:
    kind, scores = make("ranking", params), draw(3)
    once = total(kind, scores, shown([1.0, 0.0, 0.0], weights=[1.0, 3.0, 1.0]))
    thrice = total(kind, scores[[0, 1, 1, 1, 2]], shown([1.0, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(once, thrice)


@pytest.mark.parametrize("params", LOSSES[:2], ids=ids[:2])
def test_a_weight_of_all_rows_of_a_group_multiplies_it(params: dict[str, Any]) -> None:
    kind, scores = make("ranking", params), draw(4)
    one = [shown([1.0, 0.0, 0.0, 1.0], weights=[w] * 4) for w in (1.0, 2.5)]
    torch.testing.assert_close(total(kind, scores, one[1]), 2.5 * total(kind, scores, one[0]))


@pytest.mark.parametrize("params", LOSSES[:2], ids=ids[:2])
def test_only_differences_count(params: dict[str, Any]) -> None:
    kind, scores, candidates = make("ranking", params), draw(40), at_random(3)
    torch.testing.assert_close(total(kind, scores + 7, candidates), total(kind, scores, candidates))


def test_the_calibrated_loss_is_smallest_at_the_true_probabilities() -> None:
    """In expectation over all labels that three candidates of known rates can have; a plain softmax's is not."""
    rates = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    scores = torch.logit(rates).requires_grad_()
    gradients = []
    for params in ({"loss": "listwise", "calibrated": True}, {"loss": "listwise"}):
        kind, mean = make("ranking", params), torch.zeros((), dtype=torch.float64)
        for labels in itertools.product([0.0, 1.0], repeat=3):
            chance = math.prod(p if y else 1 - p for p, y in zip(rates.tolist(), labels, strict=True))
            mean = mean + chance * total(kind, scores, shown(labels))
        gradients.append(torch.autograd.grad(mean, scores)[0])
    assert gradients[0].abs().max() < 1e-8
    assert gradients[1].abs().max() > 0.01


def test_a_large_group_takes_the_memory_of_its_pairs_alone() -> None:
    """A thousand candidates with ten positives, beside 4,000 alone: no square of the batch, or of the longest group."""
    labels = [1.0] * 10 + [0.0] * 990 + [1.0] * 4000
    candidates = shown(labels, request=[0] * 1000 + list(range(1, 4001)))
    scores, largest = torch.zeros(5000, requires_grad=True), 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            sizes = [
                out.numel() for out in (found if isinstance(found, tuple) else (found,)) if isinstance(out, Tensor)
            ]
            largest = max(largest, *sizes, 0)
            return found

    with Sizes():
        total(make("ranking", {"loss": "pairwise"}), scores, candidates).backward()
    assert largest == 10 * 990
    assert scores.grad[0].item() == pytest.approx(-0.5 / 10)  # sigmoid(0), one of ten positives


@pytest.mark.parametrize(
    ("params", "scores", "reports"),
    [
        ({"loss": "pairwise"}, [-1.0, 3.0], False),
        ({"loss": "listwise"}, [-1.0, 3.0], False),
        ({"loss": "listwise", "calibrated": True}, [1 / (1 + math.e), 1 / (1 + math.exp(-3))], True),
        ({"loss": "bce"}, [1 / (1 + math.e), 1 / (1 + math.exp(-3))], True),
    ],
)
def test_scores_are_logits_unless_they_are_probabilities(params, scores, reports) -> None:
    kind = make("ranking", params, mean=0.2)
    assert kind.score(logits(torch.tensor([-1.0, 3.0])), None).tolist() == pytest.approx(scores)
    assert ("logloss" in kind.reported) is reports
    assert set(kind.metrics) <= set(kind.reported)
    assert kind.initial_bias() == pytest.approx([math.log(0.2 / 0.8) if reports else 0.0])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss": "pairwise", "calibrated": True}, "calibrated belongs to `loss: listwise`"),
        ({"calibrated": True, "temperature": 2}, "temperature changes"),
        ({"loss": "bce", "temperature": 2}, "temperature belongs to losses over groups"),
        ({"loss": "bce", "group": "request"}, "group belongs to losses over groups"),
        ({"temperature": 0}, r"'tasks\.t\.params\.temperature' is 0"),
        ({"loss": "triplet"}, r"'tasks\.t\.params\.loss' is 'triplet'"),
        ({"temprature": 1}, "Did you mean 'temperature'"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("ranking", params)


QUERY = """
name: search
data: {logs: none.csv, columns: {user: user, item: item, time: time}}
tasks: {fits: {kind: query_match, label: fits}}
"""


def test_query_match_is_cross_entropy_by_default_and_ranking_else() -> None:
    candidates, scores = at_random(0), draw(40)
    plain = make("query_match")
    for params, other in (({}, make("binary")), ({"loss": "pairwise"}, make("ranking", {"loss": "pairwise"}))):
        found = make("query_match", params).losses(logits(scores), candidates)
        assert torch.equal(found, other.losses(logits(scores), candidates))
    assert next(iter(plain.metrics)) == "ndcg@10"
    assert "logloss" in plain.reported


def test_query_match_needs_a_query() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.fits\.kind: 'query_match' needs data\.columns\.query"):
        check_run(config_file.parse(QUERY))
    check_run(config_file.parse(QUERY, ["data.columns.query=words"]))


def learned(params: dict[str, Any], candidates: Any, features: Tensor, steps: int = 60) -> Tensor:
    """Scores of a linear model after some steps of Adam."""
    kind, weight = make("ranking", params), torch.zeros(features.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = total(kind, features @ weight, candidates) / kind.weights(candidates).sum()
        loss.backward()
        optimizer.step()
    return (features @ weight).detach()


@pytest.fixture(scope="module")
def opposed() -> tuple[Any, Tensor]:
    """Lists in which the best are liked, more of them in lists whose candidates are all worse than those of others.

    So over all rows the feature goes against the label, and within each list with it (Simpson's paradox).
    """
    generator = torch.Generator().manual_seed(0)
    lists, size = 60, 6
    quality = torch.randn(lists, size, generator=generator)
    busy = torch.arange(lists)[:, None] % 2
    liked = (quality.argsort(1).argsort(1) >= size - 1 - 4 * busy).float()
    request = torch.arange(lists).repeat_interleave(size)
    return shown(liked.flatten().tolist(), request=request.tolist()), (quality - 4 * (busy - 0.5)).reshape(-1, 1)


@pytest.mark.parametrize("params", LOSSES[:2], ids=ids[:2])
def test_losses_over_groups_learn_the_order_within_lists(opposed, params: dict[str, Any]) -> None:
    ndcg = {}
    for name, chosen in {"groups": params, "rows": {"loss": "bce"}}.items():
        scores = learned(chosen, *opposed)
        labels, request = opposed[0].labels[:, 0].double().numpy(), opposed[0].request.numpy()
        ndcg[name] = METRICS["ndcg"](Judged(labels, scores.numpy(), request, 0.5, request))
    assert ndcg["groups"] == pytest.approx(1)
    assert ndcg["rows"] < 0.8
