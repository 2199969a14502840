"""Weighted metrics against really repeated rows, and intervals against what they promise."""

import numpy as np
import pytest

from mtrec_ray.evaluate import bootstrap
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.evaluate.metrics import METRICS
from mtrec_ray.tasks.kinds import KINDS


def rows_of(labels, scores, users, train_mean=0.3, **others):
    return Judged(labels, scores, users, train_mean, others.pop("shown", np.arange(len(labels))), **others)


def binary_rows(seed=0, n=400, num_users=25):
    rng = np.random.default_rng(seed)
    users = rng.integers(0, num_users, n)
    scores = (rng.beta(2, 3, n) * 0.9 + 0.05).round(2)
    return rows_of((rng.random(n) < scores) * 1.0, scores, users)


def repeated(names, rows, count, seed):
    """The resamples by their definition: draw users, stack their rows, call the plain metric."""
    values = {name: [] for name in names}
    ids = np.unique(rows.users)
    for weights in bootstrap.resamples(len(ids), count, seed):
        drawn = [np.flatnonzero(rows.users == u) for u, w in zip(ids, weights, strict=True) for _ in range(int(w))]
        copies = np.repeat(np.arange(len(drawn)), [len(places) for places in drawn])
        stacked = rows.take(np.concatenate(drawn))
        stacked = stacked._replace(shown=stacked.shown * len(drawn) + copies)  # lists drawn twice are two lists
        for name in names:
            found = METRICS[name](stacked)
            values[name].append(np.nan if found is None else found)
    return {name: np.array(values[name]) for name in names}


def equal(left, right):
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-10, err_msg=name)


def test_binary_replicates_equal_repeated_rows():
    names, rows = KINDS["binary"].reported, binary_rows()
    equal(bootstrap.replicates(names, rows, 20, 5), repeated(names, rows, 20, 5))


def test_regression_replicates_equal_repeated_rows():
    rng = np.random.default_rng(1)
    rows = rows_of(rng.normal(3, 1, 300), rng.normal(3, 1, 300), rng.integers(0, 20, 300), 3.0)
    names = KINDS["regression"].reported
    equal(bootstrap.replicates(names, rows, 20, 5), repeated(names, rows, 20, 5))


def test_multiclass_replicates_equal_repeated_rows():
    rng = np.random.default_rng(2)
    rows = rows_of(rng.integers(0, 3, 300) * 1.0, rng.dirichlet(np.ones(3), 300), rng.integers(0, 20, 300), 1.0)
    names = KINDS["multiclass"].reported
    equal(bootstrap.replicates(names, rows, 20, 5), repeated(names, rows, 20, 5))


def test_replicates_of_lists_equal_repeated_lists():
    rng = np.random.default_rng(3)
    rows = binary_rows()
    shown = rows.users * 100 + rng.integers(0, 4, len(rows.users)) * 7
    for traits, names in (
        (None, ["ndcg@3", "mrr", "recall@2"]),
        (rng.integers(-1, 4, (len(shown), 2)), ["ild@3"]),
        (rng.random(len(shown)), ["novelty@3", "novelty"]),
    ):
        lists = rows._replace(shown=shown, traits=traits)
        equal(bootstrap.replicates(names, lists, 20, 5), repeated(names, lists, 20, 5))


def test_coverage_has_no_interval_since_resampled_users_always_cover_less():
    rows = binary_rows()._replace(items=np.arange(400) % 50)
    assert np.isnan(bootstrap.replicates(["coverage@10"], rows, 5, 0)["coverage@10"]).all()


def test_a_metric_that_a_guest_registers_is_resampled_too():
    def spread(rows):
        return float(np.std(rows.scores)) + len(np.unique(rows.shown)) if len(np.unique(rows.users)) > 1 else None

    if "spread_of_scores" not in METRICS:
        METRICS.register("spread_of_scores")(spread)
    rows = binary_rows()
    rows = rows._replace(shown=rows.users)
    names = ["spread_of_scores"]
    equal(bootstrap.replicates(names, rows, 5, 5), repeated(names, rows, 5, 5))


def test_a_resample_draws_as_many_users_as_there_are():
    draws = np.array(list(bootstrap.resamples(50, 400, 0)))
    assert (draws.sum(axis=1) == 50).all()
    assert draws.mean() == 1
    assert draws.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # multinomial


def test_unobserved_rows_change_nothing():
    rows = binary_rows()
    more = rows_of(np.append(rows.labels, np.nan), np.append(rows.scores, np.nan), np.append(rows.users, 999))
    names = ["auc", "logloss"]
    equal(bootstrap.replicates(names, more, 5, 0), bootstrap.replicates(names, rows, 5, 0))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Mean labels of users with their own rates: row resampling would cover far less than 95 %."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(60), 10)
        errors = rng.normal(0, 1, 60)[users] + rng.normal(0, 0.2, 600)
        rows = rows_of(np.zeros(600), errors + 10, users, 0.0)
        found = bootstrap.interval(bootstrap.replicates(["mae"], rows, 200, seed)["mae"])
        covered += found.low <= 10 <= found.high
    assert 51 <= covered <= 60


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    rows = binary_rows(n=2000, num_users=50)
    worse = (rows.scores + np.random.default_rng(0).normal(0, 0.05, 2000)).clip(0.01, 0.99)

    def area(column, seed):
        return bootstrap.replicates(["auc"], rows._replace(scores=column), 200, seed)["auc"]

    paired = bootstrap.interval(area(rows.scores, 0) - area(worse, 0))
    unpaired = bootstrap.interval(area(rows.scores, 0) - area(worse, 1))
    assert paired.low > 0 > unpaired.low
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_no_interval_where_most_resamples_do_not_define_the_metric():
    rows = rows_of(np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([0, 1]), 0.5)
    values = bootstrap.replicates(["auc"], rows, 200, 0)["auc"]
    assert np.isnan(values).mean() == pytest.approx(0.5, abs=0.1)
    assert bootstrap.interval(np.append(values, np.full(60, np.nan))) is None
    assert bootstrap.interval(bootstrap.replicates(["auc"], rows.take(np.arange(0)), 9, 0)["auc"]) is None
