import math

import pytest
import torch

from mtrec_ray.errors import ConfigError
from tests.tasks.made import candidates, column, losses, make, untrained

STARS = {"mean": 3.5, "std": 1.2}
AMOUNTS = {"mean": 20.0, "std": 50.0, "log_mean": 2.0, "log_std": 0.5}
LABELS = [3.5, 4.7, 1.1]
"""0, 1 and -2 deviations from the mean of `STARS`."""


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_it_is_standardised_and_scored_in_the_labels_unit(loss: str) -> None:
    kind, logits = make("regression", {"loss": loss}, **STARS), [0.0, 1.0, -2.0]
    assert losses(kind, logits, LABELS).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert kind.score({"t": column(logits)}, candidates(LABELS)).tolist() == pytest.approx(LABELS)


def test_mse_is_half_the_squared_error_of_the_standardised_label_to_the_last_bit() -> None:
    """As it was before there were other losses, so that training is the same."""
    logits, labels = torch.randn(50, 1), 3 + torch.randn(50)
    found = make("regression", **STARS).losses({"t": logits}, candidates(labels.tolist()))
    assert torch.equal(found, 0.5 * (logits[:, 0] - (labels - 3.5) / 1.2) ** 2)
    score = make("regression", **STARS).score({"t": logits}, candidates(labels.tolist()))
    assert torch.equal(score, logits[:, 0] * 1.2 + 3.5)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"loss": "mse"}, [0.125, 4.5]),
        ({"loss": "mae"}, [0.5, 3.0]),
        ({"loss": "huber"}, [0.125, 2.5]),  # delta 1: 1 * (3 - 1/2)
        ({"loss": "huber", "delta": 0.25}, [0.25 * (0.5 - 0.125), 0.25 * (3 - 0.125)]),
    ],
)
def test_losses_of_errors_of_half_and_three_deviations(params: dict, expected: list[float]) -> None:
    assert losses(make("regression", params, **STARS), [0.5, 4.0], [3.5, 4.7]).tolist() == pytest.approx(expected)


def test_on_the_log_scale_the_logarithm_is_standardised() -> None:
    kind = make("regression", {"scale": "log"}, **AMOUNTS)
    label = math.expm1(2.0 + 3 * 0.5)
    assert losses(kind, [3.0, 1.0], [label, label]).tolist() == pytest.approx([0, 0.5 * 2**2], abs=1e-5)
    assert kind.score({"t": column([3.0])}, candidates([0.0])).item() == pytest.approx(label)


def test_untrained_the_score_is_the_mean_or_that_of_the_logarithms() -> None:
    assert untrained(make("regression", **AMOUNTS)).item() == pytest.approx(20.0)
    assert untrained(make("regression", {"loss": "mae"}, **AMOUNTS)).item() == pytest.approx(20.0)
    assert untrained(make("regression", {"scale": "log"}, **AMOUNTS)).item() == pytest.approx(math.expm1(2.0))


def test_the_best_constant_on_the_log_scale_is_below_the_mean() -> None:
    """What the docstring says of it, for labels whose logarithms are 0, 1 and 5."""
    labels = [math.expm1(x) for x in (0.0, 1.0, 5.0)]
    kind = make("regression", {"scale": "log"}, log_mean=2.0, log_std=1.0)
    at = {x: losses(kind, [x] * 3, labels).sum().item() for x in (-0.1, 0.0, 0.1)}
    assert min(at, key=at.__getitem__) == 0.0
    assert untrained(kind).item() == pytest.approx(math.expm1(2.0))
    assert math.expm1(2.0) < sum(labels) / 3


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_that_are_all_the_same_do_not_divide_by_zero(scale: str) -> None:
    kind = make("regression", {"scale": scale}, mean=1.0, std=0.0, log_mean=math.log(2), log_std=0.0)
    wanted = 1.0 if scale == "linear" else math.log(3 / 2)
    assert losses(kind, [0.0], [2.0]).item() == pytest.approx(0.5 * wanted**2)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_gradients_are_finite_differences_and_finite(loss: str, scale: str) -> None:
    kind = make("regression", {"loss": loss, "scale": scale}, **AMOUNTS)
    shown = candidates([0.0, 3.0, 1000.0])
    logits = torch.tensor([[0.3], [-2.0], [5.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kind.losses({"t": x}, shown), logits)
    extreme = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    found = kind.losses({"t": extreme}, shown)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"delta": 2.0}, "tasks.t.params: delta belongs to `loss: huber`"),
        ({"loss": "huber", "delta": 0}, "'tasks.t.params.delta' is 0: .*greater than 0"),
        ({"scale": "log"}, "tasks.t.params.scale: 'log' .* some train labels are -1 or less; use scale: linear"),
        ({"los": "mae"}, r"unknown key 'tasks.t.params.los'. Did you mean 'loss'\?"),
    ],
)
def test_wrong_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("regression", params, **STARS)
