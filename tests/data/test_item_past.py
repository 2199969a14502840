"""How items have done so far, against sums over a plain list of all that happened."""

import numpy as np
import pyarrow.fs as pafs
import pytest

from mtrec_ray.data.features.item_past import answered
from mtrec_ray.data.features.side_features import number_names
from mtrec_ray.data.preparing.item_pass import answer_items, read_answers, send_items
from mtrec_ray.data.requests.ids import bucket_of, fold_of
from mtrec_ray.data.requests.splits import Key, TimeSplit
from tests.data.by_hand import SECOND, behaviours, bucket, config
from tests.data.test_encode import encoded

TASKS = {
    "like": {"label": "like", "feedback_time": "like_time"},
    "stars": {"kind": "regression", "label": "stars", "feedback_delay": 0},
}
HALF = TimeSplit(Key(60 * SECOND), Key(80 * SECOND))


def log(count=120, users=6, items=4):
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        time, like = int(rng.integers(100)) + number / 1000, int(rng.integers(2))  # no two events of a user at one time
        known = time + int(rng.integers(30)) if like else None
        row = {"user": str(rng.integers(users)), "item": "1234"[rng.integers(items)], "time": time, "row_id": number}
        rows.append({**row, "like": like, "like_time": known, "stars": float(rng.integers(1, 6))})
    return rows


def happened(rows):
    """(time, row id, user, item, shown, like value, like weight, stars) of everything that happened, in time."""
    events = []
    for r in rows:
        stars, same = r["stars"], r["like"] and r["like_time"] == r["time"]
        events.append((r["time"], r["row_id"], r["user"], r["item"], 1, float(same), 1.0, stars, 1.0))
        if r["like"] and not same:
            events.append((r["like_time"], r["row_id"], r["user"], r["item"], 0, 1.0, 0.0, 0.0, 0.0))
    return sorted(events)


@pytest.mark.parametrize("lag", [0, 5])
def test_sums_are_those_of_what_happened_to_the_item_before_the_candidate(lag):
    run, rows = config(tasks=TASKS, history__lag=lag), log()
    built = bucket(run, rows, HALF)
    sums, events = answered(built, run), happened(rows)
    for c, row in enumerate(built.candidates.row):
        time, item = built.rows.time[row] / SECOND, built.rows.items[built.rows.item[row]]
        before = [e for e in events if e[3] == item and e[0] + lag < time]
        assert time >= 60 or all(e[0] < 60 for e in before)
        expected = np.array([e[4:9] for e in before]).sum(axis=0) if before else np.zeros(5)
        shown, like, like_weight, stars, stars_weight = expected
        assert sums[c, 1:6].tolist() == [shown, like, stars, like_weight, stars_weight]
        assert np.isnan(sums[c, 0]) if not before else sums[c, 0] == round(before[0][0] * SECOND)
        a, b = 0.0, 0.0
        for event in before:
            earlier = [e for e in events if e[2] == event[2] and e[:2] < event[:2]]
            count, total = sum(e[8] for e in earlier), sum(e[7] for e in earlier)
            a, b = a + event[8] * total / (count + 5), b + event[8] * 5 / (count + 5)
        assert sums[c, [7, 9]] == pytest.approx([a, b])


def test_features_by_their_definition():
    run, rows = config(tasks=TASKS, features__aggregates=["running item"]), log()
    result, _, fitted = encoded(run, rows, HALF)
    sums, built = answered(bucket(run, rows, HALF), run), bucket(run, rows, HALF)
    names = [name for name, _ in number_names(run)]
    kinds = ["shown", "like.mean", "like.residual", "stars.mean", "stars.residual"]
    assert names[-5:] == [f"running item.{kind}" for kind in kinds]
    for c in range(len(built.candidates.row)):
        left_out = fold(built, c, run) if built.train[c] else -1
        prior = fitted.statistics[left_out].prior[1]
        _, shown, _, value, _, weight, _, a, _, b = sums[c]
        expected = [np.log1p(shown)]
        expected += [(value + 5 * prior) / (weight + 5), (value - a - prior * b) / (weight + 5)]
        found = result.numbers[c, [names.index(f"running item.{kind}") for kind in [kinds[0], *kinds[3:]]]]
        np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-5, atol=1e-6)


def fold(built, candidate, run):
    return fold_of(built.rows.users[built.candidates.user[candidate]], run.features.folds)


def test_train_candidates_are_told_of_train_events_only():
    """With a split per user, other users' test rows may be earlier than a train row."""
    run = config(tasks={"like": {"label": "like", "feedback_delay": 0}}, split__by="user")
    rows = [{"user": "1", "item": "1", "time": t, "like": 1} for t in range(10)]
    rows += [{"user": "2", "item": "1", "time": 100 + t, "like": 1} for t in range(10)]
    built = bucket(run, rows, None)
    shown = answered(built, run)[:, 1]
    assert shown[built.candidates.user == 1].tolist() == [*range(8, 16), 18, 19]
    assert shown[built.candidates.user == 0].tolist() == list(range(10))


def test_views_count_as_shown_and_an_item_without_past_has_no_age():
    rows = [
        {"user": "1", "item": "7", "time": 1, "event": "VIEW"},
        {"user": "1", "item": "7", "time": 2, "event": "LIKE", "like": 1},
        {"user": "2", "item": "7", "time": 3, "event": "VIEW"},
        {"user": "2", "item": "8", "time": 4, "event": "VIEW"},
    ]
    run = behaviours()
    sums = answered(bucket(run, rows), run)
    assert sums[1].tolist() == [1 * SECOND, 1, 1, 1, 0, 1]
    assert np.isnan(sums[2, 0])
    assert sums[2, 1:].tolist() == [0, 0, 0, 0, 0]


def test_buckets_of_users_and_items_give_what_one_bucket_gives(tmp_path):
    run, rows, fs = config(tasks=TASKS, data__buckets=3), log(), pafs.LocalFileSystem()
    whole = bucket(run, rows, HALF)
    ids = whole.rows.row_id[whole.candidates.row]
    expected = dict(zip(ids.tolist(), answered(whole, run).tolist(), strict=True))
    parts = [[r for r in rows if bucket_of(r["user"], 3) == b] for b in range(3)]
    built = [bucket(run, part, HALF) for part in parts]
    assert sum(part.rows.num_rows for part in built) == len(rows)
    for number, part in enumerate(built):
        send_items(fs, str(tmp_path), number, part, run)
    for number in range(3):
        answer_items(number, (fs, str(tmp_path), 3))
    for number, part in enumerate(built):
        found = read_answers(fs, str(tmp_path), number, 3)
        assert len(found) == len(part.candidates.row)
        for row_id, sums in zip(part.rows.row_id[part.candidates.row].tolist(), found.tolist(), strict=True):
            np.testing.assert_array_equal(sums, expected[row_id])
