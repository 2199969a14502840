import math

import pytest
import torch

from mtrec_ray.errors import ConfigError
from tests.tasks.made import candidates, make, untrained

SHARES = [0.1, 0.2, 0.3, 0.4]
LOGITS = torch.tensor([[1.2, -0.4, 0.3]], dtype=torch.float64)


def ordinal(**fitted: object):
    return make("ordinal", **{"classes": 4, "frequencies": SHARES, **fitted})


def test_scores_are_products_of_the_conditional_probabilities() -> None:
    f = [1 / (1 + math.exp(-x)) for x in LOGITS[0].tolist()]
    above = [f[0], f[0] * f[1], f[0] * f[1] * f[2]]
    expected = [1 - above[0], above[0] - above[1], above[1] - above[2], above[2]]
    found = ordinal().score({"t": LOGITS}, candidates([0.0]))
    assert found[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("label", range(4))
def test_the_loss_is_the_cross_entropy_of_the_steps_that_the_row_takes_part_in(label: int) -> None:
    """Shi et al. 2021: f_k learns from the rows above class k - 1, 1 if they are above class k."""
    f = [1 / (1 + math.exp(-x)) for x in LOGITS[0].tolist()]
    steps = [-math.log(f[k]) if label > k else -math.log(1 - f[k]) for k in range(3) if label > k - 1]
    found = ordinal().losses({"t": LOGITS}, candidates([float(label)]))
    assert found.item() == pytest.approx(sum(steps))


def test_steps_that_a_row_does_not_reach_get_no_gradient() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    ordinal().losses({"t": logits}, candidates([1.0])).sum().backward()
    assert (logits.grad[0] != 0).tolist() == [True, True, False]


def test_the_probability_to_be_above_a_class_never_rises() -> None:
    logits = 5 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    score = ordinal().score({"t": logits}, candidates([0.0] * 200))
    assert (score >= 0).all()
    torch.testing.assert_close(score.sum(1), torch.ones(200))


def test_untrained_the_score_is_the_share_of_each_class() -> None:
    assert untrained(ordinal())[0].tolist() == pytest.approx(SHARES)


def test_classes_that_train_lacks_start_at_finite_logits() -> None:
    kind = ordinal(frequencies=[0.5, 0.0, 0.5, 0.0])
    score = untrained(kind)[0]
    assert all(math.isfinite(x) for x in kind.initial_bias())
    assert score.tolist() == pytest.approx([0.5, 0, 0.5, 0], abs=1e-4)
    all_low = ordinal(frequencies=[1.0, 0.0, 0.0, 0.0])
    assert untrained(all_low)[0, 0].item() == pytest.approx(1, abs=1e-3)


def test_gradients_are_finite_differences_and_finite() -> None:
    shown = candidates([0.0, 1.0, 2.0, 3.0])
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ordinal().losses({"t": x}, shown), logits)
    for extreme in (-1e4, 1e4):
        wild = torch.full((4, 3), extreme, requires_grad=True)
        found = ordinal().losses({"t": wild}, shown)
        found.sum().backward()
        assert torch.isfinite(found).all()
        assert torch.isfinite(wild.grad).all()


def test_it_has_no_parameters() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'tasks.t.params.link'. There are no parameters here"):
        make("ordinal", {"link": "logit"}, classes=3, frequencies=[0.5, 0.3, 0.2])
