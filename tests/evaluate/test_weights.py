"""Rows that count differently: metrics equal those of really repeated rows, and those of the log before sampling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.evaluate import bootstrap, curves, metrics
from mtrec_ray.evaluate.judged import METRICS, Judged
from mtrec_ray.tasks.kinds import KINDS


def rows_of(kind: str, seed: int = 0, n: int = 300) -> Judged:
    """With ties; weights are whole numbers, also 0, and some labels are not observed."""
    rng = np.random.default_rng(seed)
    users, weights = rng.integers(0, 20, n), rng.integers(0, 5, n) * 1.0
    if kind == "binary":
        scores = (rng.beta(2, 3, n) * 0.9 + 0.05).round(1)
        labels = (rng.random(n) < scores) * 1.0
        before = (rng.random(n) < 0.6) * 1.0
        extra = {"parent_labels": np.maximum(before, labels), "parent_scores": np.sqrt(scores)}
    elif kind == "regression":
        labels, scores, extra = rng.normal(3, 1, n), rng.normal(3, 1, n), {}
    else:
        labels, scores, extra = rng.integers(0, 3, n) * 1.0, rng.dirichlet(np.ones(3), n), {}
    labels[rng.random(n) < 0.1] = np.nan
    return Judged(labels, scores, users, 0.3, np.arange(n), weights=weights, **extra)


def repeated(rows: Judged) -> Judged:
    """Each row as often as it counts."""
    assert rows.weights is not None
    return rows._replace(weights=None).take(np.repeat(np.arange(len(rows.labels)), rows.weights.astype(int)))


NAMES = {
    "binary": [*KINDS["binary"].reported, "cvr_auc", "cvr_logloss", "rmse", "mae"],
    "regression": list(KINDS["regression"].reported),
    "multiclass": [*KINDS["multiclass"].reported, "rank_mae"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_metrics_are_those_of_repeated_rows(kind):
    rows = rows_of(kind)
    found, expected = (metrics.measure(NAMES[kind], given) for given in (rows, repeated(rows)))
    unweighted = metrics.measure(NAMES[kind], rows._replace(weights=None))
    for name in NAMES[kind]:
        assert found[name] == pytest.approx(expected[name], rel=1e-12), name
        assert found[name] != pytest.approx(unweighted[name], rel=1e-3), name
    assert found.get("gauc_covered") == pytest.approx(expected.get("gauc_covered"))
    assert found["users"] == expected["users"]


@pytest.mark.parametrize("kind", NAMES)
def test_replicates_are_those_of_repeated_rows(kind):
    rows = rows_of(kind)
    found, expected = (bootstrap.replicates(NAMES[kind], given, 15, 3) for given in (rows, repeated(rows)))
    for name in NAMES[kind]:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, err_msg=name)


def test_a_metric_of_a_guest_sees_the_weights_of_drawn_rows():
    if "mean_weight" not in METRICS:
        METRICS.register("mean_weight")(lambda rows: float(rows.counts.mean()))
    rows = rows_of("binary")
    drawn = bootstrap.replicates(["mean_weight"], rows, 200, 0)["mean_weight"]
    assert drawn.mean() == pytest.approx(rows.observed().counts.mean(), rel=0.02)
    assert drawn.std() > 0


def test_curves_are_those_of_repeated_rows():
    rows = rows_of("binary").observed()
    again = repeated(rows)
    weighted, plain = (curves.roc_curve(r.labels, r.scores, r.weights) for r in (rows, again))
    np.testing.assert_allclose(weighted, plain, rtol=1e-12)
    assert np.trapezoid(*reversed(weighted)) == pytest.approx(metrics.auc(rows.labels, rows.scores, rows.weights))
    distinct = rows._replace(scores=np.random.default_rng(0).permutation(len(rows.labels)) / len(rows.labels))
    curve = curves.calibration_curve(distinct.labels, distinct.scores, 10, distinct.weights)
    assert np.ptp(curve.rows) <= 2 * 4  # of the largest weight at both ends
    assert (curve.observed * curve.rows).sum() == pytest.approx(rows.labels @ rows.weights)
    assert (curve.predicted * curve.rows).sum() == pytest.approx(distinct.scores @ rows.weights)


# A list: how often it counts, and rows of label, score, how many a negative stands for, category, novelty
row = st.tuples(
    st.sampled_from([0.0, 1.0]), st.integers(0, 2), st.integers(1, 3), st.integers(-1, 2), st.integers(0, 9)
)
drawn_lists = st.lists(st.tuples(st.integers(1, 3), st.lists(row, min_size=1, max_size=5)), min_size=1, max_size=5)


def judged(drawn, in_lists: bool, traits: int | None = None) -> tuple[Judged, Judged]:
    """The rows with weights, and repeated; a negative stands for several only if they differ `in_lists`."""
    columns, copies, n = [], [], 0
    for list_, (times, rows) in enumerate(drawn):
        for label, score, places, *more in rows:
            places = places if in_lists and label == 0 else 1
            columns.append((label, score / 7, list_, times * places, *more))
        for _ in range(times):
            for label, score, places, *more in rows:
                places = places if in_lists and label == 0 else 1
                copies += [(label, score / 7, n, 1, *more)] * places
            n += 1
    found = []
    for rows in (np.array(columns), np.array(copies)):
        shown = rows[:, 2].astype(int)
        found.append(Judged(rows[:, 0], rows[:, 1], shown, 0.5, shown, weights=rows[:, 3]))
        if traits is not None:
            found[-1] = found[-1]._replace(traits=rows[:, traits : traits + 1] if traits == 4 else rows[:, traits])
    return found[0], found[1]._replace(weights=None)


@given(drawn_lists, st.one_of(st.none(), st.integers(1, 8)))
@settings(deadline=None, max_examples=80)
def test_ranks_are_those_of_lists_with_repeated_rows(drawn, k):
    weighted, plain = judged(drawn, in_lists=True)
    for base in ("ndcg", "mrr", "recall"):
        name = base if k is None else f"{base}@{k}"
        expected = METRICS[name](plain)
        assert METRICS[name](weighted) == (None if expected is None else pytest.approx(expected, rel=1e-9)), name


@given(drawn_lists, st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_what_is_in_lists_is_that_of_repeated_lists(drawn, k):
    for base, traits in (("ild", 4), ("novelty", 5)):
        weighted, plain = judged(drawn, in_lists=False, traits=traits)
        expected = METRICS[f"{base}@{k}"](plain)
        assert METRICS[f"{base}@{k}"](weighted) == (None if expected is None else pytest.approx(expected)), base


def test_weights_of_rows_in_a_list_by_hand():
    """The positive is behind a negative that stands for 2.5: rank 3.5. The list counts 4, another one 1 with rank 1."""
    labels, shown = np.array([0.0, 1, 0, 1, 0]), np.array([0, 0, 0, 1, 1])
    rows = Judged(labels, np.array([3.0, 2, 1, 2, 1]), shown, 0.5, shown, weights=np.array([10.0, 4, 4, 1, 9]))
    assert METRICS["mrr"](rows) == pytest.approx((4 / 3.5 + 1) / 5)
    gain = 0.5 / np.log2(4) + 0.5 / np.log2(5)  # half of place 3, half of place 4
    assert METRICS["ndcg"](rows) == pytest.approx((4 * gain + 1) / 5)
    assert METRICS["recall@3"](rows) == pytest.approx((4 * 0.5 + 1) / 5)
    assert METRICS["mrr@3"](rows) == pytest.approx((4 * 0.5 / 3.5 + 1) / 5)


def test_positives_among_all_items_count_as_their_rows():
    rows = Judged(np.array([1.0, 1, 0]), np.zeros(3), np.arange(3), 0.5, np.zeros(3, int), ranks=np.array([1, 4, 0]))
    assert METRICS["mrr"](rows._replace(weights=np.array([3.0, 1, 7]))) == pytest.approx((3 + 0.25) / 4)


def test_many_places_are_looked_at_in_blocks(monkeypatch):
    weighted, _ = judged([(1, [(1.0, 0, 1, 0, 0), (0.0, 0, 3, 0, 0)])] * 9, in_lists=True)
    whole = METRICS["mrr"](weighted)
    monkeypatch.setattr("mtrec_ray.evaluate.lists._PLACES_AT_ONCE", 5)
    assert METRICS["mrr"](weighted) == pytest.approx(whole, rel=1e-14)
    assert whole == pytest.approx(np.mean(1 / np.arange(1, 5)))


def sampled(seed: int = 0, lists: int = 15_000, size: int = 12) -> tuple[Judged, Judged]:
    """A log whose scores are its true probabilities, and what is left of it where negatives are kept at half, and all
    rows of every third user at a fifth."""
    rng = np.random.default_rng(seed)
    shown = np.repeat(np.arange(lists), size)
    users = shown // 20
    chance = 1 / (1 + np.exp(1.5 - rng.normal(0, 1, lists * size) - rng.normal(0, 0.5, users.max() + 1)[users]))
    labels = (rng.random(lists * size) < chance) * 1.0
    whole = Judged(labels, chance, users, labels.mean(), shown)
    of_list = np.where(users % 3 == 0, 0.2, 1.0)
    rate = of_list * np.where(labels > 0, 1.0, 0.5)
    list_kept = (rng.random(lists) < np.where(np.arange(lists) // 20 % 3 == 0, 0.2, 1.0))[shown]
    kept = list_kept & (rng.random(lists * size) < rate / of_list)
    return whole, whole._replace(weights=1 / rate).take(kept)


def test_a_sampled_log_is_measured_as_the_whole_one():
    whole, kept = sampled()
    rows = ["auc", "gauc", "logloss", "ne", "calibration", "rmse", "mae"]
    lists = {"ndcg": 0.4, "mrr": 0.55, "recall@3": 0.2}  # biased: how much of what is wrong without weights is left
    expected, found, naive = (
        metrics.measure([*rows, *lists], judged) for judged in (whole, kept, kept._replace(weights=None))
    )
    for name in rows:
        assert found[name] == pytest.approx(expected[name], rel=0.01), name
    assert expected["calibration"] == pytest.approx(1, abs=0.02)  # the truth
    assert naive["calibration"] < 0.7
    assert naive["logloss"] > 1.2 * expected["logloss"]
    for name, left in lists.items():
        assert abs(found[name] - expected[name]) < left * abs(naive[name] - expected[name]), name
