"""Metrics of a step given its parent, and of classes in an order, against their definitions written out slowly."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from mtrec_ray.evaluate import bootstrap, metrics
from mtrec_ray.evaluate.facts import Facts, judged
from mtrec_ray.evaluate.judged import METRICS, Judged
from tests.tasks.made import make

NAN = np.nan
CVR = ["cvr_auc", "cvr_logloss"]


def rows_of(labels, scores, parent_labels=None, parent_scores=None, users=None):
    columns = [None if column is None else np.array(column, dtype=float) for column in (parent_labels, parent_scores)]
    users = np.arange(len(labels)) if users is None else users
    return Judged(np.array(labels, dtype=float), np.array(scores), users, 0.5, np.arange(len(labels)), *columns)


def purchases(seed=0, n=600, users=30):
    """Clicks and purchases after them, with the scores of a model that knows their chances roughly."""
    rng = np.random.default_rng(seed)
    click, buy = rng.beta(2, 3, n), rng.beta(2, 4, n)
    clicked = rng.random(n) < click
    bought = clicked & (rng.random(n) < buy)
    noise = np.exp(rng.normal(0, 0.3, n))
    scores = np.minimum(click * buy * noise, 1)
    return rows_of(bought, scores, clicked, click, rng.integers(0, users, n))


def test_a_conversion_is_judged_on_the_clicked_rows_by_score_over_parents_score():
    rows = rows_of([1, 0, 1, 0, 0], [0.2, 0.1, 0.1, 0.09, 0.3], [1, 1, 1, 0, NAN], [0.4, 0.5, 0.4, 0.1, 0.3])
    found = metrics.measure(CVR, rows)
    p = [0.5, 0.2, 0.25]
    assert found["cvr_auc"] == 1.0
    assert found["cvr_logloss"] == pytest.approx(-np.mean([np.log(p[0]), np.log(1 - p[1]), np.log(p[2])]))
    assert found["cvr_n"] == 3
    assert found["n"] == 5
    assert found["undefined"] == {}


def test_it_equals_scikit_learn_on_the_clicked_rows():
    rows = purchases()
    clicked = rows.parent_labels == 1
    cvr = np.minimum(rows.scores / rows.parent_scores, 1)[clicked]
    found = metrics.measure(CVR, rows)
    assert found["cvr_auc"] == pytest.approx(reference.roc_auc_score(rows.labels[clicked], cvr))
    expected = reference.log_loss(rows.labels[clicked], np.clip(cvr, metrics.EPSILON, 1 - metrics.EPSILON))
    assert found["cvr_logloss"] == pytest.approx(expected)
    assert found["cvr_auc"] != pytest.approx(metrics.auc(rows.labels, rows.scores), abs=0.02)


def test_the_quotient_stays_a_probability():
    """Above 1 where scores are no products; 0 / 0 where both are too small for their type."""
    rows = rows_of([1, 0], [0.6, 0.0], [1, 1], [0.5, 0.0])
    assert metrics.measure(CVR, rows)["cvr_logloss"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (rows_of([1, 0], [0.2, 0.1]), "no scores of the parent task"),
        (rows_of([1, 0], [0.2, 0.1], [1, 1]), "no scores of the parent task"),
        (rows_of([0, 0], [0.2, 0.1], [0, 0], [0.5, 0.5]), "no rows on which the parent task happened"),
        (rows_of([NAN, 0], [0.2, 0.1], [1, 0], [0.5, 0.5]), "no rows on which the parent task happened"),
        (rows_of([NAN, NAN], [0.2, 0.1], [1, 1], [0.5, 0.5]), "no observed rows"),
    ],
)
def test_undefined_metrics_say_why(rows, reason):
    found = metrics.measure(CVR, rows)
    assert found["undefined"] == dict.fromkeys(CVR, reason)
    assert found["cvr_n"] == 0
    json.dumps(found, allow_nan=False)


def test_one_class_among_the_clicked_rows_has_no_auc():
    found = metrics.measure(CVR, rows_of([1, 0], [0.2, 0.1], [1, 0], [0.5, 0.5]))
    assert found["undefined"] == {"cvr_auc": "labels of one class only"}
    assert found["cvr_logloss"] == pytest.approx(-np.log(0.4))


def repeated(names, rows, count, seed):
    """The resamples by their definition: draw users, stack their rows, call the plain metric."""
    values = {name: [] for name in names}
    ids = np.unique(rows.users)
    for weights in bootstrap.resamples(len(ids), count, seed):
        parts = [np.tile(np.flatnonzero(rows.users == u), int(w)) for u, w in zip(ids, weights, strict=True)]
        for name in names:
            found = METRICS[name](rows.take(np.concatenate(parts)))
            values[name].append(np.nan if found is None else found)
    return values


def test_replicates_equal_repeated_rows():
    rows, names = purchases(n=200, users=12), ["auc", *CVR]
    found = bootstrap.replicates(names, rows, 40, 3)
    for name, expected in repeated(names, rows, 40, 3).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, err_msg=name)


def test_replicates_where_few_users_clicked():
    """Also resamples without any clicked row, whose metric is not defined."""
    users = np.repeat(np.arange(6), 4)
    clicked = (users == 2) | (users == 5)
    rows = purchases(n=24)._replace(users=users, parent_labels=clicked * 1.0)
    found = bootstrap.replicates(CVR, rows, 60, 0)
    assert 0 < np.isnan(found["cvr_logloss"]).sum() < 60
    for name, expected in repeated(CVR, rows, 60, 0).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, err_msg=name)


def test_without_clicked_rows_there_are_no_replicates():
    rows = purchases(n=50)
    rows = rows._replace(parent_labels=np.zeros(50))
    assert np.isnan(bootstrap.replicates(CVR, rows, 5, 0)["cvr_auc"]).all()


def test_a_conversions_kind_asks_for_them_and_gets_its_parents_columns():
    click = make("binary", name="click", mean=0.4)
    kind = make("conversion", name="buy", index=1, parent=click, mean=0.1)
    rows = purchases()
    labels = {"click": rows.parent_labels, "buy": rows.labels}
    scores = {"click": rows.parent_scores, "buy": rows.scores}
    facts = Facts(rows.users, np.arange(len(rows.labels)))
    found = metrics.measure(kind.reported, judged(kind, labels, scores, facts))
    assert found["cvr_auc"] == metrics.measure(CVR, rows)["cvr_auc"]
    alone = metrics.measure(kind.reported, judged(kind, labels, {"buy": rows.scores}, facts))
    assert alone["undefined"] == dict.fromkeys(CVR, "no scores of the parent task")
    assert alone["auc"] == found["auc"]


PROBABILITIES = [[0.2, 0.2, 0.6], [0.4, 0.2, 0.4], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
"""Their medians are the classes 2, 1, 0 (which half is up to) and 2."""


def test_the_rank_error_is_the_distance_to_the_median_class():
    labels = np.array([2.0, 0.0, 2.0, 1.0])
    rows = rows_of(labels, PROBABILITIES)
    assert metrics.row_rank_error(labels, rows.scores).tolist() == [0, 1, 2, 1]
    assert metrics.measure(["rank_mae"], rows)["rank_mae"] == 1.0


def test_no_class_is_nearer_to_the_label_than_the_median_is_on_average():
    rng = np.random.default_rng(0)
    for probabilities in rng.dirichlet(np.ones(5), 50):
        distances = [(probabilities * np.abs(np.arange(5) - guess)).sum() for guess in range(5)]
        errors = metrics.row_rank_error(np.arange(5.0), np.tile(probabilities, (5, 1)))
        assert probabilities @ errors == pytest.approx(min(distances))


def test_replicates_of_the_rank_error_equal_repeated_rows():
    rng = np.random.default_rng(1)
    scores, users = rng.dirichlet(np.ones(4), 200), rng.integers(0, 12, 200)
    rows = rows_of(rng.integers(0, 4, 200), scores, users=users)
    found = bootstrap.replicates(["rank_mae"], rows, 20, 3)["rank_mae"]
    np.testing.assert_allclose(found, repeated(["rank_mae"], rows, 20, 3)["rank_mae"], rtol=1e-10)
