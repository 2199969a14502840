"""How far two predictions are apart, by the formulas of the distributions."""

import math

import pytest
import torch

from mtrec_ray.tasks.kind import PointwiseKind
from tests.tasks.made import NAN, candidates, column, entry, make
from tests.tasks.shown import at_random, logits, members, shown

SHARES = [0.5, 0.3, 0.2]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def symmetric_kl(p: list[float], q: list[float]) -> float:
    """(KL(p, q) + KL(q, p)) / 2, as it is defined."""
    one = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    other = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return (one + other) / 2


def bernoulli(a: float, b: float) -> float:
    return symmetric_kl([a, 1 - a], [b, 1 - b])


FIRST, SECOND = [0.3, -2.0, 1.5], [0.9, -2.0, -0.5]
LABELS = [1.0, 0.0, NAN]


def test_of_probabilities_it_is_that_of_bernoulli_distributions() -> None:
    kind = make("binary", mean=0.3)
    found = kind.divergence({"t": column(FIRST)}, {"t": column(SECOND)}, candidates(LABELS))
    expected = [bernoulli(sigmoid(a), sigmoid(b)) for a, b in zip(FIRST, SECOND, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    assert found[1] == 0 < found[0]


def test_of_a_step_after_another_it_is_that_of_its_own_probability() -> None:
    parent = make("binary", name="click", mean=0.5)
    kind = make("conversion", name="buy", index=1, parent=parent, mean=0.2, parent_mean=0.4)
    first = {"click": column(FIRST), "buy": column(SECOND)}
    second = {"click": column(SECOND), "buy": column(SECOND)}
    found = kind.divergence(first, second, candidates([[1.0, 0.0]] * 3))
    rates = [[sigmoid(a) * sigmoid(b) for a, b in zip(x, SECOND, strict=True)] for x in (FIRST, SECOND)]
    assert found.tolist() == pytest.approx([bernoulli(a, b) for a, b in zip(*rates, strict=True)])


def test_of_classes_it_is_that_of_categorical_distributions() -> None:
    one, other = torch.tensor([[0.1, 0.5, -0.3], [2.0, 0.0, 1.0]]).double(), torch.tensor([[1.0, 0, 0], [2, 0, 1]])
    kind, rows = make("multiclass", classes=3, frequencies=SHARES), candidates([2.0, 0.0])
    found = kind.divergence({"t": one}, {"t": other.double()}, rows)
    scores = [kind.score({"t": x}, rows).tolist() for x in (one, other.double())]
    assert found.tolist() == pytest.approx([symmetric_kl(p, q) for p, q in zip(*scores, strict=True)])
    assert found[1] == 0 < found[0]


def test_of_ordered_classes_it_is_that_of_the_classes() -> None:
    kind, rows = make("ordinal", classes=3, frequencies=SHARES), candidates([2.0])
    one, other = torch.tensor([[0.4, -0.3]]).double(), torch.tensor([[-1.0, 2.0]]).double()
    scores = [kind.score({"t": x}, rows)[0].tolist() for x in (one, other)]
    assert float(kind.divergence({"t": one}, {"t": other}, rows)) == pytest.approx(symmetric_kl(*scores))


def test_of_numbers_it_is_half_the_squared_difference_in_train_deviations() -> None:
    kind = make("regression", mean=3.0, std=2.0)
    found = kind.divergence({"t": column(FIRST)}, {"t": column(SECOND)}, candidates(LABELS))
    assert found.tolist() == pytest.approx([0.18, 0.0, 2.0])
    # which is what `loss: mse` says of a label that is predicted exactly by the other
    labels = [2 * b + 3.0 for b in SECOND]
    losses = kind.losses({"t": column(FIRST)}, candidates(labels))
    torch.testing.assert_close(found, losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("params", [{"loss": "bce"}, {"calibrated": True}])
def test_of_a_ranking_by_probabilities_it_is_that_of_each_candidate(params: dict[str, object]) -> None:
    found = make("ranking", params, mean=0.3).divergence(
        {"t": column(FIRST)}, {"t": column(SECOND)}, shown([1.0, 0.0, NAN])
    )
    expected = [bernoulli(sigmoid(a), sigmoid(b)) for a, b in zip(FIRST, SECOND, strict=True)]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["listwise", "pairwise"])
def test_of_an_order_it_is_that_of_the_shares_in_a_group(loss: str) -> None:
    kind, rows = make("ranking", {"loss": loss, "temperature": 0.5}), at_random(0)
    one, other = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = kind.divergence(logits(one), logits(other), rows)
    expected = torch.zeros(40, dtype=torch.float64)
    for group in members(rows):
        observed = [c for c in group if not rows.labels[c, 0].isnan()]
        p, q = (torch.softmax(x[observed] / 0.5, 0).tolist() for x in (one, other))
        expected[group[0]] = symmetric_kl(p, q) if observed else 0.0
    torch.testing.assert_close(found, expected)
    shifted = kind.divergence(logits(one), logits(one + 3), rows)  # the order is the same, and all its distances
    torch.testing.assert_close(shifted, torch.zeros(40, dtype=torch.float64))


class OfAGuest(PointwiseKind):
    """Two outputs, and nothing said of their distance."""

    labels = "number"
    metrics = {"rmse": -1}  # noqa: RUF012
    outputs = 2

    def initial_bias(self) -> list[float]:
        return [0.0, 0.0]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.sum(1) - labels

    def predict(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 0]


def test_a_guests_kind_has_one_without_saying_so() -> None:
    kind = OfAGuest(entry("regression"), 0, {})
    found = kind.divergence({"t": torch.tensor([[1.0, 2.0]])}, {"t": torch.tensor([[0.0, 4.0]])}, candidates([1.0]))
    assert found.tolist() == [2.5]
