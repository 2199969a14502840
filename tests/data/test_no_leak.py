"""Nothing at or after a candidate's time changes what the model is given for it, and nothing after the train period
changes what is fitted or trained on."""

import copy

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.features.item_past import answered
from mtrec_ray.data.fitting.collect import collect
from mtrec_ray.data.fitting.fit import fit
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.fitting.tokenizer import make_tokenizer
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.encode import encode
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.requests.splits import Key, TimeSplit
from tests.data.by_hand import behaviours, bucket, config

pytestmark = pytest.mark.slow

TABLES = Tables(None, None)
TASKS = {
    "like": {"label": "like", "feedback_delay": 0},
    "buy": {"label": "buy", "feedback_time": "buy_time"},
    "stars": {"kind": "regression", "label": "stars", "feedback_delay": 0},
}
AGGREGATES = ["user", "item", "running item", "place", "user * item", "user * place"]
AGGREGATES += ["user ~ item", "user ~ place", "user ~ price"]
SETTINGS = {
    "data__categories": ["place"],
    "data__numbers": ["price"],
    "features__aggregates": AGGREGATES,
    "history__max_events": 6,
    "backbone": {"name": "nano", "vocab_size": 300},
}
IMPRESSIONS = config(tasks=TASKS, **SETTINGS)
BEHAVIOURS = behaviours(**SETTINGS)
NOBODY_VALID = TimeSplit(Key(10**18), Key(10**18))


def impression(user, time):
    return st.fixed_dictionaries(
        {
            "user": user,
            "item": st.sampled_from("12345"),
            "time": time,
            "like": st.sampled_from([0, 1]),
            "buy": st.sampled_from([0, 1, None]),
            "buy_time": st.integers(0, 60) | st.none(),
            "stars": st.sampled_from([1.0, 4.5, 5.0]),
            "place": st.sampled_from("abc"),
            "price": st.floats(0, 9),
        }
    )


def behaviour(user, time):
    like = st.fixed_dictionaries({"event": st.just("LIKE"), "like": st.just(1)})
    view = st.fixed_dictionaries({"event": st.just("VIEW")})
    common = {"user": user, "item": st.sampled_from("12345"), "time": time}
    common |= {"place": st.sampled_from("abc"), "price": st.floats(0, 9)}
    return st.tuples(st.fixed_dictionaries(common), like | view).map(lambda parts: {**parts[0], **parts[1]})


def world(run):
    """What was fitted, and an encoder of texts, from other users; the same for all that is compared."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "user": str(100 + rng.integers(9)),
            "item": "12345"[rng.integers(5)],
            "time": float(t),
            "place": "abc"[rng.integers(3)],
            "price": float(rng.uniform(0, 9)),
            "event": ["VIEW", "LIKE"][rng.integers(2)],
            **{task: int(rng.integers(2)) for task in run.tasks},
            "buy_time": float(t),
        }
        for t in range(90)
    ]
    for row in rows:
        if row["event"] == "VIEW" and run is BEHAVIOURS:
            del row["like"]
    collected = collect(bucket(run, rows, NOBODY_VALID), run, TABLES, 10**6)
    fitted = fit(Gathered.of([collected]), run, TABLES)
    return fitted, TextEncoder(make_tokenizer(run, TABLES, collected.event_items, collected.words))


WORLDS = {"impressions": (IMPRESSIONS, world(IMPRESSIONS)), "behaviours": (BEHAVIOURS, world(BEHAVIOURS))}


def views(run, rows, fixed, boundaries=NOBODY_VALID):
    """What the model is given for each candidate, without its labels: row id -> everything it can reach."""
    fitted, encoder = fixed
    built = bucket(run, rows, boundaries)
    encoded = encode(built, run, TABLES, fitted, encoder, shared_end=False, item_past=answered(built, run))
    found = {}
    for table in encoded.requests.values():
        for request in table.to_pylist():
            tokens = [0, *request["candidate_ends"]]
            tasks, width, features = len(run.tasks), len(request["item"]), np.array(request["numbers"], np.float32)
            for c, row_id in enumerate(request["row_id"]):
                seen = request["candidate_events"][c]
                end = [0, *request["history_ends"]][seen]
                found[row_id] = (
                    request["history_ids"][:end],
                    request["event_item"][:seen],
                    request["event_time"][:seen],
                    np.nan_to_num(request["event_feedback"][: seen * tasks], nan=-1).tolist(),
                    request["candidate_ids"][tokens[c] : tokens[c + 1]],
                    request["categories"][c],
                    np.nan_to_num(features.reshape(width, -1)[c], nan=-99),
                )
    return found


def same(ours, theirs):
    for left, right in zip(ours[:-1], theirs[:-1], strict=True):
        assert left == right
    # a matrix product of other length may round its last bit differently
    np.testing.assert_allclose(ours[-1], theirs[-1], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("layout", WORLDS)
@pytest.mark.parametrize("lag", [0, 7])
@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_no_candidate_is_given_anything_from_its_time_or_later(layout, lag, data):
    run, fixed = WORLDS[layout]
    run = Run.model_validate({**run.model_dump(), "history": {**run.history.model_dump(), "lag": lag}})
    row = impression if layout == "impressions" else behaviour
    users, times = st.sampled_from(["1", "2"]), st.integers(0, 40)
    rows = data.draw(st.lists(row(users, times), min_size=1, max_size=14))
    cut = data.draw(st.integers(0, 40))
    noise = data.draw(st.lists(row(users, st.integers(cut, 60)), max_size=6))
    rows = [{**_feedback_after(r), "row_id": number} for number, r in enumerate(rows)]
    changed = [_blurred(r, cut - lag, data) for r in rows if r["time"] <= cut]
    changed += [{**_feedback_after(r), "row_id": 1000 + number} for number, r in enumerate(noise)]
    ours, theirs = views(run, rows, fixed), views(run, changed, fixed)
    for row_id in ours.keys() & {r["row_id"] for r in changed if r["time"] <= cut} & theirs.keys():
        same(ours[row_id], theirs[row_id])


def _feedback_after(row):
    known = row.get("buy_time")
    return row if known is None else {**row, "buy_time": max(known, row["time"])}


def _blurred(row, known_before, data):
    """The row with all labels changed that are not known before a time."""
    row = copy.copy(row)
    for task in ("like", "stars", "buy"):
        known = row.get(f"{task}_time", row["time"])
        if task in row and row[task] is not None and "event" not in row and (known is None or known >= known_before):
            row[task] = data.draw(st.sampled_from([0, 1]))
            if task == "buy":
                row["buy_time"] = data.draw(st.integers(max(known_before, 0), 90) | st.none())
    return row


def test_feedback_is_seen_from_its_own_time_on():
    """The test above would also pass if nothing were ever seen."""
    rows = [
        {"user": "1", "item": "1", "time": 10, "like": 1, "buy": 1, "buy_time": 20, "stars": 5.0},
        {"user": "1", "item": "2", "time": 15, "like": 0, "buy": None, "stars": 1.0},
        {"user": "1", "item": "3", "time": 21, "like": 0, "buy": None, "stars": 1.0},
    ]
    run, fixed = WORLDS["impressions"]
    ours = views(run, rows, fixed)
    without = views(run, [{**rows[0], "buy": 0, "buy_time": None}, *rows[1:]], fixed)
    same(ours[1], without[1])
    assert ours[2][0] != without[2][0]
    assert not np.allclose(ours[2][-1], without[2][-1])


@pytest.mark.parametrize("layout", WORLDS)
def test_a_row_that_is_served_alone_is_given_what_it_is_prepared_with(layout):
    """The log as it stands when the row is asked about: what happened before, and the row itself."""
    rng, (run, fixed) = np.random.default_rng(5), WORLDS[layout]
    rows = [
        {
            "row_id": number,
            "user": "12"[rng.integers(2)],
            "item": "12345"[rng.integers(5)],
            "time": int(rng.integers(40)),
            "place": "abc"[rng.integers(3)],
            "price": float(rng.uniform(0, 9)),
            "stars": 4.5,
            **({"event": "VIEW"} if layout == "behaviours" and number % 3 else {"event": "LIKE", "like": number % 2}),
        }
        for number in range(40)
    ]
    whole = views(run, rows, fixed)
    assert len(whole) > 5
    for number, expected in whole.items():
        before = [row for row in rows if row["time"] < rows[number]["time"] or row["row_id"] == number]
        same(views(run, before, fixed)[number], expected)


def log_text(rows):
    return "user,item,time,like,stars,place\n" + "".join(
        f"{r['user']},{r['item']},{r['time']},{r['like']},{r['stars']},{r['place']}\n" for r in rows
    )


@pytest.mark.parametrize("by", ["time", "user"])
def test_noise_after_the_train_period_changes_nothing_that_is_fitted_or_trained_on(tmp_path, by):
    rng = np.random.default_rng(3)
    rows = [
        {
            "user": int(rng.integers(30)),
            "item": int(rng.integers(40)),
            "time": 10**9 + int(rng.integers(300)) * 60,
            "like": int(rng.integers(2)),
            "stars": int(rng.integers(1, 6)),
            "place": "abcdef"[rng.integers(6)],
        }
        for _ in range(700)
    ]
    first = _prepare(tmp_path / "a", rows, by)
    train = {row_id for r in _requests(first, "train") for row_id in r["row_id"]}
    numbers = {row_id & ((1 << ROW_BITS) - 1) for row_id in train}
    noise = [r if number + 1 in numbers else _noise(r, rng, by) for number, r in enumerate(rows)]
    assert noise != rows
    second = _prepare(tmp_path / "b", noise, by)
    assert {row_id for r in _requests(second, "train") for row_id in r["row_id"]} == train
    for pattern in ("tokenizer/*", "fitted/*"):
        ours, theirs = (sorted((tmp_path / name / "out").glob(f"*/{pattern}")) for name in "ab")
        assert [p.name for p in ours] == [p.name for p in theirs] != []
        for left, right in zip(ours, theirs, strict=True):
            assert left.read_bytes() == right.read_bytes(), left.name
    assert first.manifest.shards["train"] == second.manifest.shards["train"]  # with the digests of what they hold
    assert first.manifest.documents == second.manifest.documents != []
    assert first.manifest.numbers == second.manifest.numbers
    assert first.manifest.categories == second.manifest.categories
    for ours, theirs in zip(first.manifest.tasks, second.manifest.tasks, strict=True):
        assert (ours.mean, ours.std, ours.frequencies) == (theirs.mean, theirs.std, theirs.frequencies)
    assert [r["numbers"] for r in _requests(first, "test")] != [r["numbers"] for r in _requests(second, "test")]


def _noise(row, rng, by):
    user = row["user"] if by == "user" else int(rng.integers(50))
    later = row["time"] if by == "user" else row["time"] + 60
    return {"user": user, "item": 999, "time": later, "like": 1 - row["like"], "stars": 1, "place": "zz"}


def _requests(prepared: Prepared, split):
    import pyarrow.parquet as pq

    return [r for s in prepared.manifest.shards[split] for r in pq.read_table(f"{prepared.path}/{s.path}").to_pylist()]


def _prepare(folder, rows, by):
    folder.mkdir()
    (folder / "log.csv").write_text(log_text(rows))
    run = config(
        data__logs=str(folder / "log.csv"),
        data__prepared_dir=str(folder / "out"),
        data__categories=["place"],
        data__buckets=2,
        tasks={k: v for k, v in TASKS.items() if k != "buy"},
        features__aggregates="auto",
        backbone={"name": "nano", "vocab_size": 300},
        split__by=by,
    )
    return prepare(run, serial_tasks)


def test_a_train_row_is_given_no_statistics_that_its_own_label_entered():
    run = config(tasks={"like": TASKS["like"]}, **{**SETTINGS, "backbone": {"name": "none"}})
    rng = np.random.default_rng(4)
    rows = [
        {
            "user": str(number % 10),
            "item": "12345"[rng.integers(5)],
            "time": float(number),
            "like": int(rng.integers(2)),
            "place": "abc"[rng.integers(3)],
            "price": 1.0,
        }
        for number in range(100)
    ]
    last = len(rows) - 1
    flipped = [*rows[:last], {**rows[last], "like": 1 - rows[last]["like"]}]

    def numbers(rows, boundaries):
        built = bucket(run, rows, boundaries)
        fitted = fit(Gathered.of([collect(built, run, TABLES, 10**6)]), run, TABLES)
        past = answered(built, run)
        tables = encode(built, run, TABLES, fitted, None, shared_end=False, item_past=past).requests.values()
        found = {}
        for request in (request for table in tables for request in table.to_pylist()):
            features = np.reshape(request["numbers"], (len(request["row_id"]), -1))
            found |= dict(zip(request["row_id"], np.nan_to_num(features, nan=-99), strict=True))
        return found

    ours, theirs = numbers(rows, NOBODY_VALID), numbers(flipped, NOBODY_VALID)
    np.testing.assert_array_equal(ours[last], theirs[last])
    assert any(not np.array_equal(ours[row_id], theirs[row_id]) for row_id in ours)
