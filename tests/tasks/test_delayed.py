import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.data.manifest import DelayEntry
from mtrec_ray.errors import ConfigError, DataError
from tests.tasks.made import NAN, candidates, column, make, untrained

DAY = 86400.0
WINDOW = 10 * DAY
UNIFORM = DelayEntry(window=WINDOW, mean=5 * DAY, quantiles=[k * WINDOW / 100 for k in range(101)])
"""F(e) = e / window"""


def kind(entry: DelayEntry | None = UNIFORM, mean: float = 0.2, **params: Any) -> Any:
    return make("delayed", params, mean=mean, delays=entry)


def rows(labels: list[float], delays: list[float], elapsed: list[float]) -> Any:
    found = candidates(labels)
    late = {"delays": torch.tensor(delays)[:, None], "elapsed": torch.tensor(elapsed)}
    return SimpleNamespace(**vars(found), **late)


def outputs(*pairs: tuple[float, ...]) -> dict[str, torch.Tensor]:
    return {"t": torch.tensor(pairs, dtype=torch.float64)}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_delayed_feedback_model_by_hand() -> None:
    s, v, d, e = 0.3, 0.4, 2 * DAY, 4 * DAY
    p, rate = sigmoid(s), math.exp(0.4) / (5 * DAY)
    whole = 1 - math.exp(-rate * WINDOW)
    later = (math.exp(-rate * e) - math.exp(-rate * WINDOW)) / whole
    expected = [
        -math.log(p * rate * math.exp(-rate * d) / whole),
        -math.log(1 - p + p * later),
        -math.log(1 - p),
        -math.log(p),
    ]
    data = rows([1, 0, 0, 1], [d, NAN, NAN, NAN], [e, e, WINDOW, e])
    assert kind(loss="dfm").losses(outputs(*[(s, v)] * 4), data).tolist() == pytest.approx(expected)


def test_with_a_long_window_it_is_the_likelihood_of_the_paper() -> None:
    entry = DelayEntry(window=1e4 * DAY, mean=DAY, quantiles=[])
    s, v, d, e = -0.5, 0.2, 0.7 * DAY, 1.5 * DAY
    p, rate = sigmoid(s), math.exp(v) / DAY
    expected = [
        -(math.log(p) + math.log(rate) - rate * d),
        -math.log(1 - p + p * math.exp(-rate * e)),
    ]
    found = kind(entry, loss="dfm").losses(outputs((s, v), (s, v)), rows([1, 0], [d, NAN], [e, e]))
    assert found.tolist() == pytest.approx(expected)


def test_what_may_happen_to_a_row_adds_up_to_one() -> None:
    """The likelihood of a row of age e: a density over delays below e, and the rest for `not yet`."""
    e, v, s = 6 * DAY, -0.3, 0.8
    steps = 20_000
    delays = ((np.arange(steps) + 0.5) * e / steps).tolist()
    data = rows([1.0] * steps + [0.0], [*delays, NAN], [e] * (steps + 1))
    likelihood = torch.exp(-kind(loss="dfm").losses(outputs(*[(s, v)] * (steps + 1)), data))
    assert float(likelihood[:-1].sum()) * e / steps + float(likelihood[-1]) == pytest.approx(1, abs=1e-5)


def test_fake_negatives_are_weighted_by_hand() -> None:
    s, f = 0.4, sigmoid(0.4)
    data = rows([1, 0, 1, 0, 0], [0, NAN, 0, NAN, NAN], [2.5 * DAY, 2.5 * DAY, WINDOW, WINDOW, NAN])
    expected = [
        -math.log(f) / 0.25,
        -math.log(1 - f) * (1 - f) / (1 - 0.25 * f),
        -math.log(f),
        -math.log(1 - f),
        -math.log(1 - f),
    ]
    found = kind(loss="fnw").losses(outputs(*[(s,)] * 5), data)
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("age", [0.8, 3.0, 9.5, 10.0])
@pytest.mark.parametrize("p", [0.03, 0.6])
def test_the_weighted_gradient_is_zero_at_the_probability_alone(age: float, p: float) -> None:
    """Expected over the labels of rows of one age, which are 1 with p F(e): (1 - f)(f - p) / (1 - f F)."""
    share = age / 10
    for f in (p / 2, p, (1 + p) / 2):
        own = torch.full((2, 1), math.log(f / (1 - f)), dtype=torch.float64, requires_grad=True)
        data = rows([1, 0], [0, NAN], [age * DAY] * 2)
        loss = kind(loss="fnw").losses({"t": own}, data) @ torch.tensor([p * share, 1 - p * share], dtype=torch.float64)
        (gradient,) = torch.autograd.grad(loss, own)
        assert float(gradient.sum()) == pytest.approx((1 - f) * (f - p) / (1 - f * share), rel=1e-5, abs=1e-9)


def test_positives_weigh_no_more_than_the_clip() -> None:
    data = rows([1, 0], [0, NAN], [0.001 * DAY] * 2)
    f = sigmoid(0.2)
    found = kind(loss="fnw", clip=4).losses(outputs((0.2,), (0.2,)), data)
    assert found.tolist() == pytest.approx([-4 * math.log(f), -math.log(1 - f) * (1 - f) / (1 - f / 4)])
    assert kind(loss="fnw").losses(outputs((0.2,), (0.2,)), data)[0].item() == pytest.approx(-20 * math.log(f))


def test_the_share_that_has_come_is_linear_between_quantiles() -> None:
    entry = DelayEntry(window=WINDOW, mean=DAY, quantiles=[0.0] * 51 + [k * DAY / 10 for k in range(1, 51)])
    found = kind(entry, loss="fnw").share_come(
        torch.tensor([0.0, 0.25, 1.0, 5.0, 7.0, 10.0], dtype=torch.float64) * DAY
    )
    assert found.tolist() == pytest.approx([0.5, 0.525, 0.6, 1, 1, 1])


@pytest.mark.parametrize("loss", ["dfm", "fnw"])
def test_gradients_in_float64_are_finite_differences(loss: str) -> None:
    made = kind(loss=loss)
    data = rows([1, 1, 0, 0, 0, 1], [DAY, NAN, NAN, NAN, NAN, 0.0], [2 * DAY, WINDOW, DAY, 9.99 * DAY, WINDOW, NAN])
    own = torch.randn(6, made.outputs, dtype=torch.float64, requires_grad=True)
    if loss == "dfm":
        assert torch.autograd.gradcheck(lambda x: made.losses({"t": x}, data), own)
        return
    weights = made.losses({"t": own}, data).detach()
    entropy = -torch.where(data.labels[:, 0] > 0, torch.nn.functional.logsigmoid(own[:, 0]),
                           torch.nn.functional.logsigmoid(-own[:, 0]))  # fmt: skip
    constant = weights / entropy.detach()
    (expected,) = torch.autograd.grad((constant * entropy).sum(), own)
    (found,) = torch.autograd.grad(made.losses({"t": own}, data).sum(), own)
    torch.testing.assert_close(found, expected)  # the weights are held constant


@pytest.mark.parametrize("loss", ["dfm", "fnw"])
@pytest.mark.parametrize("age", [0.0, 1.0, 0.9999999 * WINDOW, WINDOW, NAN])
def test_no_output_is_too_large(loss: str, age: float) -> None:
    made = kind(loss=loss)
    ends = [-1e4, -60.0, 0.0, 60.0, 1e4]
    pairs = [(a, b) for a in ends for b in ends] if loss == "dfm" else [(a,) for a in ends]
    own = torch.tensor(pairs * 2, requires_grad=True)
    size = len(pairs)
    data = rows([1.0] * size + [0.0] * size, [0.5] * size + [NAN] * size, [age] * 2 * size)
    found = made.losses({"t": own}, data)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(own.grad).all()


@pytest.mark.parametrize("loss", ["dfm", "fnw"])
def test_the_score_is_the_probability_of_the_first_output(loss: str) -> None:
    made = kind(loss=loss)
    logits = {"t": torch.cat([column([-1.0, 0.5]), column([3.0, -3.0])], 1)[:, : made.outputs]}
    assert made.score(logits, candidates([NAN, NAN])).tolist() == pytest.approx([sigmoid(-1), sigmoid(0.5)])
    yes, no = made.log_probabilities(logits)
    torch.testing.assert_close(yes.exp() + no.exp(), torch.ones(2, dtype=torch.float64))
    assert untrained(made).item() == pytest.approx(0.2)
    assert len(made.initial_bias()) == made.outputs


@pytest.mark.parametrize("loss", ["dfm", "fnw"])
def test_it_finds_a_planted_rate_of_which_the_labels_show_less(loss: str) -> None:
    """One probability for all, delays as planted, ages uniform up to 1.5 windows."""
    rng = np.random.default_rng(3)
    size, p, mean = 60_000, 0.3, 3 * DAY
    delay = rng.exponential(mean, 2 * size)
    delay = delay[delay <= WINDOW][:size]
    elapsed = rng.uniform(0, 1.5 * WINDOW, size)
    converts = rng.random(size) < p
    label = converts & (delay <= elapsed)
    complete = np.sort(delay[label & (elapsed >= WINDOW)])
    quantiles = np.quantile(complete, np.arange(101) / 100).tolist()
    made = kind(DelayEntry(window=WINDOW, mean=float(delay[label].mean()), quantiles=quantiles), loss=loss)
    shown = rows(label.astype(float).tolist(), np.where(label, delay, NAN).tolist(), elapsed.tolist())
    own = torch.zeros(made.outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([own], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        made.losses({"t": own.expand(size, -1)}, shown).mean().backward()
        optimizer.step()
    assert label.mean() / converts.mean() < 0.85
    assert torch.sigmoid(own[0]).item() / converts.mean() == pytest.approx(1, abs=0.02)
    if loss == "dfm":
        assert math.exp(own[1].item()) / made.mean_delay * mean == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"clip": 3.0}, "tasks.t.params: clip belongs to `loss: fnw`"),
        ({"loss": "fnw", "clip": 1.0}, "'tasks.t.params.clip' is 1.0: .*greater than 1"),
        ({"loss": "fnc"}, "'tasks.t.params.loss' is 'fnc': .*'dfm' or 'fnw'"),
    ],
)
def test_wrong_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**params)


def test_without_delays_to_learn_from_it_is_refused() -> None:
    with pytest.raises(DataError, match=r"tasks\.t: no train row has label 1 and a time at which its feedback came"):
        kind(None)
    young = DelayEntry(window=WINDOW, mean=DAY, quantiles=[])
    with pytest.raises(DataError, match=r"tasks\.t\.params\.loss: fnw takes the delays .* or take loss: dfm"):
        kind(young, loss="fnw")
    assert kind(young, loss="dfm").outputs == 2
