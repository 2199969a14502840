import math
from typing import Any

import pytest
import torch

from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.tasks.kind import TaskKind
from tests.tasks.made import NAN, candidates, column, make, untrained

CLICK, CART, BUY = 0, 1, 2
SHOWN = [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
LOGITS = {"click": column([0.4, -1.0, 2.0]), "cart": column([-0.3, 0.8, 1.5]), "buy": column([-2.0, 0.1, 0.7])}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def click(mean: float = 0.2) -> Any:
    return make("binary", name="click", index=CLICK, mean=mean)


def cart(parent: TaskKind | None = None, mean: float = 0.05, **params: Any) -> Any:
    return make("conversion", params, name="cart", index=CART, parent=parent or click(), mean=mean)


def buy(parent: TaskKind | None = None, mean: float = 0.01, **params: Any) -> Any:
    return make("conversion", params, name="buy", index=BUY, parent=parent or cart(), mean=mean)


def products() -> list[float]:
    """p(click) * sigmoid(own logit of cart), row by row."""
    return [sigmoid(a) * sigmoid(b) for a, b in zip(LOGITS["click"][:, 0], LOGITS["cart"][:, 0], strict=True)]


def cross_entropy(p: float, label: float) -> float:
    return -math.log(p) if label else -math.log(1 - p)


def test_the_product_is_equation_1_of_its_paper_and_its_loss_the_cross_entropy() -> None:
    shown = candidates(SHOWN)
    assert cart().score(LOGITS, shown).tolist() == pytest.approx(products())
    expected = [cross_entropy(p, labels[CART]) for p, labels in zip(products(), SHOWN, strict=True)]
    assert cart().losses(LOGITS, shown).tolist() == pytest.approx(expected)


def test_a_chain_multiplies_all_its_steps() -> None:
    expected = [p * sigmoid(x) for p, x in zip(products(), LOGITS["buy"][:, 0], strict=True)]
    assert buy().score(LOGITS, candidates(SHOWN)).tolist() == pytest.approx(expected)
    assert buy().reads == ("buy", "cart", "click")


def test_the_products_loss_trains_the_parents_tower_too() -> None:
    logits = {name: values.clone().requires_grad_() for name, values in LOGITS.items()}
    cart().losses(logits, candidates(SHOWN)).sum().backward()
    assert (logits["click"].grad != 0).all()
    assert (logits["cart"].grad != 0).all()
    assert logits["buy"].grad is None


def test_only_rows_with_an_own_label_count() -> None:
    shown = candidates([[1.0, NAN], [NAN, 0.0], [0.0, 0.0]])
    assert cart().weights(shown).tolist() == [0, 1, 1]
    assert torch.isfinite(cart().losses(LOGITS, shown)).all()


def test_direct_is_the_cross_entropy_and_the_calibrator() -> None:
    p = [sigmoid(x) for x in LOGITS["cart"][:, 0]]
    before = [sigmoid(x) for x in LOGITS["click"][:, 0]]
    surplus = [max(a - b, 0) for a, b in zip(p, before, strict=True)]
    assert sorted(x > 0 for x in surplus) == [False, False, True]
    shown = candidates(SHOWN)
    for weight in (0.0, 0.6, 2.0):
        expected = [cross_entropy(a, labels[CART]) + weight * b for a, labels, b in zip(p, SHOWN, surplus, strict=True)]
        kind = cart(form="direct", order_weight=weight)
        assert kind.losses(LOGITS, shown).tolist() == pytest.approx(expected)
        assert kind.score(LOGITS, shown).tolist() == pytest.approx(p)


def test_direct_reads_the_parent_only_for_the_calibrator() -> None:
    assert cart(form="direct").reads == ("cart", "click")
    assert cart(form="direct", order_weight=0).reads == ("cart",)
    assert cart(form="direct").params.order_weight == 0.6
    alone = {"cart": LOGITS["cart"]}
    assert cart(form="direct", order_weight=0).losses(alone, candidates(SHOWN)).shape == (3,)


def test_a_product_after_a_direct_step_goes_on_from_its_probability() -> None:
    expected = [sigmoid(a) * sigmoid(b) for a, b in zip(LOGITS["cart"][:, 0], LOGITS["buy"][:, 0], strict=True)]
    found = buy(cart(form="direct")).score(LOGITS, candidates(SHOWN))
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_logits_are_too_large(dtype: torch.dtype) -> None:
    ends = [-1e4, -200.0, 0.0, 200.0, 1e4]
    pairs = [(a, b, c, label) for a in ends for b in ends for c in ends for label in (0.0, 1.0)]
    logits = {
        name: torch.tensor([[pair[i]] for pair in pairs], dtype=dtype, requires_grad=True)
        for i, name in enumerate(("click", "cart", "buy"))
    }
    found = buy().losses(logits, candidates([[1.0, 1.0, pair[3]] for pair in pairs]))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(values.grad).all() for values in logits.values())


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_float32_is_precise_for_probabilities_near_zero_and_one(label: float) -> None:
    """In float32 1 - p would be exactly 1 of a rare step, and exactly 0 of a sure one."""
    pairs = [(-9.0, -10.0), (-14.0, 0.0), (0.0, -14.0), (20.0, 22.0), (0.5, 1.5), (30.0, -30.0)]
    found = {}
    for dtype in (torch.float32, torch.float64):
        columns = [torch.tensor(x, dtype=dtype)[:, None] for x in zip(*pairs, strict=True)]
        logits = {name: x.requires_grad_() for name, x in zip(("click", "cart"), columns, strict=True)}
        rows = cart().losses(logits, candidates([[1.0, label]] * len(pairs)))
        rows.sum().backward()
        found[dtype] = [rows.detach().double(), *(x.grad.double() for x in logits.values())]
    for ours, exact in zip(found[torch.float32], found[torch.float64], strict=True):
        torch.testing.assert_close(ours, exact, rtol=3e-6, atol=0)
    p = [sigmoid(a) * sigmoid(b) for a, b in pairs]
    expected = [-math.log(x) if label else -math.log1p(-x) for x in p]
    assert found[torch.float64][0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("params", [{}, {"form": "direct"}, {"form": "direct", "order_weight": 0}])
def test_gradients_are_finite_differences(params: dict) -> None:
    kind, shown = buy(**params), candidates(SHOWN)
    inputs = [LOGITS[name].clone().requires_grad_() for name in ("click", "cart", "buy")]

    def loss(*logits: torch.Tensor) -> torch.Tensor:
        return kind.losses(dict(zip(("click", "cart", "buy"), logits, strict=True)), shown)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize(
    "kind",
    [cart(), cart(form="direct"), buy(), buy(cart(form="direct")), buy(form="direct"), cart(click(mean=1.0))],
    ids=["product", "direct", "chain", "after direct", "direct after product", "after what always happens"],
)
def test_untrained_the_score_is_the_base_rate(kind: TaskKind) -> None:
    assert untrained(kind).item() == pytest.approx(kind.task.mean)


def test_trained_together_the_own_logit_becomes_that_of_the_step_given_its_parent() -> None:
    """100 rows, 40 clicks, 10 of them with a cart: rates 0.4 and 0.1, and 0.25 among the clicks."""
    shown = candidates([[1.0, 1.0]] * 10 + [[1.0, 0.0]] * 30 + [[0.0, 0.0]] * 60)
    before = click()
    after = cart(before)
    own = {name: torch.zeros(1, dtype=torch.float64, requires_grad=True) for name in ("click", "cart")}
    optimizer = torch.optim.LBFGS(own.values(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = {name: value.expand(100, 1) for name, value in own.items()}
        total = (before.losses(logits, shown) + after.losses(logits, shown)).mean()
        total.backward()
        return total

    optimizer.step(loss)
    assert torch.sigmoid(own["click"]).item() == pytest.approx(0.4, abs=1e-4)
    assert torch.sigmoid(own["cart"]).item() == pytest.approx(0.25, abs=1e-4)


def test_a_step_that_never_happened_starts_at_a_finite_logit() -> None:
    assert -10 < cart(mean=0.0).initial_bias()[0] < -5


def test_a_label_only_where_the_parent_happened_is_refused() -> None:
    with pytest.raises(DataError, match=r"tasks.t: in train, it has a label only where 'click' is 1.*0, not missing"):
        make("conversion", parent=click(), mean=0.1, parent_mean=1.0)
    make("conversion", parent=click(), mean=0.1, parent_mean=0.5)
    make("conversion", parent=click(mean=1.0), mean=0.1, parent_mean=1.0)  # all that was shown was clicked


def test_a_step_more_frequent_than_its_parent_is_refused() -> None:
    with pytest.raises(DataError, match=r"tasks.buy: its train labels have mean 0.07, those of its parent 'cart' 0.05"):
        buy(mean=0.07)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"order_weight": 0.5}, "tasks.cart.params: order_weight belongs to `form: direct`"),
        ({"form": "direct", "order_weight": -1}, "'tasks.cart.params.order_weight' is -1: .*greater than or equal"),
        ({"form": "esmm"}, "'tasks.cart.params.form' is 'esmm': .*'product' or 'direct'"),
    ],
)
def test_wrong_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cart(**params)
