import math
from typing import Any

import pytest
import torch

from mtrec_ray.data.manifest import DurationEntry
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.tasks.columns import FeatureColumns
from tests.tasks.made import NAN, candidates, column, losses, make, untrained

COLUMNS = FeatureColumns(numbers={"price": 0, "length": 1})
DURATIONS = DurationEntry(
    share=0.3,
    edges=[60.0],
    # Below 60 s: even between 0 and 20 s. From 60 s on: the upper half watched all 100 s.
    quantiles=[[0.0, 5.0, 10.0, 15.0, 20.0], [0.0, 50.0, 100.0, 100.0, 100.0]],
)
MEAN = 17.0


def watch_time(columns: FeatureColumns = COLUMNS, **params: Any) -> Any:
    return make("watch_time", {"duration": "length", **params}, columns=columns, mean=MEAN, durations=DURATIONS)


def lasting(*seconds: float) -> list[list[float]]:
    """Numbers of candidates, of which the second is the duration."""
    return [[99.0, duration] for duration in seconds]


def cross_entropy(logit: float, share: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -share * math.log(p) - (1 - share) * math.log(1 - p)


def test_ratio_learns_the_share_of_the_duration() -> None:
    found = losses(watch_time(), [0.4, -1.0, 0.0], [10.0, 90.0, -5.0], numbers=lasting(40, 60, 30))
    expected = [cross_entropy(0.4, 0.25), cross_entropy(-1.0, 1.0), cross_entropy(0.0, 0.0)]
    assert found.tolist() == pytest.approx(expected)


def test_cap_lets_repeated_watching_count() -> None:
    found = losses(watch_time(cap=2.0), [-1.0, -1.0], [90.0, 500.0], numbers=lasting(60, 60))
    assert found.tolist() == pytest.approx([cross_entropy(-1.0, 0.75), cross_entropy(-1.0, 1.0)])


def test_the_score_of_ratio_is_in_seconds_again() -> None:
    shown = candidates([NAN, NAN], lasting(40, 200))
    assert watch_time().score({"t": column([0.0, math.log(3)])}, shown).tolist() == pytest.approx([20, 150])
    assert watch_time(cap=2.0).score({"t": column([0.0, math.log(3)])}, shown).tolist() == pytest.approx([40, 300])


@pytest.mark.parametrize(
    ("duration", "label", "rank"),
    [
        (30, 0.0, 0.0),
        (30, 12.0, 0.6),
        (30, 15.0, 0.75),
        (30, 20.0, 1.0),
        (30, 500.0, 1.0),
        (59.9, 12.0, 0.6),
        (60, 25.0, 0.125),
        (60, 50.0, 0.25),
        (60, 100.0, 0.75),  # ranks 0.5 to 1 share it
        (60, 101.0, 1.0),
    ],
)
def test_quantile_learns_the_rank_within_the_group(duration: float, label: float, rank: float) -> None:
    found = losses(watch_time(method="quantile"), [0.7], [label], numbers=lasting(duration))
    assert found.item() == pytest.approx(cross_entropy(0.7, rank), abs=1e-6)


@pytest.mark.parametrize(
    ("duration", "rank", "seconds"),
    [(30, 0.6, 12.0), (30, 0.75, 15.0), (60, 0.125, 25.0), (60, 0.75, 100.0), (60, 0.9, 100.0)],
)
def test_the_score_of_quantile_is_the_time_at_the_rank(duration: float, rank: float, seconds: float) -> None:
    logit = column([math.log(rank / (1 - rank))])
    found = watch_time(method="quantile").score({"t": logit}, candidates([NAN], lasting(duration)))
    assert found.item() == pytest.approx(seconds)


def test_a_rank_of_one_is_the_longest_time() -> None:
    found = watch_time(method="quantile").score({"t": column([1e4, -1e4])}, candidates([NAN] * 2, lasting(30, 30)))
    assert found.tolist() == [20.0, 0.0]


@pytest.mark.parametrize("lowest", [0.0, 3.0])
def test_labels_that_many_rows_share_have_their_middle_rank(lowest: float) -> None:
    """At the low end too: half of the rows are not watched at all."""
    tied = DurationEntry(share=0.3, edges=[], quantiles=[[lowest, lowest, lowest, 10.0, 20.0]])
    kind = make("watch_time", {"duration": "length", "method": "quantile"}, columns=COLUMNS, durations=tied)
    found = losses(kind, [0.7], [lowest], numbers=lasting(30))
    assert found.item() == pytest.approx(cross_entropy(0.7, 0.25))


@pytest.mark.parametrize("method", ["ratio", "quantile"])
def test_rows_without_a_duration_are_not_trained_on_and_score_the_mean(method: str) -> None:
    kind = watch_time(method=method)
    shown = candidates([10.0, 10.0, 10.0, 10.0, NAN], lasting(NAN, 0.0, -3.0, 40.0, 40.0))
    assert kind.weights(shown).tolist() == [0, 0, 0, 1, 0]
    logits = torch.full((5, 1), 3.0, requires_grad=True)
    found = kind.losses({"t": logits}, shown)
    assert torch.isfinite(found).all()
    (found * kind.weights(shown)).sum().backward()
    assert (logits.grad[:, 0] != 0).tolist() == [False, False, False, True, False]
    score = kind.score({"t": logits.detach()}, shown)
    assert score[:3].tolist() == [MEAN] * 3
    assert (score[3:] != MEAN).all()


def test_weights_of_labels_count() -> None:
    shown = candidates([10.0, 10.0], lasting(40.0, NAN))
    shown.label_weights *= 2.5
    assert watch_time().weights(shown).tolist() == [2.5, 0]


def test_untrained_the_score_is_the_mean_share_or_the_middle_rank() -> None:
    assert untrained(watch_time(), lasting(40, 200)).tolist() == pytest.approx([12, 60])
    assert untrained(watch_time(method="quantile"), lasting(40, 200)).tolist() == pytest.approx([10, 100])


@pytest.mark.parametrize("method", ["ratio", "quantile"])
def test_gradients_are_finite_differences_and_finite(method: str) -> None:
    kind, shown = watch_time(method=method), candidates([0.0, 7.0, 1e9], lasting(30, 30, 100))
    logits = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kind.losses({"t": x}, shown), logits)
    extreme = torch.tensor([[1e4], [-1e4], [-1e4]], requires_grad=True)
    found = kind.losses({"t": extreme}, shown)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"duration": "lenght"}, "tasks.t.params.duration: no number is called 'lenght'.*Did you mean 'length'"),
        ({"groups": 3}, "tasks.t.params: groups belongs to `method: quantile`"),
        ({"method": "quantile", "cap": 2.0}, "tasks.t.params: cap belongs to `method: ratio`"),
        ({"cap": 0}, "'tasks.t.params.cap' is 0: .*greater than 0"),
        ({"method": "d2q"}, "'tasks.t.params.method' is 'd2q': .*'ratio' or 'quantile'"),
    ],
)
def test_wrong_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        watch_time(**params)


def test_it_needs_a_duration() -> None:
    with pytest.raises(ConfigError, match=r"'tasks.t.params.duration' .*field required"):
        make("watch_time", {}, columns=COLUMNS, durations=DURATIONS)


def test_train_rows_without_any_duration_are_refused() -> None:
    with pytest.raises(DataError, match=r"tasks.t.params.duration: no train row has both a label and 'length' above 0"):
        make("watch_time", {"duration": "length"}, columns=COLUMNS)
