from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.config import History
from mtrec_ray.data.requests.requests import find_candidates, find_events, history_ends, without_exposures
from mtrec_ray.data.requests.rows import from_table
from mtrec_ray.data.requests.splits import Key, TimeSplit
from mtrec_ray.data.requests.windows import Windows, anchor, windows
from tests.data.by_hand import SECOND, behaviours, bucket, config, table


def row(user, item, time, like=None, **more):
    return {"user": str(user), "item": str(item), "time": time, "like": like, **more}


def build(run, rows):
    built = from_table(table(run, rows), run, integer_items=True)
    return built, find_candidates(built, run), find_events(built, run)


def test_rows_are_sorted_by_user_time_and_item_as_integers():
    rows, candidates, _ = build(config(), [row(1, 10, 5), row(1, 9, 5), row(2, 3, 1), row(1, 30, 4), row(10, 1, 0)])
    assert [rows.items[i] for i in rows.item] == ["30", "9", "10", "1", "3"]  # users 1, 10, 2 as strings
    assert rows.starts.tolist() == [0, 3, 4, 5]
    assert candidates.starts.tolist() == [0, 3, 4, 5]


def test_items_that_are_not_all_integers_are_ordered_as_strings():
    run = config()
    rows = from_table(table(run, [row(1, 9, 5), row(1, 10, 5)]), run, integer_items=False)
    assert [rows.items[i] for i in rows.item] == ["10", "9"]


def test_feedback_at_its_rows_time_is_one_event_with_it_and_later_feedback_is_another():
    run = config(tasks={"like": {"label": "like", "feedback_time": "t"}, "buy": {"label": "buy", "feedback_time": "t"}})
    rows = [
        row(1, 7, 10, 1, buy=1, buy_time=30),
        row(1, 8, 20, 0, like_time=25, buy=0, buy_time=25),
        row(1, 9, 22, 1, like_time=None, buy=None),
    ]
    _, _, events = build(run, rows)
    assert (events.time // SECOND).tolist() == [10, 20, 22, 25, 30]
    assert events.row.tolist() == [0, 1, 2, 1, 0]
    assert events.exposure.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(
        events.feedback, [[1, np.nan], [np.nan, np.nan], [np.nan, np.nan], [0, 0], [np.nan, 1]]
    )


def test_a_history_ends_strictly_before_the_candidate_and_before_the_lag():
    rows = [row(1, 1, 10, 1), row(1, 2, 20, 1), row(1, 3, 20, 1), row(1, 4, 21, 1), row(2, 1, 30, 1)]
    _, candidates, events = build(config(), rows)
    assert history_ends(candidates, events, 0).tolist() == [0, 1, 1, 3, 0]
    assert history_ends(candidates, events, 1 * SECOND).tolist() == [0, 1, 1, 1, 0]
    assert history_ends(candidates, events, 10 * SECOND).tolist() == [0, 0, 0, 1, 0]


def test_rows_shown_together_know_what_was_known_at_the_first_of_them():
    run = config(data__columns__request="request")
    rows = [
        row(1, 1, 10, 1, request="a"),
        row(1, 2, 12, 1, request="a"),
        row(1, 3, 13, 1),
        row(2, 1, 9, 1, request="a"),
    ]
    _, candidates, events = build(run, rows)
    assert (candidates.asof // SECOND).tolist() == [10, 10, 13, 9]
    assert history_ends(candidates, events, 0).tolist() == [0, 0, 2, 0]


def test_behaviours_the_first_view_is_the_candidate_and_the_label_is_whether_it_ever_happened():
    run = behaviours()
    rows = [
        row(1, 7, 10, event="VIEW"),
        row(1, 7, 30, event="VIEW"),
        row(1, 8, 5, 1, event="LIKE"),
        row(1, 8, 11, event="VIEW"),
        row(1, 7, 50, 1, event="LIKE"),
        row(1, 9, 12, event="VIEW"),
        row(2, 9, 60, 1, event="LIKE"),
    ]
    built = bucket(run, rows)
    chosen = built.candidates.row
    assert [built.rows.items[i] for i in built.rows.item[chosen]] == ["7", "8", "9"]
    assert built.labels[:, 0].tolist() == [1, 1, 0]
    assert built.ends.tolist() == [1, 2, 3]
    assert np.isnan(built.events.feedback[:, 0]).tolist() == [False, True, True, True, True, False, False]


def test_behaviours_with_a_value_are_observed_only_where_the_event_happened():
    run = behaviours(tasks={"stars": {"kind": "regression", "event": "RATE", "value": "stars"}})
    rows = [row(1, 7, 1, event="VIEW"), row(1, 8, 2, event="VIEW"), row(1, 7, 3, stars=4.5, event="RATE")]
    np.testing.assert_array_equal(bucket(run, rows).labels[:, 0], [4.5, np.nan])


def test_what_happens_after_the_train_period_is_no_train_label():
    rows = [row(1, 7, 10, event="VIEW"), row(1, 7, 30, 1, event="LIKE"), row(1, 8, 20, event="VIEW")]
    built = bucket(behaviours(), rows, TimeSplit(Key(20 * SECOND), Key(40 * SECOND)))
    assert built.split.tolist() == [0, 1]
    assert built.labels[:, 0].tolist() == [0, 0]
    assert built.train_events.tolist() == [True, False, False]
    late = [row(1, 7, 10, 1, like_time=25), row(1, 8, 20, 1)]
    labels = bucket(config(), late, TimeSplit(Key(20 * SECOND), Key(40 * SECOND))).labels[:, 0]
    np.testing.assert_array_equal(labels, [np.nan, 1])


def test_without_exposures_only_feedback_is_history():
    _, _, events = build(config(), [row(1, 1, 1), row(1, 2, 2, 1), row(2, 1, 3), row(2, 2, 4, 0)])
    kept = without_exposures(events)
    assert kept.row.tolist() == [1, 3]
    assert kept.starts.tolist() == [0, 1, 2]


class Request(NamedTuple):
    first: int
    stop: int
    candidates: np.ndarray
    seen: np.ndarray


def split_up(found: Windows) -> list[Request]:
    offsets = found.candidates.offsets
    return [
        Request(int(first), int(stop), found.candidates.values[a:b], found.seen[a:b])
        for first, stop, a, b in zip(found.first, found.stop, offsets, offsets[1:], strict=False)
    ]


def of_one_user(ends: np.ndarray, history: History, shared_end: bool) -> list[Request]:
    return split_up(windows(np.zeros(len(ends), dtype=np.int64), ends, history, shared_end))


@given(
    st.lists(st.integers(0, 200), max_size=60).map(sorted),
    st.integers(2, 40),
    st.integers(1, 9),
)
def test_every_candidate_sees_at_least_half_a_window(ends, max_events, max_candidates):
    ends = np.array(ends, dtype=np.int64)
    half = max_events // 2
    requests = of_one_user(ends, History(max_events=max_events, max_candidates=max_candidates), shared_end=False)
    assert sorted(c for request in requests for c in request.candidates.tolist()) == list(range(len(ends)))
    for request in requests:
        mine = ends[request.candidates]
        assert len(mine) <= max_candidates
        assert request.first == anchor(mine, max_events)[0]
        assert (anchor(mine, max_events) == request.first).all()
        assert (mine - request.first >= np.minimum(mine, half)).all()
        assert request.stop == mine.max()
        assert (request.seen == mine - request.first).all()
        assert request.stop - request.first < 2 * half


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(2, 20))
def test_shared_end_requests_have_one_end_and_the_events_before_it(ends, max_events):
    ends = np.array(ends, dtype=np.int64)
    requests = of_one_user(ends, History(max_events=max_events), shared_end=True)
    assert len(requests) == len(set(ends.tolist()))
    for request in requests:
        assert set(ends[request.candidates].tolist()) == {request.stop}
        assert request.first == max(0, request.stop - max_events)
        assert set(request.seen.tolist()) == {request.stop - request.first}


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9), st.booleans())
def test_without_history_requests_hold_no_events_whatever_the_ends(ends, max_candidates, shared_end):
    settings = History(max_events=0, max_candidates=max_candidates)
    requests = of_one_user(np.array(ends, dtype=np.int64), settings, shared_end)
    assert [c for request in requests for c in request.candidates.tolist()] == list(range(len(ends)))
    assert all((request.first, request.stop) == (0, 0) and not request.seen.any() for request in requests)
    assert len(requests) == -(-len(ends) // max_candidates)
    assert all(len(request.candidates) == max_candidates for request in requests[:-1])


@given(st.lists(st.lists(st.integers(0, 60), max_size=20), max_size=5), st.integers(0, 12), st.booleans())
def test_requests_of_several_users_are_those_of_each_alone(ends_of_users, max_events, shared_end):
    history = History(max_events=max_events if max_events != 1 else 0, max_candidates=3)
    counts = [len(ends) for ends in ends_of_users]
    user = np.repeat(np.arange(len(counts)), counts)
    ends = np.array([end for ends in ends_of_users for end in ends], dtype=np.int64)
    together = windows(user, ends, history, shared_end)
    requests = iter(zip(together.user, split_up(together), strict=True))
    before = 0
    for u, own in enumerate(ends_of_users):
        for alone in of_one_user(np.array(own, dtype=np.int64), history, shared_end):
            of_user, request = next(requests)
            assert (of_user, request.first, request.stop) == (u, alone.first, alone.stop)
            assert (request.candidates - before).tolist() == alone.candidates.tolist()
            assert request.seen.tolist() == alone.seen.tolist()
        before += len(own)
    assert next(requests, None) is None


@pytest.mark.parametrize("max_events", [2, 3, 8])
def test_the_anchor_depends_on_the_end_alone(max_events):
    ends = np.arange(40)
    assert anchor(ends, max_events).tolist() == [int(anchor(np.array([e]), max_events)[0]) for e in ends]
