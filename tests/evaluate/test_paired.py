"""Paired differences against values worked by hand, and intervals against users that are really drawn."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.errors import DataError
from mtrec_ray.evaluate import bootstrap, metrics
from mtrec_ray.evaluate.judged import METRICS, Judged
from mtrec_ray.evaluate.paired import Measured, Term, check_same_rows, difference, measured, relative_change
from mtrec_ray.evaluate.predictions import Rows

COUNT, SEED = 40, 3


def rows_of(labels, scores, users) -> Judged:
    labels = np.asarray(labels, dtype=np.float64)
    return Judged(labels, np.asarray(scores), np.asarray(users), 0.4, np.arange(len(labels)))


def made_up(seed: int, n: int = 300, num_users: int = 20, observed: float = 0.7) -> tuple[Judged, Judged]:
    """Two score columns over the same rows, the second with less noise; some users have no observed label."""
    rng = np.random.default_rng(seed)
    users, chance = rng.integers(0, num_users, n), rng.random(n)
    labels = (rng.random(n) < chance) * 1.0
    labels[(rng.random(n) > observed) | (users < 3)] = np.nan
    scores = [np.clip(chance + rng.normal(0, width, n), 0.01, 0.99) for width in (0.4, 0.1)]
    return rows_of(labels, scores[0], users), rows_of(labels, scores[1], users)


def drawn(rows: Judged, name: str) -> np.ndarray:
    """The metric on each resample, by its definition: draw from all users, stack their rows."""
    ids, found = np.unique(rows.users), []
    for weights in bootstrap.resamples(len(ids), COUNT, SEED):
        places = [np.tile(np.flatnonzero(rows.users == u), int(w)) for u, w in zip(ids, weights, strict=True)]
        value = METRICS[name](rows.take(np.concatenate(places)).observed())
        found.append(np.nan if value is None else value)
    return np.array(found)


def hand(value: float | None, *replicates: float) -> Measured:
    return Measured(value, np.array(replicates))


def test_the_difference_is_the_second_minus_the_first_and_its_mean_is_over_seeds():
    pairs = [(hand(0.70, 0.6, 0.8), hand(0.71, 0.61, 0.83)), (hand(0.72, 0.7, 0.7), hand(0.69, 0.72, 0.70))]
    found = difference(pairs)
    assert found.seeds == pytest.approx([0.01, -0.03])
    assert found.mean == pytest.approx(-0.01)
    # per resample, mean over seeds: (.01 + .02) / 2 = .015 and (.03 + 0) / 2 = .015
    assert found.interval == pytest.approx((0.015, 0.015))


def test_an_auc_worked_by_hand():
    first = measured(["auc"], rows_of([1, 0, 1, 0], [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]), 10)
    second = measured(["auc"], rows_of([1, 0, 1, 0], [0.9, 0.2, 0.8, 0.1], [0, 0, 1, 1]), 10)
    assert (first["auc"].value, second["auc"].value) == (0.75, 1.0)  # 3 of 4 pairs in order, then all
    assert difference([(first["auc"], second["auc"])]).mean == 0.25


@pytest.mark.parametrize("name", ["auc", "gauc", "logloss", "rmse"])
def test_intervals_equal_those_of_users_that_are_really_drawn(name):
    seeds = [made_up(0), made_up(0)[::-1], made_up(0)]
    pairs = [tuple(measured([name], rows, COUNT, SEED)[name] for rows in pair) for pair in seeds]
    found = difference(pairs)
    expected = np.mean([drawn(second, name) - drawn(first, name) for first, second in seeds], axis=0)
    assert found.mean == pytest.approx(
        np.mean([METRICS[name](b.observed()) - METRICS[name](a.observed()) for a, b in seeds])
    )
    assert found.interval == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_tasks_with_other_observed_users_share_the_resamples():
    """A task's metric on the resamples that another task's users decide: the same draws, so averages are of one set."""
    like, _ = made_up(0)
    rating = like._replace(labels=np.where(like.users >= 10, 3.0 + like.scores, np.nan), scores=np.full(300, 3.0))
    for rows, name in ((like, "auc"), (rating, "mae")):
        np.testing.assert_allclose(measured([name], rows, COUNT, SEED)[name].replicates, drawn(rows, name))
    assert len(np.unique(like.observed().users)) != len(np.unique(rating.observed().users))


def test_equal_columns_do_not_differ():
    rows, _ = made_up(1)
    one = measured(["auc"], rows, COUNT)["auc"]
    found = difference([(one, one)])
    assert (found.mean, found.interval) == (0, (0, 0))


def test_the_relative_change_worked_by_hand():
    """AUC .8 -> .82 is +2.5 %, RMSE 1.0 -> 1.1 is -10 %; above chance the AUC gains .02 of .3."""
    auc = Term(hand(0.8, 0.8, 0.9), hand(0.82, 0.84, 0.9), +1)
    rmse = Term(hand(1.0, 1.0, 2.0), hand(1.1, 1.1, 1.8), -1)
    found = relative_change([[auc, rmse]])
    assert found.mean == pytest.approx((0.025 - 0.1) / 2)
    ends = [(0.05 - 0.1) / 2, (0.0 + 0.1) / 2]  # of the two resamples
    assert found.interval == pytest.approx(tuple(np.quantile(ends, [0.025, 0.975])))
    above = relative_change([[replace(auc, floor=0.5), rmse]])
    assert above.mean == pytest.approx((0.02 / 0.3 - 0.1) / 2)


def test_the_relative_change_of_several_seeds_is_the_mean_of_theirs():
    seeds = [[Term(hand(0.8, 0.8), hand(0.84, 0.84), +1)], [Term(hand(0.5, 0.5), hand(0.45, 0.45), +1)]]
    found = relative_change(seeds)
    assert found.seeds == pytest.approx([0.05, -0.1])
    assert found.mean == pytest.approx(-0.025)
    assert found.interval == pytest.approx((-0.025, -0.025))


def test_no_mean_where_a_seed_has_no_value():
    found = difference([(hand(0.7, 0.7), hand(0.8, 0.8)), (hand(None, np.nan), hand(0.8, 0.8))])
    assert (found.seeds[1], found.mean, found.interval) == (None, None, None)


def test_nothing_relative_to_what_is_not_above_chance():
    at_chance = Term(hand(0.5, 0.5, 0.6), hand(0.6, 0.6, 0.6), +1, floor=0.5)
    assert relative_change([[at_chance]]).mean is None
    in_a_resample = Term(hand(0.6, 0.5, 0.6), hand(0.7, 0.7, 0.7), +1, floor=0.5)
    found = relative_change([[in_a_resample]])
    assert found.mean == pytest.approx(1.0)
    assert found.interval is None


def test_runs_over_different_rows_are_not_paired():
    def rows(*ids):
        nothing = pa.array([""] * len(ids))
        zeros = np.zeros(len(ids), dtype=np.int64)
        return Rows(np.array(ids), zeros, zeros, zeros, nothing, nothing, {}, {}, {})

    check_same_rows(rows(1, 2), rows(1, 2), ("a", "b"))
    with pytest.raises(DataError, match=r"runs/a and runs/b were not evaluated on the same rows \(2 and 3\)"):
        check_same_rows(rows(1, 2), rows(1, 2, 3), ("runs/a", "runs/b"))


def test_metrics_are_those_of_reports():
    rows, _ = made_up(2)
    names = ["auc", "gauc", "logloss"]
    values = metrics.measure(names, rows)
    assert {name: one.value for name, one in measured(names, rows, 2).items()} == {name: values[name] for name in names}
