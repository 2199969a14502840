from dataclasses import replace

import numpy as np
import pytest

from mtrec_ray.data.sample import SCENARIOS, Size, scenario_named
from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.judging import auc
from mtrec_ray.data.sample.scenario import DAY, MINUTE
from mtrec_ray.data.sample.simulate import World, _States
from mtrec_ray.errors import ConfigError


def generated(scenario, size=None):
    world = World.drawn(scenario, size or Size(users=400, items=200, days=12))
    days = list(world.days())
    return world, Exposures.joined([rows for rows, _ in days]), Truth.joined([truth for _, truth in days])


@pytest.fixture(scope="module")
def shop():
    return generated(scenario_named("ecommerce"), Size(users=1500, items=200, days=12))


@pytest.mark.parametrize("name", SCENARIOS)
def test_labels_follow_their_true_probabilities_in_every_scenario(name):
    world, log, truth = generated(SCENARIOS[name])
    assert (np.diff(log.time) >= 0).all()
    assert log.age.min() >= 0
    for stage in world.scenario.stages:
        label, p = log.labels[stage.name], truth.probability[stage.name]
        seen = ~np.isnan(label)
        if stage.surveyed == 1:
            spread = np.sqrt((p[seen] * (1 - p[seen])).sum())
            assert abs(label[seen].sum() - p[seen].sum()) < 4 * spread
        assert auc(label[seen], p[seen]) > 0.75
        rows = log.user * 10**6 + log.item + log.request * 10**9
        assert len(np.unique(rows)) == len(rows)


def test_chains_happen_in_order_within_their_windows(shop):
    world, log, _ = shop
    for stage in world.scenario.stages[1:]:
        done = log.labels[stage.name] == 1
        assert done.sum() > 100
        assert (log.labels[stage.parent][done] == 1).all()
        assert (log.known[stage.name][done] > log.known[stage.parent][done]).all()
        assert (log.known[stage.name][done] <= log.time[done] + stage.window).all()
        since = (log.known[stage.name] - log.known[stage.parent])[done]
        assert np.median(since) == pytest.approx(stage.delay, rel=0.5)
    assert (log.known["click"] == log.time + MINUTE).all()


def test_missing_labels_are_those_of_untracked_users_and_of_nobody_asked(shop):
    world, log, _ = shop
    missing = np.isnan(log.labels["purchase"])
    np.testing.assert_array_equal(missing, world.users.untracked["purchase"][log.user])
    assert world.users.untracked["purchase"].mean() == pytest.approx(0.3, abs=0.04)
    assert not np.isnan(log.labels["cart"]).any()
    news, rows, _ = generated(SCENARIOS["news"])
    clicked = rows.labels["click"] == 1
    assert np.isnan(rows.labels["like"])[clicked].mean() == pytest.approx(
        1 - news.scenario.stage("like").surveyed, abs=0.05
    )
    assert (rows.labels["like"][~clicked] == 0).all()


def test_a_share_of_the_requests_is_drawn_uniformly(shop):
    world, log, _ = shop
    first = np.unique(log.request, return_index=True)[1]
    assert log.random[first].mean() == pytest.approx(world.scenario.random_share, abs=0.01)
    drawn = log.random & (log.position == 0)
    alive = [(world.items.born <= day).sum() for day in range(world.size.days)]
    day = (log.time[drawn] - world.size.start) // DAY
    np.testing.assert_allclose(log.propensity[drawn], 1 / np.array(alive)[day])
    favoured = np.bincount(log.item[~log.random], minlength=200)
    assert favoured.std() > 5 * np.sqrt(favoured.mean()), "the policy has favourites"


def test_tastes_drift_as_declared_and_keep_their_spread():
    steady = replace(SCENARIOS["music"], drift=0.0)
    moving = replace(SCENARIOS["music"], drift=0.1)
    size = Size(users=2000, items=100, days=12)
    for scenario, kept in ((steady, 1.0), (moving, np.sqrt(0.9) ** 11)):
        states = _States(World.drawn(scenario, size))
        before = (states.now - states.means)[:, 1:]
        for day in range(1, 12):
            states.renew(np.random.default_rng(day))
        after = (states.now - states.means)[:, 1:]
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] == pytest.approx(kept, abs=0.02)
        assert after.std() == pytest.approx(scenario.taste_spread, rel=0.03)


def test_users_and_items_arrive_and_leave():
    world, log, _ = generated(SCENARIOS["news"], Size(users=400, items=300, days=12))
    day = (log.time - world.size.start) // DAY
    assert (day >= world.users.joined[log.user]).all()
    late = [len(np.unique(log.item[(day == d) & (world.items.born[log.item] == d)])) for d in range(1, 12)]
    assert min(late) > 5
    assert log.age.max() < world.scenario.life_days + 1
    assert len(np.unique(log.user[day > 8])) > 1.15 * len(np.unique(log.user[day < 3]))


def test_domains_share_users_or_items_as_declared():
    _, log, _ = generated(SCENARIOS["ads"])
    of_user = {(u, d) for u, d in zip(log.user.tolist(), log.domain.tolist(), strict=True)}
    assert len(of_user) == len(np.unique(log.user))
    world, log, _ = generated(SCENARIOS["social"])
    assert (world.items.domain[log.item] == log.domain).all()
    both = [np.unique(log.user[log.domain == d]) for d in (0, 1)]
    assert len(np.intersect1d(*both)) > 50


def test_sessions_are_short_and_their_requests_apart(shop):
    _, log, _ = shop
    first = np.unique(log.request, return_index=True)[1]
    session, time = log.session[first], log.time[first]
    order = np.lexsort((time, session))
    same = np.diff(session[order]) == 0
    assert 1.5 < len(first) / len(np.unique(session)) < 2.5
    assert np.quantile(np.diff(time[order])[same], 0.02) > MINUTE
    assert (np.unique(np.stack([log.session, log.user]), axis=1).shape[1]) == len(np.unique(log.session))


def test_bots_click_at_random_and_only_on_request(shop):
    _, log, truth = generated(SCENARIOS["ecommerce"], Size(users=1500, items=200, days=6, bots=0.2))
    assert truth.bot.mean() == pytest.approx(0.2, abs=0.05)
    clicks = log.labels["click"][truth.bot]
    assert clicks.mean() == pytest.approx(0.5, abs=0.03)
    assert np.nansum(log.labels["cart"][truth.bot]) == 0
    assert not shop[2].bot.any()


def test_graphs_stay_mostly_within_segments_and_topics():
    users = World.drawn(SCENARIOS["social"], Size(users=1000)).users
    items = World.drawn(SCENARIOS["item_to_item"], Size()).items
    for group, edges in ((users.segment, users.friends), (items.main, items.neighbours)):
        assert 0.8 < (group[edges] == group[:, None]).mean() < 0.92


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'ecommerce'"):
        scenario_named("ecomerce")
    with pytest.raises(ConfigError, match=r"bots=1\.5"):
        Size(bots=1.5)
    with pytest.raises(ConfigError, match="Give more items, or fewer days"):
        generated(SCENARIOS["news"], Size(users=50, items=100, days=120))
