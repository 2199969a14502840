import numpy as np
import pytest

from mtrec_ray.data.sample import SCENARIOS, Size
from mtrec_ray.data.sample.asof import Ledger
from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.floors import FLOORS, Periods
from mtrec_ray.data.sample.judging import auc, gauc, judge
from mtrec_ray.data.sample.simulate import World
from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate import metrics


def test_a_ledger_counts_what_was_known_strictly_before():
    rng = np.random.default_rng(1)
    keys, times = rng.integers(0, 5, 200), rng.integers(100, 140, 200)
    labels = np.where(rng.random(200) < 0.2, np.nan, rng.integers(0, 2, 200))
    asked, at = rng.integers(0, 6, 300), rng.integers(90, 150, 300)
    count, ones = Ledger(keys, times, labels).before(asked, at)
    for i in range(300):
        known = (keys == asked[i]) & (times < at[i]) & ~np.isnan(labels)
        assert (count[i], ones[i]) == (known.sum(), labels[known].sum())


def test_areas_are_those_of_the_package():
    rng = np.random.default_rng(2)
    users, labels = rng.integers(0, 30, 500), rng.integers(0, 2, 500).astype(float)
    scores = np.round(rng.random(500), 1)
    assert auc(labels, scores) == pytest.approx(metrics.auc(labels, scores))
    assert gauc(labels, scores, users) == pytest.approx(metrics.gauc(labels, scores, users).value)


@pytest.fixture(scope="module")
def judged():
    world = World.drawn(SCENARIOS["ads"], Size(users=600, items=150, days=15))
    days = list(world.days())
    log, truth = Exposures.joined([d[0] for d in days]), Truth.joined([d[1] for d in days])
    return world, log, truth, judge(world, log, truth)[0]


def test_truth_above_observer_above_floors_above_chance(judged):
    for figures in judged[3].values():
        assert set(figures.floors) == set(FLOORS)
        assert all(area > 0.52 for area in figures.floors.values())
        assert figures.oracle[0] > figures.observer[0] > figures.floors[figures.best_floor]
        assert figures.gap == figures.observer[0] - max(figures.floors.values())


def test_the_test_rows_are_those_of_the_config(judged):
    world, log, truth, found = judged
    rows = Periods.of(log, world.scenario, world.scenario.root, world.size, truth.bot)
    assert found["click"].rows == rows.test.sum() == (log.time >= world.size.valid_until).sum()
    assert found["click"].positives == log.labels["click"][rows.test].sum()
    late = world.scenario.stage("conversion")
    last = log.time[Periods.of(log, world.scenario, late, world.size, truth.bot).train].max()
    assert last + late.window <= world.size.train_until


def test_a_log_that_is_too_small_to_judge_is_refused():
    world = World.drawn(SCENARIOS["ads"], Size(users=3, items=100, days=5))
    days = list(world.days())
    log, truth = Exposures.joined([d[0] for d in days]), Truth.joined([d[1] for d in days])
    with pytest.raises(ConfigError, match="too few"):
        judge(world, log, truth)
