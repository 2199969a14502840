import pytest
import torch

from tests.tasks.made import candidates, make, untrained

LOGITS = torch.tensor([[0.1, 0.5, -0.3], [2.0, 0.0, 1.0]], dtype=torch.float64)
SHARES = [0.5, 0.3, 0.2]


def test_the_loss_is_minus_the_logarithm_of_the_score_of_the_label() -> None:
    kind, shown = make("multiclass", classes=3, frequencies=SHARES), candidates([2.0, 0.0])
    score = kind.score({"t": LOGITS}, shown)
    expected = -torch.log(score[[0, 1], [2, 0]])
    torch.testing.assert_close(kind.losses({"t": LOGITS}, shown), expected)
    torch.testing.assert_close(score.sum(1), torch.ones(2, dtype=torch.float64))


def test_smoothing_spreads_a_share_of_the_label_over_all_classes() -> None:
    kind, shown = make("multiclass", {"label_smoothing": 0.3}, classes=3, frequencies=SHARES), candidates([2.0, 0.0])
    logs = torch.log(kind.score({"t": LOGITS}, shown))
    expected = -0.7 * logs[[0, 1], [2, 0]] - 0.3 * logs.mean(1)
    torch.testing.assert_close(kind.losses({"t": LOGITS}, shown), expected)


def test_untrained_the_score_is_the_share_of_each_class() -> None:
    found = untrained(make("multiclass", classes=3, frequencies=SHARES))
    assert found[0].tolist() == pytest.approx(SHARES)


def test_a_class_that_train_lacks_starts_at_a_finite_logit() -> None:
    found = untrained(make("multiclass", classes=3, frequencies=[0.9, 0.0, 0.1]))
    assert 0 < found[0, 1] < 1e-3
