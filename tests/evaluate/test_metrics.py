"""Each metric against scikit-learn or against its definition, written out slowly."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.evaluate import curves, metrics, tables
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.tasks.kinds import KINDS

# Few distinct scores, so that ties are the rule.
rows = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=40)


def unpack(drawn):
    labels, scores, users = map(np.array, zip(*drawn, strict=True))
    return labels, scores / 10, users


def slow_auc(labels, scores):
    wins = [(p > n) + (p == n) / 2 for p in scores[labels > 0] for n in scores[labels == 0]]
    return np.mean(wins) if wins else None


@given(rows)
@settings(deadline=None, max_examples=150)
def test_auc_is_the_share_of_pairs_in_the_right_order(drawn):
    labels, scores, _ = unpack(drawn)
    assert metrics.auc(labels, scores) == pytest.approx(slow_auc(labels, scores))


@given(rows)
@settings(deadline=None, max_examples=150)
def test_gauc_weights_the_auc_of_mixed_users_by_rows(drawn):
    labels, scores, users = unpack(drawn)
    parts = [(slow_auc(labels[users == u], scores[users == u]), (users == u).sum()) for u in np.unique(users)]
    mixed = [(area, n) for area, n in parts if area is not None]
    value, covered, count = metrics.gauc(labels, scores, users)
    assert count == len(mixed)
    assert covered == pytest.approx(sum(n for _, n in mixed) / len(labels))
    if mixed:
        assert value == pytest.approx(sum(area * n for area, n in mixed) / sum(n for _, n in mixed))
    else:
        assert value is None


def test_gauc_takes_ids_of_any_kind_and_is_blind_to_what_is_constant_within_a_user():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 20, 500)
    labels, scores = (rng.random(500) < 0.4) * 1.0, rng.random(500)
    names = np.array([f"user {u}" for u in users])
    value = metrics.gauc(labels, scores, users).value
    assert value == pytest.approx(metrics.gauc(labels, scores, names).value)
    assert value == pytest.approx(metrics.gauc(labels, scores + users * 10, users).value)
    assert metrics.gauc(labels, users * 1.0, users).value == pytest.approx(0.5)


@pytest.fixture(scope="module")
def binary():
    rng = np.random.default_rng(1)
    scores = rng.beta(2, 3, 2000).round(3).clip(0.001, 0.999)
    return (rng.random(2000) < scores) * 1.0, scores


def test_binary_metrics_equal_scikit_learn(binary):
    labels, scores = binary
    assert metrics.auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.log_loss(labels, scores) == pytest.approx(reference.log_loss(labels, scores), abs=1e-12)
    false_positives, true_positives, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    curve = curves.roc_curve(labels, scores)
    np.testing.assert_allclose(curve.false_positive_rate, false_positives)
    np.testing.assert_allclose(curve.true_positive_rate, true_positives)


def test_float32_scores_give_the_same_auc(binary):
    labels, scores = binary
    assert metrics.auc(labels, scores.astype(np.float32)) == pytest.approx(metrics.auc(labels, scores), abs=1e-12)


def test_roc_area_is_the_auc(binary):
    labels, scores = binary
    assert np.trapezoid(*reversed(curves.roc_curve(labels, scores))) == pytest.approx(metrics.auc(labels, scores))


def test_normalised_entropy_is_one_for_the_train_base_rate(binary):
    labels, scores = binary
    assert metrics.normalised_entropy(labels, np.full(2000, 0.3), 0.3) == pytest.approx(1.0)
    rate = labels.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    he_2014 = reference.log_loss(labels, scores) / entropy
    assert metrics.normalised_entropy(labels, scores, rate) == pytest.approx(he_2014)
    assert metrics.normalised_entropy(labels, scores, 1.0) is None


def test_calibration(binary):
    labels, scores = binary
    assert metrics.calibration_ratio(labels, 2 * scores) == pytest.approx(2 * scores.sum() / labels.sum())
    curve = curves.calibration_curve(labels, scores, bins=7)
    assert curve.rows.sum() == 2000
    assert np.ptp(curve.rows) <= 1
    assert (np.diff(curve.predicted) >= 0).all()
    assert (curve.observed * curve.rows).sum() == pytest.approx(labels.sum())
    assert (curve.predicted * curve.rows).sum() == pytest.approx(scores.sum())
    assert np.abs(curve.observed - curve.predicted).max() < 0.1  # the labels were drawn from the scores
    assert len(curves.calibration_curve(labels[:3], scores[:3]).rows) == 3


def test_regression_metrics_equal_scikit_learn():
    rng = np.random.default_rng(2)
    labels, scores = rng.normal(3, 1, 300), rng.normal(3, 1, 300)
    assert metrics.rmse(labels, scores) == pytest.approx(reference.root_mean_squared_error(labels, scores))
    assert metrics.mae(labels, scores) == pytest.approx(reference.mean_absolute_error(labels, scores))


def test_multiclass_metrics_equal_scikit_learn():
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 4, 300) * 1.0, rng.dirichlet(np.ones(4), 300)
    loss = reference.log_loss(labels, scores, labels=[0, 1, 2, 3])
    assert metrics.multiclass_log_loss(labels, scores) == pytest.approx(loss)
    accuracy = reference.accuracy_score(labels, scores.argmax(1))
    assert metrics.accuracy(labels, scores) == pytest.approx(accuracy)


def test_saturated_scores_have_a_finite_loss():
    assert metrics.log_loss(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(-np.log(metrics.EPSILON))
    assert metrics.multiclass_log_loss(np.array([1.0]), np.array([[1.0, 0.0]])) < 17


def measured(names, labels, scores, users=None):
    """What `measure` finds of rows that were shown one by one, by default each to another user."""
    places = np.arange(len(labels))
    return metrics.measure(names, Judged(np.array(labels), scores, places if users is None else users, 0.5, places))


def test_measure_leaves_out_unobserved_labels():
    scores = np.array([0.9, np.nan, 0.2, 0.6, 0.5])
    found = measured(["auc", "gauc"], [1.0, np.nan, 0.0, 0.0, 1.0], scores, np.array([1, 1, 1, 2, 2]))
    assert found == {"n": 4, "users": 2, "auc": 0.75, "gauc": 0.5, "gauc_covered": 1.0, "undefined": {}}


NO_ROWS = "no observed rows"
BINARY = KINDS["binary"].reported


@pytest.mark.parametrize(
    ("labels", "reasons"),
    [
        ([], dict.fromkeys(BINARY, NO_ROWS)),
        ([np.nan], dict.fromkeys(BINARY, NO_ROWS)),
        ([1.0, 1.0], {"auc": "labels of one class only", "gauc": "no user with labels of both classes"}),
        (
            [0.0, 0.0],
            {
                "auc": "labels of one class only",
                "gauc": "no user with labels of both classes",
                "calibration": "the labels add up to zero or less",
            },
        ),
    ],
)
def test_an_undefined_metric_is_none_with_its_reason(labels, reasons):
    found = measured(BINARY, labels, np.full(len(labels), 0.5))
    assert found["undefined"] == reasons
    assert {name for name in BINARY if found[name] is None} == set(reasons)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", KINDS.names())
def test_no_rows(kind):
    names = KINDS[kind].reported
    found = measured(names, [], np.empty((0, 3)) if KINDS[kind].labels == "class" else np.empty(0))
    assert found["n"] == 0
    assert found["undefined"].keys() == set(names)
    assert next(iter(found["undefined"].values())) == NO_ROWS
    json.dumps(found, allow_nan=False)


def test_log_loss_knows_multiclass_scores_by_their_shape():
    found = measured(["logloss"], [1.0, 0.0], np.array([[0.2, 0.8], [0.5, 0.5]]))
    assert found["logloss"] == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)


def test_scores_of_a_diverged_model_are_refused():
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        measured(["auc"], [1.0, 0.0], np.array([0.5, np.inf]))


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(ConfigError, match="Did you mean 'logloss'"):
        measured(["loglos"], [1.0], np.ones(1))


@pytest.mark.parametrize("kind", KINDS.names())
def test_kinds_and_registered_metrics_agree(kind):
    kind = KINDS[kind]
    assert set(kind.metrics) <= set(kind.reported)
    assert all(name in metrics.METRICS for name in kind.reported)
    assert {name: metrics.direction(name) for name in kind.metrics} == kind.metrics
    assert next(iter(kind.metrics)) == kind.reported[0]


def test_every_metric_has_a_title():
    names = {metrics.base_name(name) for name in metrics.METRICS.names()}
    assert names - {"spread_of_scores"} <= tables.METRICS.keys()
    assert tables.metric_title("ndcg@5") == "NDCG@5"
    assert tables.column_title("ndcg@5") == "NDCG@5 ↑"
    assert [title for title, _ in tables.metric_help(["ndcg@5", "auc", "ndcg@3"])] == ["AUC", "NDCG"]
