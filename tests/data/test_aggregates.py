import numpy as np
import pytest

from mtrec_ray.data.features.aggregates import Aggregate, compute, declared, feature_names, parse
from mtrec_ray.data.features.item_past import past_width
from mtrec_ray.data.features.running import Asked, Past
from mtrec_ray.data.features.signals import Signal, event_signals, signals
from mtrec_ray.data.features.statistics import Statistics
from mtrec_ray.errors import ConfigError
from tests.data.by_hand import SECOND, behaviours, bucket, config

ITEMS = {
    "path": "items.csv",
    "key": "item",
    "categories": [{"column": "genres", "separator": "|"}],
    "numbers": ["year"],
}
TASKS = {
    "like": {"label": "like", "feedback_delay": 0},
    "stars": {"kind": "regression", "label": "stars", "feedback_delay": 0},
}
LIKE = Signal("like", "like", 0, None, binary=True, per_exposure=False)
STARS = Signal("stars", "stars", 1, None, binary=False, per_exposure=False)
RNG = np.random.default_rng(0)
EVENTS, ITEM_ROWS = 40, 8


def statistics():
    factors = RNG.normal(size=(ITEM_ROWS, 4))
    factors /= np.linalg.norm(factors, axis=1, keepdims=True)
    return Statistics(
        prior=np.array([0.5, 3.0]),
        spread=np.array([0.5, 1.0]),
        shown=np.arange(ITEM_ROWS, dtype=float),
        count=np.ones((ITEM_ROWS, 2)),
        mean=RNG.uniform(size=(ITEM_ROWS, 2)),
        std=RNG.uniform(size=(ITEM_ROWS, 2)),
        categories={"genres": RNG.normal(size=(5, 2))},
        factors={"shown": factors, "like": factors, "stars": factors},
        scales={"year": 3.0},
    )


def past_and_asked():
    item = RNG.integers(0, ITEM_ROWS, EVENTS)
    time = np.sort(RNG.integers(0, 20_000, EVENTS)) * SECOND
    value = np.stack([RNG.integers(0, 2, EVENTS), RNG.integers(1, 6, EVENTS)], axis=1).astype(float)
    weight = (RNG.uniform(size=(EVENTS, 2)) < 0.8).astype(float)
    genres = RNG.integers(-1, 5, (ITEM_ROWS, 3))
    year = np.where(np.arange(ITEM_ROWS) == 3, np.nan, RNG.uniform(1990, 2000, ITEM_ROWS))
    past = Past(time, item, item, value * weight, weight, {"genres": genres[item]}, {"year": year[item]})
    asked_item = RNG.integers(0, ITEM_ROWS, 12)
    asked_time = np.sort(RNG.integers(0, 25_000, 12)) * SECOND
    end = np.searchsorted(time, asked_time, side="left")
    categories, numbers = {"genres": genres[asked_item]}, {"year": year[asked_item]}
    item_past = RNG.uniform(size=(12, past_width(2)))
    return past, Asked(asked_time, end, asked_item, asked_item, 0, categories, numbers, item_past)


@pytest.fixture(name="user")
def _user():
    return *past_and_asked(), statistics()


def pooled(past, end, fitted, weights, base, signal):
    """The pooled residual of one candidate by its definition."""
    residual = past.value[:end, signal] - past.weight[:end, signal] * fitted.mean[past.item[:end], signal]
    return (weights @ residual + base) / (weights @ past.weight[:end, signal] + 1)


def base_of(past, end, fitted, signal):
    residual = past.value[:end, signal] - past.weight[:end, signal] * fitted.mean[past.item[:end], signal]
    return residual.sum() / (past.weight[:end, signal].sum() + 2)


def test_running_features_by_their_definition(user):
    past, asked, fitted = user
    features = compute([Aggregate("user", "", ("like", "stars"))], past, asked, fitted, [LIKE, STARS])
    for c, end in enumerate(asked.end):
        value, weight = past.value[:end], past.weight[:end]
        hour = past.time[:end] >= asked.time[c] - 3600 * SECOND
        base = base_of(past, end, fitted, 0)
        residual = value[:, 0] - weight[:, 0] * fitted.mean[past.item[:end], 0]
        fade = 0.5 ** (np.arange(end)[::-1] / 8)
        expected = {
            "user.events": np.log1p(end),
            "user.hour_events": np.log1p(hour.sum()),
            "user.like.mean": (value[:, 0].sum() + 5 * 0.5) / (weight[:, 0].sum() + 5),
            "user.like.residual": base,
            "user.like.hour": (residual[hour].sum() + 2 * base) / (weight[hour, 0].sum() + 2),
            "user.like.last5": (residual[-5:].sum() + 2 * base) / (weight[-5:, 0].sum() + 2),
            "user.like.fading8": (fade @ residual + base) / (fade @ weight[:, 0] + 1),
        }
        assert {name: features[name][c] for name in expected} == pytest.approx(expected)
        square = ((value[:, 1] ** 2).sum() + 5 * (9 + 1)) / (weight[:, 1].sum() + 5)
        assert features["user.stars.std"][c] ** 2 == pytest.approx(square - features["user.stars.mean"][c] ** 2)


def test_similarity_by_its_definition(user):
    past, asked, fitted = user
    texts = ["user ~ genres", "user ~ year", "user ~ item"]
    run = config(data__items=ITEMS, tasks=TASKS)
    features = compute([parse(text, run) for text in texts], past, asked, fitted, [LIKE, STARS])
    for c, end in enumerate(asked.end):
        events = range(end)
        sets = [set(row[row > 0].tolist()) for row in past.categories["genres"]]
        mine = set(asked.categories["genres"][c].tolist()) - {0, -1}
        cosine = [len(mine & sets[e]) / max(np.sqrt(len(mine) * len(sets[e])), 1e-9) for e in events]
        years = np.abs(asked.numbers["year"][c] - past.numbers["year"][:end])
        factors = fitted.factors["shown"]
        seen = np.maximum(factors[past.item[:end]] @ factors[asked.item[c]], 0) ** 2
        level = np.abs(fitted.mean[asked.item[c], 1] - fitted.mean[past.item[:end], 1])
        kernels = {
            "user ~ genres": np.array(cosine) ** 2,
            "user ~ year": np.nan_to_num(np.exp(-years / 3.0)),
            "user ~ item.seen": seen,
            "user ~ item.level.stars": np.exp(-level / 0.2),
        }
        fade = 0.5 ** (np.arange(end)[::-1] / 20)
        base = base_of(past, end, fitted, 1)
        for name, weights in kernels.items():
            assert features[f"{name}.weight"][c] == pytest.approx(np.log1p(weights.sum()), rel=1e-5, abs=1e-6)
            residual, fading = (pooled(past, end, fitted, w, base, 1) for w in (weights, weights * fade))
            assert features[f"{name}.stars.residual"][c] == pytest.approx(residual, rel=1e-4, abs=1e-5)
            assert features[f"{name}.stars.fading"][c] == pytest.approx(fading, rel=1e-4, abs=1e-5)


def test_the_same_item_and_shared_categories_by_their_definition(user):
    past, asked, fitted = user
    run = config(data__items=ITEMS, tasks=TASKS)
    features = compute(
        [parse("user * item : like", run), parse("user * genres", run)], past, asked, fitted, [LIKE, STARS]
    )
    assert not [name for name in features if name.startswith("user * item.stars")]
    for c, end in enumerate(asked.end):
        same = past.identity[:end] == asked.identity[c]
        assert features["user * item.weight"][c] == pytest.approx(np.log1p(same.sum()), rel=1e-6)
        base = base_of(past, end, fitted, 0)
        assert features["user * item.like.residual"][c] == pytest.approx(
            pooled(past, end, fitted, same.astype(float), base, 0), rel=1e-4, abs=1e-6
        )
        gap = features["user * item.gap"][c]
        if same.any():
            assert gap == pytest.approx(np.log1p((asked.time[c] - past.time[:end][same].max()) / SECOND))
        else:
            assert np.isnan(gap)


def test_names_are_those_of_the_features_and_auto_takes_what_there_is(user):
    run = config(data__items=ITEMS, tasks=TASKS)
    auto = declared(run)
    assert [a.name for a in auto] == [
        "user",
        "item",
        "running item",
        "genres",
        "user ~ item",
        "user ~ genres",
        "user ~ year",
    ]
    which = signals(run)
    assert which == [LIKE, STARS]
    names = feature_names(auto, which, ["genres"])
    assert list(compute(auto, *user, which)) == names
    assert len(set(names)) == len(names)
    assert [a.name for a in declared(behaviours())] == ["user", "item", "running item", "user ~ item", "user * item"]
    assert declared(config(features__aggregates=[])) == []


def test_a_user_without_events_has_neutral_features(user):
    past, asked, fitted = user
    run = config(data__items=ITEMS, tasks=TASKS, features__aggregates=["user", "user ~ genres", "user * item"])
    first = Asked(asked.time[:1], np.zeros(1, int), asked.item[:1], asked.identity[:1], 0, {}, {})
    first = Asked(**{**vars(first), "categories": {"genres": asked.categories["genres"][:1]}})
    features = compute(declared(run), past.first(0), first, fitted, [LIKE, STARS])
    assert features["user.like.mean"][0] == pytest.approx(0.5)
    assert features["user ~ genres.like.residual"][0] == 0
    assert np.isnan(features["user * item.gap"][0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user ** item", "cannot read 'user \\*\\* item'"),
        ("users", "'users' is neither user, item, running item nor a category. Did you mean 'user'"),
        ("item ~ genres", "the left side of ~ must be 'user', found 'item'"),
        ("user ~ genre", "nothing is called 'genre' here. Did you mean 'genres'"),
        ("user * year", "nothing is called 'year' here"),
        ("running genres", "'running genres' is neither user, item, running item nor a category"),
        ("user : likes", "names no task 'likes'. Did you mean 'like'"),
    ],
)
def test_declarations_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(ConfigError, match=r"features.aggregates\[0\]: .*" + message):
        declared(config(data__items=ITEMS, features__aggregates=[text]))


def test_a_rate_counts_exposures_where_only_positives_have_a_time():
    rows = [
        {"user": "1", "item": "7", "time": 1, "event": "VIEW"},
        {"user": "1", "item": "7", "time": 2, "event": "LIKE", "like": 1},
        {"user": "1", "item": "8", "time": 3, "event": "VIEW"},
    ]
    run = behaviours()
    value, weight = event_signals(bucket(run, rows).events, signals(run))
    assert value[:, 0].tolist() == [0, 1, 0]
    assert weight[:, 0].tolist() == [1, 0, 1]


def test_a_delayed_label_counts_from_when_it_is_known_and_one_without_time_never():
    rows = [{"user": "1", "item": "7", "time": 1, "like": 0, "like_time": 5}]
    run = config(tasks={"like": {"label": "like", "feedback_delay": 4}, "buy": {"label": "buy"}})
    which = signals(run)
    assert [signal.name for signal in which] == ["like"]
    value, weight = event_signals(bucket(run, rows).events, which)
    assert weight[:, 0].tolist() == [0, 1]
    assert value[:, 0].tolist() == [0, 0]


def test_multiclass_tasks_have_a_signal_per_class():
    run = config(tasks={"kind": {"kind": "multiclass", "classes": 3, "label": "kind", "feedback_delay": 0}})
    rows = [{"user": "1", "item": "7", "time": t, "kind": kind} for t, kind in enumerate([2, 0, None])]
    value, weight = event_signals(bucket(run, rows).events, signals(run))
    assert value.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert weight.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
