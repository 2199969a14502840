import numpy as np
import pytest

from mtrec_ray.check.asof import encoded, rates_before
from mtrec_ray.check.counts import Target, closeness, is_dishonest
from mtrec_ray.check.statistics import clustered_auc, clustered_mean, mean_shift, psi
from mtrec_ray.evaluate.metrics import auc


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def made(rng: np.random.Generator, clusters: int = 200, rows: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and clusters; clusters differ in rate and in level of the score."""
    cluster = np.repeat(np.arange(clusters), rows)
    level = rng.normal(size=clusters)[cluster]
    labels = (rng.normal(size=len(cluster)) + level > 0).astype(float)
    return labels, level + labels * 0.3 + rng.normal(size=len(cluster)), cluster


def test_auc_and_its_error_over_clusters(rng: np.random.Generator) -> None:
    found = [clustered_auc(*made(rng)) for _ in range(200)]
    assert all(estimate is not None for estimate in found)
    values, errors = np.array([[e.value, e.error] for e in found if e is not None]).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.15), "the spread over repeated logs"
    labels, scores, cluster = made(rng, rows=20)
    once = clustered_auc(labels, scores, cluster)
    alone = clustered_auc(labels, scores, np.arange(len(labels)))
    twice = clustered_auc(*(np.repeat(column, 2) for column in (labels, scores, cluster)))
    assert once is not None
    assert alone is not None
    assert twice is not None
    assert once.value == pytest.approx(auc(labels, scores))
    assert twice.error == pytest.approx(once.error), "repeated rows are no evidence"
    assert alone.error < 0.8 * once.error
    assert clustered_auc(labels, scores, np.zeros(len(labels))) is None


def test_means_and_shifts(rng: np.random.Generator) -> None:
    values, cluster = rng.normal(size=1000), np.repeat(np.arange(200), 5)
    mean = clustered_mean(values, cluster)
    assert mean is not None
    assert mean.value == pytest.approx(values.mean())
    sums = values.reshape(200, 5).sum(1)
    assert mean.error == pytest.approx(sums.std(ddof=1) / 5 / np.sqrt(200), rel=0.05)
    later = np.arange(1000) % 5 == 0
    shift = mean_shift(values + later, later, cluster)
    assert shift is not None
    assert shift.value == pytest.approx(values[later].mean() + 1 - values[~later].mean())
    assert shift.low > 0.5
    assert mean_shift(values, np.zeros(1000, bool), cluster) is None


def test_psi_by_hand() -> None:
    assert psi(np.array([10, 10]), np.array([20, 20])) == 0
    p, q = np.array([10.5, 20.5]) / 31, np.array([20.5, 10.5]) / 31
    assert psi(np.array([10, 20]), np.array([20, 10])) == pytest.approx(2 * (q[0] - p[0]) * np.log(q[0] / p[0]))


def target(value: np.ndarray, before: list[np.ndarray]) -> Target:
    return Target("t", np.arange(len(value)), value, None, None, before)


def test_even_the_true_rate_leaves_what_chance_adds(rng: np.random.Generator) -> None:
    for keys in (40, 2000):
        rate = rng.lognormal(3, 1.5, keys)
        counts = rng.poisson(rate).astype(float)
        told = target(counts, [rng.normal(size=keys)])
        by_rate, by_count, by_log = (closeness(values, told) for values in (rate, -counts, np.log1p(counts).round(1)))
        assert by_rate is not None
        assert by_rate.value > 0.9
        assert not is_dishonest(by_rate, told)
        assert by_count is not None
        assert by_count.value == pytest.approx(0, abs=1e-9)
        assert is_dishonest(by_count, told)
        assert by_log is not None
        assert by_log.value < by_rate.value
        assert closeness(np.full(keys, np.nan), told) is None


def test_even_the_true_mean_leaves_what_labels_vary(rng: np.random.Generator) -> None:
    mean, n = rng.beta(1, 9, 1000), rng.integers(4, 60, 1000).astype(float)
    total = rng.binomial(n.astype(int), mean).astype(float)
    variance = (total - total**2 / n) / (n - 1)
    of_mean = Target("t", np.arange(1000), total / n, n, variance / n, [rng.normal(size=1000)])
    of_sum = Target("t", np.arange(1000), total, 1 / n, n * variance, [rng.normal(size=1000)])
    for told, honest, leak in ((of_mean, mean, (total + 1) / (n + 1)), (of_sum, mean * n, total + rng.random(1000))):
        found, dishonest = closeness(honest, told), closeness(leak, told)
        assert found is not None
        assert dishonest is not None
        assert 0.9 < found.value < 1.4
        assert not is_dishonest(found, told)
        assert is_dishonest(dishonest, told)


def test_counts_that_are_known_before_may_be_told(rng: np.random.Generator) -> None:
    """Everybody has about ten rows: whoever knows how many there were knows how many will come."""
    past = rng.integers(0, 10, 1000).astype(float)
    rest = 10 - past
    told = target(rest, [past])
    found = closeness(past + 0.5, told)
    assert found is not None
    assert found.value == 0
    assert not is_dishonest(found, told)


def test_rates_before_a_row_by_hand() -> None:
    key, time = np.array([0, 1, 0, 0, 0]), np.array([5, 1, 7, 7, 9])
    label = np.array([1, 1, 0, np.nan, 1])
    expected = [5 / 10, 5 / 10, 6 / 11, 6 / 11, 6 / 12]
    assert rates_before(key, time, label, 0.5).tolist() == pytest.approx(expected)
    codes, fitted = np.array([0, 0, 1, 1]), np.array([True, True, True, False])
    base = 2 / 3
    assert encoded(codes, np.array([1.0, 0, 1, 0]), fitted)[[0, 2]].tolist() == pytest.approx(
        [(1 + 10 * base) / 12, (1 + 10 * base) / 11]
    )
