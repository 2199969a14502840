"""Metrics of lists against scikit-learn, and against their mean over all orders of rows with equal scores."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate import metrics
from mtrec_ray.evaluate.facts import shown_together
from mtrec_ray.evaluate.judged import METRICS, Judged
from mtrec_ray.evaluate.lists import MeanOfLists

# A list each: label, score (few distinct ones, so that ties are the rule), categories, novelty
row = st.tuples(
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 2),
    st.tuples(st.integers(-1, 2), st.integers(-1, 2)),
    st.integers(0, 9),
)
lists = st.lists(st.lists(row, min_size=1, max_size=5), min_size=1, max_size=5)
depths = st.integers(1, 6)


def judged(drawn, traits=None) -> Judged:
    """The rows of all lists, shuffled."""
    rows = [(n, *row) for n, of_list in enumerate(drawn) for row in of_list]
    order = np.random.default_rng(0).permutation(len(rows))
    shown, labels, scores = (np.array([rows[i][c] for i in order]) for c in range(3))
    found = None if traits is None else np.array([rows[i][traits] for i in order])
    return Judged(labels, scores / 7, shown, 0.5, shown * 13 + 5, traits=found)


def orders(of_list):
    """All orders of the rows that their scores allow, best first, equally often."""
    every = itertools.permutations(of_list)
    return [found for found in every if all(a[1] >= b[1] for a, b in itertools.pairwise(found))]


def mean(drawn, of_order, is_defined) -> float | None:
    """Over lists, of the mean over orders."""
    values = [np.mean([of_order(order) for order in orders(rows)]) for rows in drawn if is_defined(rows)]
    return float(np.mean(values)) if values else None


def is_mixed(rows) -> bool:
    return len({label for label, *_ in rows}) == 2


def check(name, k, drawn, of_order, is_defined=is_mixed, traits=None):
    found = METRICS[f"{name}@{k}"](judged(drawn, traits))
    assert found == (None if (expected := mean(drawn, of_order, is_defined)) is None else pytest.approx(expected))


@given(lists, depths)
@settings(deadline=None, max_examples=100)
def test_ndcg_is_that_of_scikit_learn(drawn, k):
    values = [
        ndcg_score([[label for label, *_ in rows]], [[score for _, score, *_ in rows]], k=k)
        for rows in drawn
        if is_mixed(rows)
    ]
    found = METRICS[f"ndcg@{k}"](judged(drawn))
    assert found == (pytest.approx(np.mean(values)) if values else None)


@given(lists, depths)
@settings(deadline=None, max_examples=100)
def test_mrr(drawn, k):
    def first(order):
        rank = [label for label, *_ in order].index(1.0) + 1
        return 1 / rank if rank <= k else 0.0

    check("mrr", k, drawn, first)


@given(lists, depths)
@settings(deadline=None, max_examples=100)
def test_recall(drawn, k):
    def share(order):
        return sum(label for label, *_ in order[:k]) / sum(label for label, *_ in order)

    check("recall", k, drawn, share)


def cosine(left, right) -> float:
    a, b = ({value for value in row[2] if value > 0} for row in (left, right))
    return len(a & b) / np.sqrt(len(a) * len(b)) if a and b else 0.0


@given(lists, depths)
@settings(deadline=None, max_examples=150)
def test_intra_list_diversity(drawn, k):
    def of_head(order):
        return 1 - np.mean([cosine(*pair) for pair in itertools.combinations(order[:k], 2)])

    check("ild", k, drawn, of_head, lambda rows: min(len(rows), k) > 1, traits=3)


@given(lists, depths)
@settings(deadline=None, max_examples=100)
def test_novelty(drawn, k):
    check("novelty", k, drawn, lambda order: np.mean([row[3] for row in order[:k]]), lambda rows: True, traits=4)


@given(lists, depths)
@settings(deadline=None, max_examples=100)
def test_coverage_is_the_share_of_items_in_some_head(drawn, k):
    """The last column is the item, once in a list; the mean over all orders of all lists."""
    assume(all(len({row[3] for row in of_list}) == len(of_list) for of_list in drawn))
    rows = judged(drawn, traits=4)
    items = {row[3] for of_list in drawn for row in of_list}
    missed = 0.0
    for item in items:
        absent = [np.mean([all(row[3] != item for row in order[:k]) for order in orders(of_list)]) for of_list in drawn]
        missed += np.prod(absent)
    found = METRICS[f"coverage@{k}"](rows._replace(items=rows.traits, traits=None))
    assert found == pytest.approx(1 - missed / len(items))


def test_by_hand():
    """One list of four: positives stand at 1 and 3. DCG 1 + 1 / 2, best 1 + 1 / log2(3)."""
    rows = Judged(np.array([1.0, 0, 1, 0]), np.array([4.0, 3, 2, 1]), np.zeros(4), 0.5, np.zeros(4, np.int64))
    assert METRICS["ndcg@10"](rows) == pytest.approx(1.5 / (1 + 1 / np.log2(3)))
    assert METRICS["ndcg@2"](rows) == pytest.approx(1 / (1 + 1 / np.log2(3)))
    assert METRICS["mrr"](rows) == 1
    assert METRICS["recall@2"](rows) == 0.5
    assert METRICS["mrr@1"](rows._replace(scores=-rows.scores)) == 0


def test_a_model_that_says_the_same_of_all_does_not_profit_from_the_order_of_the_log():
    labels = np.array([1.0] + [0.0] * 9)
    first = Judged(labels, np.ones(10), np.zeros(10), 0.5, np.zeros(10, np.int64))
    expected = np.mean(1 / np.arange(1, 11))
    assert METRICS["mrr"](first) == pytest.approx(expected)
    assert METRICS["mrr"](first._replace(labels=labels[::-1])) == pytest.approx(expected)
    assert METRICS["ndcg@3"](first) == pytest.approx(np.mean([*(1 / np.log2(np.arange(2, 5))), *[0] * 7]))


def test_ties_in_a_long_list_are_exact():
    """A thousand rows with one score, forty of them positive: the first stands at (n + 1) / (p + 1) in the mean."""
    rows = Judged((np.arange(1000) < 40) * 1.0, np.ones(1000), np.zeros(1000), 0.5, np.zeros(1000, np.int64))
    draws = np.random.default_rng(0).permuted(np.tile(rows.labels, (4000, 1)), axis=1)
    assert METRICS["mrr"](rows) == pytest.approx(np.mean(1 / (draws.argmax(1) + 1)), rel=0.05)
    assert METRICS["recall@100"](rows) == pytest.approx(0.1)


def test_measure_says_over_how_many_lists_the_mean_is():
    rows = Judged(np.array([1.0, 0, 1, 1, np.nan, 0]), np.arange(6.0), np.arange(6), 0.5, np.array([0, 0, 2, 2, 2, 5]))
    found = metrics.measure(["ndcg@10", "auc"], rows)
    assert found["lists"] == 1  # of three, one has both labels
    assert found["ndcg@10"] == pytest.approx(1 / np.log2(3))


def test_unobserved_rows_are_no_part_of_a_list():
    rows = Judged(np.array([np.nan, 1.0, 0]), np.array([9.0, 2, 1]), np.zeros(3), 0.5, np.zeros(3, np.int64))
    assert metrics.measure(["mrr"], rows)["mrr"] == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ndcg@10", "no rows of both classes were shown together"),
        ("ild@10", "no two rows were shown together"),
        ("novelty@10", "not defined on these rows"),
        ("coverage@10", "not defined on these rows"),
    ],
)
def test_what_rows_do_not_define_is_none(name, reason):
    rows = Judged(np.ones(2), np.ones(2), np.zeros(2), 0.5, np.array([0, 1]))
    assert metrics.measure([name], rows)["undefined"] == {name: reason}
    assert metrics.measure([name], rows.take(np.arange(0)))["undefined"] == {name: "no observed rows"}


@pytest.mark.parametrize("name", ["ndcg@0", "ndcg@x", "ndcg@", "auc@10", "ncdg@10"])
def test_a_name_that_means_nothing_is_refused(name):
    assert name not in METRICS
    with pytest.raises(ConfigError, match=r"Unknown metric.*ndcg@10"):
        METRICS[name]


def test_any_depth_has_the_direction_of_its_metric():
    assert metrics.direction("ndcg@7") == metrics.direction("ndcg") == 1
    assert metrics.direction("logloss") == -1
    assert metrics.direction("calibration") == metrics.direction("coverage@10") == 0
    assert isinstance(METRICS["recall@7"], MeanOfLists)
    assert METRICS["recall@7"].k == 7


def test_shown_together_is_named_by_the_smallest_row_id():
    request, events = np.array([0, 0, 1, 0, 1]), np.array([2, 3, 2, 2, 2])
    assert shown_together(request, events, np.array([9, 5, 3, 4, 8])).tolist() == [4, 5, 3, 4, 3]
    assert shown_together(*np.zeros((3, 0), dtype=np.int64)).tolist() == []
