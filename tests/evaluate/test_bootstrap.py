"""Weighted metrics against really repeated rows, and intervals against what they promise."""

import numpy as np
import pytest

from mtrec_ray.evaluate import bootstrap, metrics


def binary_rows(seed=0, n=400, num_users=25):
    rng = np.random.default_rng(seed)
    users = rng.integers(0, num_users, n)
    scores = (rng.beta(2, 3, n) * 0.9 + 0.05).round(2)
    return (rng.random(n) < scores) * 1.0, scores, users


def repeated(names, labels, scores, users, train_mean, count, seed):
    """The resamples by their definition: draw users, stack their rows, call the plain metric."""
    values = {name: [] for name in names}
    ids = np.unique(users)
    for weights in bootstrap.resamples(len(ids), count, seed):
        rows = np.concatenate([np.tile(np.flatnonzero(users == u), int(w)) for u, w in zip(ids, weights, strict=True)])
        for name in names:
            found = metrics.METRICS[name](labels[rows], scores[rows], users[rows], train_mean)
            values[name].append(np.nan if found is None else found)
    return {name: np.array(values[name]) for name in names}


def equal(left, right):
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-10, err_msg=name)


def test_binary_replicates_equal_repeated_rows():
    names = metrics.BY_KIND["binary"]
    rows = binary_rows()
    equal(bootstrap.replicates(names, *rows, 0.3, 20, 5), repeated(names, *rows, 0.3, 20, 5))


def test_regression_replicates_equal_repeated_rows():
    rng = np.random.default_rng(1)
    rows = rng.normal(3, 1, 300), rng.normal(3, 1, 300), rng.integers(0, 20, 300)
    names = metrics.BY_KIND["regression"]
    equal(bootstrap.replicates(names, *rows, 3.0, 20, 5), repeated(names, *rows, 3.0, 20, 5))


def test_multiclass_replicates_equal_repeated_rows():
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 3, 300) * 1.0, rng.dirichlet(np.ones(3), 300), rng.integers(0, 20, 300)
    names = metrics.BY_KIND["multiclass"]
    equal(bootstrap.replicates(names, *rows, 1.0, 20, 5), repeated(names, *rows, 1.0, 20, 5))


def test_a_metric_that_a_guest_registers_is_resampled_too():
    def spread(labels, scores, users, train_mean):
        return float(np.std(scores)) if len(np.unique(users)) > 1 else None

    if "spread_of_scores" not in metrics.METRICS:
        metrics.METRICS.register("spread_of_scores")(spread)
    rows = binary_rows()
    names = ["spread_of_scores"]
    equal(bootstrap.replicates(names, *rows, 0.3, 5, 5), repeated(names, *rows, 0.3, 5, 5))


def test_a_resample_draws_as_many_users_as_there_are():
    draws = np.array(list(bootstrap.resamples(50, 400, 0)))
    assert (draws.sum(axis=1) == 50).all()
    assert draws.mean() == 1
    assert draws.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # multinomial


def test_unobserved_rows_change_nothing():
    labels, scores, users = binary_rows()
    more = np.append(labels, np.nan), np.append(scores, np.nan), np.append(users, 999)
    names = ["auc", "logloss"]
    equal(bootstrap.replicates(names, *more, 0.3, 5, 0), bootstrap.replicates(names, labels, scores, users, 0.3, 5, 0))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Mean labels of users with their own rates: row resampling would cover far less than 95 %."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(60), 10)
        errors = rng.normal(0, 1, 60)[users] + rng.normal(0, 0.2, 600)
        found = bootstrap.interval(
            bootstrap.replicates(["mae"], np.zeros(600), errors + 10, users, 0.0, 200, seed)["mae"]
        )
        covered += found.low <= 10 <= found.high
    assert 51 <= covered <= 60


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    labels, scores, users = binary_rows(n=2000, num_users=50)
    worse = (scores + np.random.default_rng(0).normal(0, 0.05, 2000)).clip(0.01, 0.99)

    def area(column, seed):
        return bootstrap.replicates(["auc"], labels, column, users, 0.3, 200, seed)["auc"]

    paired = bootstrap.interval(area(scores, 0) - area(worse, 0))
    unpaired = bootstrap.interval(area(scores, 0) - area(worse, 1))
    assert paired.low > 0 > unpaired.low
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_no_interval_where_most_resamples_do_not_define_the_metric():
    labels, users = np.array([1.0, 0.0]), np.array([0, 1])
    values = bootstrap.replicates(["auc"], labels, labels, users, 0.5, 200, 0)["auc"]
    assert np.isnan(values).mean() == pytest.approx(0.5, abs=0.1)
    assert bootstrap.interval(np.append(values, np.full(60, np.nan))) is None
    assert (
        bootstrap.interval(bootstrap.replicates(["auc"], labels[:0], labels[:0], users[:0], 0.5, 9, 0)["auc"]) is None
    )
