import dataclasses

import numpy as np
import pytest

from mtrec_ray.data.features import tastes
from mtrec_ray.data.features.aggregates import compute, declared, feature_names, parse
from mtrec_ray.data.features.running import Asked, Past
from mtrec_ray.data.features.signals import Signal
from mtrec_ray.data.features.statistics import Statistics
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.errors import ConfigError
from tests.data.by_hand import SECOND, config

ITEMS = {"path": "items.csv", "key": "item", "text": "{words}", "categories": [{"column": "words", "separator": " "}]}
TASKS = {
    "like": {"label": "like", "feedback_delay": 0},
    "buy": {"label": "buy", "feedback_delay": 0},
    "stars": {"kind": "regression", "label": "stars", "feedback_delay": 0},
}
SIGNALS = [Signal(name, name, s, None, name != "stars", False) for s, name in enumerate(TASKS)]
EVENTS, CANDIDATES, VALUES, DIM = 30, 9, 7, 3


@pytest.fixture(name="user")
def _user():
    """Past, candidates and statistics of a user over some hours; `like` and `buy` are known of different events."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.integers(0, 4 * 3600, EVENTS)) * SECOND
    weight = (rng.random((EVENTS, 3)) < [0.9, 0.5, 0.9]).astype(float)
    weight[:, 2] = weight[:, 0]
    value = weight * np.stack([*rng.integers(0, 2, (2, EVENTS)), rng.integers(1, 6, EVENTS)], axis=1)
    words = rng.integers(-1, VALUES, (EVENTS + CANDIDATES, 3))
    item = rng.integers(0, 4, EVENTS + CANDIDATES)
    past = Past(time, item[:EVENTS], item[:EVENTS], value, weight, {"words": words[:EVENTS]}, {})
    asked_time = np.sort(rng.integers(0, 5 * 3600, CANDIDATES)) * SECOND
    end = np.searchsorted(time, asked_time)
    asked = Asked(asked_time, end, item[EVENTS:], item[EVENTS:], 0, {"words": words[EVENTS:]}, {})
    fitted = Statistics(
        prior=np.array([0.5, 0.2, 3.0]),
        spread=np.ones(3),
        shown=np.ones(4),
        count=np.ones((4, 3)),
        mean=rng.random((4, 3)),
        std=np.ones((4, 3)),
        categories={"words": np.zeros((VALUES, 3))},
        factors={},
        scales={},
        value_factors={"words": rng.normal(size=(VALUES, DIM)).astype(np.float32)},
    )
    return past, asked, fitted


def row(fitted, codes):
    """[1, unit mean of the factors of the known values]"""
    vector = sum((fitted.value_factors["words"][code] for code in codes if code > 0), np.zeros(DIM))
    return np.array([1.0, *(vector / max(np.linalg.norm(vector), 1e-12))])


def of_run(declaration="taste words"):
    run = config(data__items=ITEMS, tasks=TASKS, features__aggregates=[declaration])
    return declared(run)


@pytest.mark.parametrize("half_life", [1, 3600, 20 * 86400, None])  # seconds; the events lie thousands apart
def test_it_is_a_ridge_regression_of_the_visible_residuals(user, half_life):
    past, asked, fitted = user
    name = "taste words" if half_life is None else f"taste words fading {half_life}s"
    features = compute(of_run(name), past, asked, fitted, SIGNALS)
    assert 0 < asked.end.min() < asked.end.max()
    for c, end in enumerate(asked.end):
        x = np.array([row(fitted, codes) for codes in past.categories["words"][:end]])
        q = row(fitted, asked.categories["words"][c])
        for s, signal in enumerate(SIGNALS):
            w = past.weight[:end, s]
            r = past.value[:end, s] - w * fitted.mean[past.item[:end], s]
            fade = 1 if half_life is None else 0.5 ** ((asked.time[c] - past.time[:end]) / (half_life * SECOND))
            w, r = fade * w, fade * r
            inverse = np.linalg.inv(x.T @ np.diag(w) @ x + np.diag([20.0, 5.0, 5.0, 5.0]))
            beta = inverse @ x.T @ r
            late = past.time[:end] >= asked.time[c] - 3600 * SECOND
            left = x[late].T @ (r - w * (x @ beta))[late]
            hour = np.linalg.inv(x[late].T @ np.diag(w[late]) @ x[late] + 20 * np.eye(4)) @ left
            expected = {"residual": q @ beta, "hour": q @ hour, "unknown": q @ inverse @ q}
            found = {part: features[f"{name}.{signal.name}.{part}"][c] for part in expected}
            assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("setting", "value"), [("_BLOCK", 4), ("_BLOCK_HALF_LIVES", 0.5)])
def test_blocks_of_events_change_nothing(user, monkeypatch, setting, value):
    fading = of_run("taste words fading 1h")
    whole = compute(fading, *user, SIGNALS)
    monkeypatch.setattr(tastes, setting, value)
    parts = compute(fading, *user, SIGNALS)
    assert all(np.allclose(whole[name], parts[name], rtol=0, atol=1e-12) for name in whole)


def test_what_a_candidate_may_not_know_changes_nothing(user):
    past, asked, fitted = user
    one = dataclasses.replace(
        asked,
        **{name: getattr(asked, name)[:3] for name in ("time", "end", "item", "identity")},
        categories={"words": asked.categories["words"][:3]},
    )
    seen = compute(of_run(), past.first(int(one.end.max())), one, fitted, SIGNALS)
    later = dataclasses.replace(past, value=past.value + (np.arange(EVENTS) >= one.end.max())[:, None])
    for name, values in compute(of_run(), later, one, fitted, SIGNALS).items():
        assert values.tolist() == seen[name].tolist()


def test_names_do_not_depend_on_the_rows_and_a_newcomer_has_no_taste(user):
    past, asked, fitted = user
    names = feature_names(of_run(), SIGNALS, ["words"])
    assert list(compute(of_run(), past, asked, fitted, SIGNALS)) == names
    newcomer = dataclasses.replace(asked, end=np.zeros(CANDIDATES, int))
    features = compute(of_run(), past.first(0), newcomer, fitted, SIGNALS)
    assert list(features) == names
    assert not features["taste words.like.residual"].any()
    assert (features["taste words.like.unknown"] > 0).all()
    assert parse("taste words : like", config(data__items=ITEMS, tasks=TASKS)).tasks == ("like",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taste words fading 20 days", "cannot read|neither user"),
        ("taste words fading soon", "half-life 'soon' is not a duration"),
        ("taste words fading 0d", "half-life must be more than 0, found '0d'"),
        ("user fading 3d", "only `taste` can fade by time"),
        ("taste word fading 3d", "Did you mean 'taste words'"),
    ],
)
def test_a_half_life_that_cannot_be_is_refused(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse(text, config(data__items=ITEMS, tasks=TASKS))
    assert str(error.value).startswith("features.aggregates")


def test_a_taste_of_feedback_that_is_never_known_is_refused():
    tasks = {"like": {"label": "like"}, "buy": {"label": "buy", "feedback_delay": 0}}
    run = config(data__items=ITEMS, tasks=tasks)
    with pytest.raises(ConfigError, match=r"names task 'like', whose feedback is never known: give it tasks.like.feed"):
        parse("taste words fading 2d : like", run)
    assert parse("taste words : buy", run).tasks == ("buy",)
    run = config(data__items=ITEMS, tasks={"like": {"label": "like"}})
    with pytest.raises(ConfigError, match=r"'taste words' is learned from .* e\.g\. tasks\.like\.feedback_delay, or"):
        parse("taste words", run)


def test_a_faded_and_an_unfaded_taste_stand_side_by_side():
    both = ["taste words", "taste words fading 2d : like"]
    run = config(data__items=ITEMS, tasks=TASKS, features__aggregates=both)
    assert [a.name for a in declared(run)] == ["taste words", "taste words fading 2d"]
    assert declared(run)[1].tasks == ("like",)
    assert len(set(feature_names(declared(run), SIGNALS, ["words"]))) == 3 * 3 + 3
    other = config(data__items=ITEMS, tasks=TASKS, features__aggregates=[both[0], both[1].replace("2d", "3d")])
    assert settings(run) != settings(other), "data prepared for one half-life is not taken for another"
