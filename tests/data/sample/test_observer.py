"""The observer against exact integrals, particle filters, and its promise not to look ahead."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.special import expit

from mtrec_ray.data.sample import SCENARIOS, Size
from mtrec_ray.data.sample.beliefs import Beliefs, after_label, after_number, expected_logistic
from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.feedback import given
from mtrec_ray.data.sample.judging import auc
from mtrec_ray.data.sample.observer import Sees, predict
from mtrec_ray.data.sample.population import TOPIC_COUNT, spreads
from mtrec_ray.data.sample.scenario import DAY
from mtrec_ray.data.sample.simulate import World

pytestmark = pytest.mark.slow


def generated(scenario, size):
    world = World.drawn(scenario, size)
    days = list(world.days())
    return world, Exposures.joined([rows for rows, _ in days]), Truth.joined([truth for _, truth in days])


def seen_by(world, log, sees=None):
    return predict(world.scenario, world.size, world.items, world.users, log, sees)


@pytest.fixture(scope="module")
def video():
    return generated(SCENARIOS["video"], Size(users=300, items=150, days=10))


def test_one_label_is_integrated_exactly():
    grid = np.linspace(-12, 12, 20_001)
    for mean, variance, label in ((0.3, 1.7, 1), (-2.0, 4.0, 1), (1.0, 0.5, 0)):
        prior = np.exp(-((grid - mean) ** 2) / (2 * variance))
        posterior = prior * expit(grid if label else -grid)
        expected = (grid * posterior).sum() / posterior.sum()
        spread = ((grid - expected) ** 2 * posterior).sum() / posterior.sum()
        after, left = after_label(np.array([mean]), np.array([variance]), np.array([label]))
        assert after[0] == pytest.approx(expected, abs=1e-5)
        assert left[0] == pytest.approx(spread, abs=1e-4)
        p = expected_logistic(np.array([mean]), np.array([variance]))[0]
        assert p == pytest.approx((prior * expit(grid)).sum() / prior.sum(), abs=1e-5)


def test_numbers_are_learned_as_by_least_squares():
    """Normal observations of a normal state have a normal posterior: the filter is then exact."""
    rng = np.random.default_rng(0)
    size = TOPIC_COUNT + 1
    beliefs = Beliefs(np.zeros((1, size)), np.full(size, 1.5), 0.7, 0.0, 1, 0.5)
    w = rng.normal(size=(12, size + TOPIC_COUNT))
    numbers, noise = rng.normal(size=12), 0.8
    for row, number in zip(w, numbers, strict=True):
        beliefs.learn(
            np.array([0]), np.array([0]), row[None], np.zeros(1), np.zeros(1), np.zeros(1),
            lambda mean, variance, number=number: after_number(mean, variance, np.array([number]), np.array([noise])),
            False,
        )  # fmt: skip
    prior = np.diag([1.5**2] * size + [0.7**2] * TOPIC_COUNT)
    cov = np.linalg.inv(np.linalg.inv(prior) + w.T @ w / noise**2)
    np.testing.assert_allclose(beliefs.cov[0], cov, atol=1e-9)
    np.testing.assert_allclose(beliefs.mean[0], cov @ w.T @ numbers / noise**2, atol=1e-9)


def test_users_are_followed_as_well_as_by_a_particle_filter():
    """Tastes with drift, intents of sessions, labels of two stages; items known."""
    stages = tuple(stage for stage in SCENARIOS["video"].stages if stage.name != "like")
    stages = (stages[0], replace(stages[1], window=61, delay=1.0))
    scenario = replace(SCENARIOS["video"], stages=stages, dwell=None, quality_spread=1e-6, drift=0.05)
    scenario = replace(scenario, sessions_per_day=0.8)
    world, log, _ = generated(scenario, Size(users=30, items=100, days=12))
    ours = seen_by(world, log)
    theirs = {"click": np.zeros(len(log)), "finish": np.zeros(len(log))}
    for user in range(30):
        for name, p in _particles(world, log, user, np.random.default_rng(user)).items():
            theirs[name][log.user == user] = p
    for name, p in theirs.items():
        label = log.labels[name]
        assert auc(label, ours[name]) == pytest.approx(auc(label, p), abs=0.002)
        assert np.abs(ours[name] - p).mean() < 0.01
        assert auc(label, p) > auc(label, seen_by(world, log, Sees(history=False))[name]) + 0.02


def _particles(world, log, user, rng, count=4_000):
    """A bootstrap particle filter of one user, by request; labels are known before the user's next request."""
    scenario, items = world.scenario, world.items
    mean, spread = world.users.means[world.users.segment[user]], spreads(scenario)
    state = mean + spread * rng.normal(size=(count, len(spread)))
    weight = np.full(count, 1 / count)
    rows = np.flatnonzero(log.user == user)
    p = {stage.name: np.zeros(len(rows)) for stage in scenario.stages}
    day = session = -1
    for request in np.unique(log.request[rows]):
        places = np.flatnonzero(log.request[rows] == request)
        here = rows[places]
        part = {name: column[here] for name, column in vars(log).items() if isinstance(column, np.ndarray)}
        now = int(log.time[here[0]] - world.size.start) // DAY
        for _ in range(now - max(day, 0)):
            away = np.sqrt(1 - scenario.drift) * (state - mean)
            state = mean + away + np.sqrt(scenario.drift) * spread * rng.normal(size=state.shape)
        if log.session[here[0]] != session:
            intent = scenario.intent_spread * rng.normal(size=(count, TOPIC_COUNT))
        day, session = now, log.session[here[0]]
        liking = (state[:, 1:] + intent) @ items.topics[part["item"]].T
        product, likelihood = 1.0, np.ones((count, len(here)))
        for stage in scenario.stages:
            odds = (
                given(scenario, items, part, stage) + stage.loads.activity * state[:, :1] + stage.loads.taste * liking
            )
            product = product * expit(odds)
            p[stage.name][places] = weight @ product
            label = log.labels[stage.name][here]
            asked = (stage.parent is None) | (log.labels[stage.parent or stage.name][here] == 1)
            likelihood *= np.where(asked, expit(np.where(label > 0, odds, -odds)), 1.0)
        weight = weight * likelihood.prod(1)
        weight /= weight.sum()
        if 1 / (weight**2).sum() < count / 2:
            chosen = rng.choice(count, count, p=weight)
            state, intent, weight = state[chosen], intent[chosen], np.full(count, 1 / count)
    return p


class _Joint:
    """One normal distribution over all users' and items' numbers: the reference without the assumption that users and
    items are independent."""

    def __init__(self, users, items):
        self.users, self.mean = users, np.zeros(users + items)
        self.cov = np.diag([1.5**2] * users + [1.2**2] * items)

    def expects_then_learns(self, user, item, label):
        w = np.zeros(len(self.mean))
        w[[user, self.users + item]] = 1
        spread = self.cov @ w
        mean, variance = w @ self.mean, w @ spread
        expected = expected_logistic(np.array([mean]), np.array([variance]))[0]
        after, left = (x[0] for x in after_label(np.array([mean]), np.array([variance]), np.array([label])))
        self.mean = self.mean + spread * (after - mean) / variance
        self.cov = self.cov - np.outer(spread, spread) * (variance - left) / variance**2
        return expected


class _Apart:
    """The observer's way."""

    def __init__(self, users, items):
        spreads = np.full(1 + TOPIC_COUNT, 1.5)
        self.beliefs = Beliefs(np.zeros((users, 1 + TOPIC_COUNT)), spreads, 0.1, 0.0, items, 1.2)

    def expects_then_learns(self, user, item, label):
        mine, u, i = self.beliefs, np.array([user]), np.array([item])
        variance = mine.cov[u, 0, 0] + mine.item_variance[i]
        expected = expected_logistic(mine.mean[u, 0] + mine.item_mean[i], variance)[0]
        w, nothing = np.eye(1, 1 + 2 * TOPIC_COUNT), np.zeros(1)
        update = partial(after_label, label=np.array([label]))
        mine.tell_items(i, *mine.learn(u, i, w, np.ones(1), nothing, nothing, update, False))
        return expected


class _Weighed:
    """Importance sampling from the prior: exact, in worlds so small that some of the samples fit."""

    def __init__(self, users, items, rng, count=40_000):
        self.users, self.items = rng.normal(0, 1.5, (users, count)), rng.normal(0, 1.2, (items, count))
        self.weight = np.full(count, 1 / count)

    def expects_then_learns(self, user, item, label):
        odds = self.users[user] + self.items[item]
        expected = self.weight @ expit(odds)
        self.weight = self.weight * expit(odds if label else -odds)
        self.weight /= self.weight.sum()
        assert 1 / (self.weight**2).sum() > 100, "too few samples left to judge by"
        return expected


def followed(rng, users, items, events, *ways):
    """Labels [events] of a world of whose users and items one number each is unknown, and what each way expected."""
    user, item = rng.normal(0, 1.5, users), rng.normal(0, 1.2, items)
    labels, expected = np.zeros(events), np.zeros((len(ways), events))
    for event in range(events):
        u, i = rng.integers(users), rng.integers(items)
        labels[event] = rng.random() < expit(user[u] + item[i])
        expected[:, event] = [way.expects_then_learns(u, i, labels[event]) for way in ways]
    return labels, expected


def test_users_and_items_together_are_followed_as_by_importance_sampling():
    """In 60 worlds of 3 users and 4 items one normal distribution over all of them is right."""
    rng = np.random.default_rng(4)
    worlds = [followed(rng, 3, 4, 24, _Joint(3, 4), _Weighed(3, 4, rng)) for _ in range(60)]
    labels = np.concatenate([labels for labels, _ in worlds])
    joint, exact = np.concatenate([expected for _, expected in worlds], axis=1)
    assert auc(labels, joint) == pytest.approx(auc(labels, exact), abs=0.002)
    assert np.abs(joint - exact).mean() < 0.01


def test_users_and_items_may_be_followed_apart():
    """Where an item has many users, as in any log: the same as one normal distribution over all of them."""
    labels, (joint, apart) = followed(np.random.default_rng(5), 100, 40, 2500, _Joint(100, 40), _Apart(100, 40))
    assert auc(labels, apart) == pytest.approx(auc(labels, joint), abs=0.002)
    assert auc(labels, joint) > 0.75
    assert np.abs(joint - apart).mean() < 0.02


def test_nothing_later_than_a_row_changes_its_prediction(video):
    world, log, _ = video
    before = seen_by(world, log)
    rng = np.random.default_rng(0)
    then = int(log.time[len(log) // 2])
    later = {name: known >= then for name, known in log.known.items()}
    labels = {n: np.where(later[n] & ~np.isnan(y), rng.integers(0, 2, len(y)), y) for n, y in log.labels.items()}
    known = {n: np.where(later[n], times + rng.integers(0, 500, len(times)), times) for n, times in log.known.items()}
    spent = np.where(log.time + world.scenario.dwell.window >= then, rng.uniform(1, 99, len(log)), log.dwell)
    after = seen_by(world, replace(log, labels=labels, known=known, dwell=spent))
    early = log.time <= then
    for name, p in before.items():
        np.testing.assert_array_equal(after[name][early], p[early])
        assert not np.array_equal(after[name][~early], p[~early])


def test_what_became_known_in_the_same_second_is_not_known_yet(video):
    world, log, _ = video
    row = int(np.flatnonzero(np.diff(log.session, prepend=-1) == 0)[-1])
    mate = np.flatnonzero((log.user == log.user[row]) & (log.request < log.request[row]))[-1]
    flipped = {
        **log.labels,
        "click": np.where(np.arange(len(log)) == mate, 1 - log.labels["click"], log.labels["click"]),
    }

    def told(at, labels):
        known = {**log.known, "click": np.where(np.arange(len(log)) == mate, at, log.known["click"])}
        return seen_by(world, replace(log, known=known, labels=labels))["click"][row]

    assert told(log.time[row], log.labels) == told(log.time[row], flipped)
    assert told(log.time[row] - 1, log.labels) != told(log.time[row] - 1, flipped)


def test_each_sense_is_worth_something_and_the_truth_most(video):
    world, log, truth = video
    late = log.time >= world.size.start + 5 * DAY
    label = log.labels["click"][late]
    whole = auc(label, seen_by(world, log)["click"][late])
    assert auc(label, truth.probability["click"][late]) > whole + 0.02
    for sees in (Sees(text=False), Sees(ids=False), Sees(history=False)):
        assert auc(label, seen_by(world, log, sees)["click"][late]) < whole - 0.01


def test_predictions_are_calibrated(video):
    world, log, _ = video
    for name, p in seen_by(world, log).items():
        label = log.labels[name]
        seen = ~np.isnan(label)
        assert p[seen].mean() == pytest.approx(label[seen].mean(), rel=0.12)
