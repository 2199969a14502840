import dataclasses

import numpy as np
import pytest
from scipy.special import expit

from mtrec_ray.data.features import value_factors as module
from mtrec_ray.data.features.factors import Interactions
from mtrec_ray.data.features.value_factors import SignalStatistics, value_factors

HALF = SignalStatistics(mean=np.array([[0.5]]), spread=np.array([0.5]), binary=np.array([True]))
FITS = [*((fold, HALF) for fold in range(5)), (None, HALF)]


def planted():
    """Each item has one of the values 1 to 40, of which half of the users like 1 to 20, and one of 41 to 44."""
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(300), 40)
    topic, noise = rng.integers(1, 41, len(user)), rng.integers(41, 45, len(user))
    likes = (topic <= 20) == (user % 2 == 0)
    label = np.where(rng.random(len(user)) < 0.1, np.nan, rng.random(len(user)) < 0.2 + 0.6 * likes)
    codes = {"words": np.stack([topic, noise], axis=1)}
    return Interactions(user, np.zeros(len(user), int), user % 5, label[:, None], codes)


def cosines(factors):
    length = np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-12)
    return (factors / length) @ (factors / length).T


def test_values_that_the_same_users_like_have_like_factors():
    for factors in value_factors(planted(), "words", 45, FITS):
        length, cosine = np.linalg.norm(factors, axis=1), cosines(factors)
        assert cosine[1:21, 1:21].min() > 0.9
        assert cosine[21:41, 21:41].min() > 0.9
        assert cosine[1:21, 21:41].max() < -0.9
        assert length[41:].max() < 0.3 * length[1:41].min()
        assert length[0] < 1e-9


def test_where_nobody_likes_anything_in_particular_there_are_no_factors():
    rows = planted()
    drawn = np.random.default_rng(2).random(rows.values.shape)
    rows = dataclasses.replace(rows, values=(drawn < 0.5).astype(float))
    assert not any(factors.any() for factors in value_factors(rows, "words", 45, FITS))


def test_the_fold_that_is_left_out_has_no_part_in_the_factors():
    rows = planted()
    drawn = np.random.default_rng(3).integers(0, 2, rows.values.shape)
    changed = dataclasses.replace(rows, values=np.where((rows.fold == 1)[:, None], drawn, rows.values))
    before, after = (value_factors(r, "words", 45, FITS) for r in (rows, changed))
    assert np.array_equal(before[1], after[1])
    assert not any(np.array_equal(before[k], after[k]) for k in (0, 2, 3, 4, 5))


def titled(users, topics=6, words=8, seed=0):
    """200 items with two words of a topic, one of another and two that mean nothing; each user likes topics."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, topics, 200)
    own = 1 + topic[:, None] * words + np.argsort(rng.random((200, words)), axis=1)[:, :2]
    second = rng.integers(0, topics, 200)
    other = 1 + second * words + rng.integers(0, words, 200)
    noise = 1 + topics * words + rng.integers(0, 10, (200, 2))
    user, item = np.repeat(np.arange(users), 60), rng.integers(0, 200, users * 60)
    taste, level, base = rng.normal(0, 1.8, (users, topics)), rng.normal(0, 1, users), rng.normal(-1, 1, 200)
    chance = expit(base[item] + level[user] + 0.7 * taste[user, topic[item]] + 0.3 * taste[user, second[item]])
    label = (rng.random(len(user)) < chance).astype(float)
    mean = np.array([label[item == i].mean() for i in range(200)])
    rows = Interactions(
        user, item, user % 5, label[:, None], {"words": np.concatenate([own, other[:, None], noise], axis=1)[item]}
    )
    signals = SignalStatistics(mean[:, None], np.array([label.std()]), np.array([True]))
    size = 1 + topics * words + 10
    return rows, size, [*((fold, signals) for fold in range(5)), (None, signals)], (topics, words)


def recovered(factors, topics, words):
    """Mean cosine of words of the same topic, and the root of the mean square of those of others."""
    cosine = cosines(factors[1 : 1 + topics * words])
    same = np.kron(np.eye(topics), np.ones((words, words))).astype(bool)
    return cosine[same].mean(), np.sqrt((cosine[~same] ** 2).mean())


def test_em_finds_topics_that_the_first_factors_blur():
    rows, size, fits, shape = titled(users=1000)
    signals = fits[-1][1]
    fitted = module._fitted(rows, np.ones(len(rows.user), bool), "words", size, signals)
    first, last = recovered(fitted.factors[0], *shape), recovered(fitted.factors[-1], *shape)
    assert last[0] > first[0] + 0.05
    assert last[1] < first[1] + 0.03


@pytest.mark.parametrize("users", [60, 400])
def test_what_is_chosen_is_nearer_to_the_topics_on_few_rows_and_on_many(users):
    rows, size, fits, shape = titled(users)
    fitted = module._fitted(rows, np.ones(len(rows.user), bool), "words", size, fits[-1][1])
    chosen = recovered(value_factors(rows, "words", size, fits)[-1], *shape)
    assert chosen[0] > max(recovered(factors, *shape)[0] for factors in fitted.factors) + 0.01


def test_what_is_chosen_predicts_held_out_users_best_and_beats_the_first_factors():
    rows, size, fits, _ = titled(users=60, seed=3)
    signals = fits[-1][1]
    chosen = value_factors(rows, "words", size, fits)
    plain = [module._fitted(rows, rows.fold != fold, "words", size, signals).moved(0, 0.0) for fold in range(5)]
    held = [module._Held.of(rows.first(rows.fold == fold, len(rows.user)), "words", signals) for fold in range(5)]
    losses = [sum(held[fold].loss(factors[fold]) for fold in range(5)) for factors in (chosen, plain)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("binary", [True, False])
def test_one_iteration_is_the_written_em_step(binary):
    rng = np.random.default_rng(5)
    user, kind = np.repeat(np.arange(6), 7), rng.integers(0, 5, 42)
    codes = np.array([[1, 2], [2, 3], [3, -1], [1, 1], [0, 3]])
    labels = np.where(rng.random(42) < 0.2, np.nan, rng.integers(0, 2, 42) if binary else rng.normal(3, 2, 42))
    rows = Interactions(user, kind, user % 2, labels[:, None], {"words": codes[kind]})
    signals = SignalStatistics(rng.uniform(0.2, 0.8, (5, 1)), np.array([2.0]), np.array([binary]))
    likings = module._Likings.of(rows, kind, 5, signals, 0)
    words = module._matrix(codes, 4)
    start = rng.normal(size=(4, 2))
    found = module._next(start, [likings], words)

    # by hand, a user and a row at a time
    x = np.concatenate([words @ start, np.full((5, 1), module._LEVEL)], axis=1)
    left, right = np.eye(8) * module._VALUE_WEIGHT, np.zeros(8)
    for u in range(6):
        mine = [n for n in range(42) if user[n] == u and not np.isnan(labels[n])]
        mean = signals.mean[kind[mine], 0]
        r = (labels[mine] - mean) / (1 if binary else 4)
        v = mean * (1 - mean) if binary else np.full(len(mine), 0.25)
        spread = np.linalg.inv(np.eye(3) + sum(vn * np.outer(x[k], x[k]) for vn, k in zip(v, kind[mine], strict=True)))
        taste = spread @ sum(rn * x[k] for rn, k in zip(r, kind[mine], strict=True))
        second = spread + np.outer(taste, taste)
        for rn, vn, k in zip(r, v, kind[mine], strict=True):
            w = words[k].toarray()[0]
            left += vn * np.kron(np.outer(w, w), second[:2, :2])
            right += np.kron(w, rn * taste[:2] - vn * module._LEVEL * second[:2, 2])
    assert found == pytest.approx(np.linalg.solve(left, right).reshape(4, 2), rel=1e-3, abs=1e-4)


def test_neighbours_are_the_values_of_the_same_items_the_rarer_the_more():
    words = module._matrix(np.array([[1, 2, 4], [1, 3, 4], [2, 4, 0], [5, -1, -1]]), 6)
    near = module._neighbours(words).toarray()
    assert near[1] == pytest.approx(np.array([0, 0, 1 / 2, 1, 2 / 3, 0]) / (1 / 2 + 1 + 2 / 3))
    assert not near[5].any()
    assert not near[0].any()
    moved = module._Fitted([np.arange(6.0)[:, None]], module._neighbours(words)).moved(0, 1.0)
    assert moved[[0, 5], 0].tolist() == [0, 5], "what has no neighbours stays"


def test_blocks_of_users_change_nothing(monkeypatch):
    rows, size, fits, _ = titled(users=30)
    whole = value_factors(rows, "words", size, fits)
    monkeypatch.setattr(module, "_USERS", 7)
    parts = value_factors(rows, "words", size, fits)
    assert all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(whole, parts, strict=True))


def test_of_too_many_rows_whole_users_are_taken():
    rows = planted()
    some = rows.first(rows.fold != 0, 1000)
    assert some.user.tolist() == [u for u in range(1, 32) if u % 5 for _ in range(40)][: len(some.user)]
    assert 960 <= len(some.user) <= 1000
    assert set(rows.first(rows.user == 7, 3).user) == {7}, "one user at least"


def test_numbers_count_as_coins_whatever_their_unit():
    rows, size, fits, _ = titled(users=40)
    signals = fits[-1][1]
    plain = SignalStatistics(signals.mean, signals.spread, np.array([False]))
    scaled = SignalStatistics(1000 * signals.mean, 1000 * signals.spread, np.array([False]))
    larger = dataclasses.replace(rows, values=1000 * rows.values)
    a = value_factors(rows, "words", size, [(0, plain), (None, plain)])
    b = value_factors(larger, "words", size, [(0, scaled), (None, scaled)])
    assert np.allclose(a[-1], b[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("users", [[], [3], [3, 4]])
def test_folds_without_users_and_signals_without_labels_have_no_say(users):
    rows = planted()
    some = rows.first(np.isin(rows.user, users), len(rows.user))
    unlabelled = dataclasses.replace(some, values=np.concatenate([some.values, np.full_like(some.values, np.nan)], 1))
    both = SignalStatistics(mean=np.array([[0.5, 0.5]]), spread=np.array([0.5, 0.0]), binary=np.array([True, False]))
    found = value_factors(unlabelled, "words", 45, [*((fold, both) for fold in range(5)), (None, both)])
    assert [len(factors) for factors in found] == [45] * 6
    assert all(np.isfinite(factors).all() for factors in found)
