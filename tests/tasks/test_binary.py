import math

import pytest
import torch
from torch.nn import functional

from mtrec_ray.errors import ConfigError
from tests.tasks.made import NAN, candidates, column, losses, make, untrained

LOGITS = [0.7, 0.7, -2.0]
LABELS = [1.0, 0.0, 1.0]


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def given_to_label(logit: float, label: float) -> float:
    return probability(logit) if label else 1 - probability(logit)


def test_the_loss_is_minus_the_logarithm_of_the_probability_of_the_label() -> None:
    expected = [-math.log(given_to_label(*pair)) for pair in zip(LOGITS, LABELS, strict=True)]
    assert losses(make("binary"), LOGITS, LABELS).tolist() == pytest.approx(expected)


def test_the_cross_entropy_is_that_of_torch_to_the_last_bit() -> None:
    logits, labels = torch.randn(50, 1), (torch.rand(50) < 0.3).float()
    found = make("binary").losses({"t": logits}, candidates(labels.tolist()))
    expected = functional.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_is_equation_4_of_its_paper(gamma: float) -> None:
    p = [given_to_label(*pair) for pair in zip(LOGITS, LABELS, strict=True)]
    expected = [-((1 - p_t) ** gamma) * math.log(p_t) for p_t in p]
    assert losses(make("binary", {"loss": "focal", "gamma": gamma}), LOGITS, LABELS).tolist() == pytest.approx(expected)


def test_the_focal_loss_without_gamma_is_the_cross_entropy() -> None:
    focal = losses(make("binary", {"loss": "focal", "gamma": 0}), LOGITS, LABELS)
    torch.testing.assert_close(focal, losses(make("binary"), LOGITS, LABELS))


def test_smoothing_moves_labels_towards_a_half() -> None:
    p = probability(0.7)
    expected = [-0.9 * math.log(p) - 0.1 * math.log(1 - p), -0.1 * math.log(p) - 0.9 * math.log(1 - p)]
    kind = make("binary", {"label_smoothing": 0.2})
    assert losses(kind, [0.7, 0.7], [1.0, 0.0]).tolist() == pytest.approx(expected)


def test_smoothing_and_focus_together() -> None:
    p = probability(0.7)
    missing = p * 0.1 + (1 - p) * 0.9
    expected = missing**2 * (-0.9 * math.log(p) - 0.1 * math.log(1 - p))
    found = losses(make("binary", {"loss": "focal", "label_smoothing": 0.2}), [0.7], [1.0])
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_logit_is_too_large_for_the_focal_loss(gamma: float, smoothing: float) -> None:
    kind = make("binary", {"loss": "focal", "gamma": gamma, "label_smoothing": smoothing})
    logits = torch.tensor([[-1e4], [-50.0], [50.0], [1e4]] * 2, requires_grad=True)
    found = kind.losses({"t": logits}, candidates([0, 0, 0, 0, 1, 1, 1, 1]))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()


def test_gradients_of_the_focal_loss_are_finite_differences() -> None:
    kind = make("binary", {"loss": "focal", "gamma": 0.5, "label_smoothing": 0.1})
    logits = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kind.losses({"t": x}, candidates([1, 0, 1, 0])), logits)


@pytest.mark.parametrize("params", [{}, {"loss": "focal"}, {"label_smoothing": 0.1}])
def test_untrained_the_score_is_the_base_rate(params: dict) -> None:
    assert untrained(make("binary", params, mean=0.03)).item() == pytest.approx(0.03)


def test_a_task_without_positives_starts_at_a_finite_logit() -> None:
    (bias,) = make("binary", mean=0.0).initial_bias()
    assert -10 < bias < -5


def test_log_probabilities_are_those_of_the_score() -> None:
    kind, logits = make("binary"), {"t": column([-3.0, 0.2])}
    yes, no = kind.log_probabilities(logits)
    score = kind.score(logits, candidates([NAN, NAN]))
    torch.testing.assert_close(yes.exp(), score)
    torch.testing.assert_close(no.exp(), 1 - score)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gamma": 1.0}, r"tasks.t.params: gamma belongs to `loss: focal`"),
        ({"loss": "focal", "gamma": -1}, r"'tasks.t.params.gamma' is -1: .*greater than or equal to 0"),
        ({"label_smoothing": 1.0}, r"'tasks.t.params.label_smoothing' is 1.0: .*less than 1"),
        ({"loss": "hinge"}, r"'tasks.t.params.loss' is 'hinge': .*'bce' or 'focal'"),
        ({"gama": 1.0}, r"unknown key 'tasks.t.params.gama'. Did you mean 'gamma'\?"),
    ],
)
def test_wrong_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("binary", params)
