"""Metrics of tasks that match users with items, from ranks among all items."""

import numpy as np
import pytest

from mtrec_ray.evaluate import bootstrap, metrics
from mtrec_ray.evaluate.facts import Facts, judged
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.tasks.kinds import build_kinds
from tests.matching import manifest, matching_run

RANKS = np.array([1, 0, 3, 11, 60, 0, 10])
LABELS = np.array([1.0, 0.0, 1.0, 1.0, 1.0, np.nan, 1.0])
USERS = np.array([0, 0, 1, 1, 2, 2, 3])


def rows(ranks: np.ndarray = RANKS, labels: np.ndarray = LABELS) -> Judged:
    """All of them shown together, which must not matter."""
    return Judged(labels, np.linspace(0, 1, len(labels)), USERS, 0.3, np.zeros(len(labels), np.int64), ranks=ranks)


def test_figures_by_hand() -> None:
    found = metrics.measure(["recall@10", "recall@50", "mrr", "mrr@10", "ndcg@10", "ndcg"], rows())
    assert found["recall@10"] == pytest.approx(3 / 5)
    assert found["recall@50"] == pytest.approx(4 / 5)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 11 + 1 / 60 + 1 / 10) / 5)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3 + 1 / 10) / 5)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(11)) / 5)
    assert found["ndcg"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(12) + 1 / np.log2(61) + 1 / np.log2(11)) / 5)
    assert (found["n"], found["lists"], found["undefined"]) == (6, 5, {})


def test_what_is_not_defined_says_why() -> None:
    none = metrics.measure(["ndcg@10"], rows(np.zeros(7), np.where(LABELS == 1, 0.0, LABELS)))
    assert none["undefined"] == {"ndcg@10": "no row with label 1"}
    unranked = metrics.measure(["ndcg@10", "auc"], rows(np.zeros(7)))
    assert unranked["ndcg@10"] is None
    assert unranked["undefined"] == {"ndcg@10": "no ranks among all items"}
    assert unranked["auc"] is not None


def test_a_resample_is_the_metric_over_the_drawn_users() -> None:
    values = bootstrap.replicates(["recall@10", "ndcg@10", "mrr"], rows(), 20, seed=4)
    observed = rows().observed()
    for b, weights in enumerate(bootstrap.resamples(4, 20, seed=4)):
        drawn = np.repeat(np.arange(6), weights[observed.users].astype(int))
        expected = metrics.measure(values, observed.take(drawn))
        for name, drawn_values in values.items():
            wanted = np.nan if expected[name] is None else expected[name]
            assert drawn_values[b] == pytest.approx(wanted, nan_ok=True)


def test_ranks_are_of_kinds_that_match_and_absent_where_a_column_has_none() -> None:
    kinds = build_kinds(manifest(), matching_run().tasks)
    labels = {kind.task.name: LABELS for kind in kinds}
    scores = {kind.task.name: np.zeros(7) for kind in kinds}
    like, following, interest = (
        judged(kind, labels, scores, Facts(USERS, USERS, ranks={"next": RANKS})) for kind in kinds
    )
    assert like is not None
    assert following is not None
    assert interest is not None
    assert like.ranks is None
    assert following.ranks is RANKS
    assert interest.ranks is not None
    assert not interest.ranks.any()
