from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.config import Split
from mtrec_ray.data.preparing.notes import boundary_notes
from mtrec_ray.data.reading.logs import find_files, read_events
from mtrec_ray.data.requests.bucket import IdOrder, build_bucket, candidate_keys
from mtrec_ray.data.requests.requests import find_candidates
from mtrec_ray.data.requests.rows import from_table
from mtrec_ray.data.requests.splits import Key, Locator, TimeSplit, explicit_boundaries, histogram, sizes, split_by_user
from mtrec_ray.errors import ConfigError
from tests.data.by_hand import SECOND, bucket, config

keys = st.lists(
    st.builds(Key, st.integers(0, 3 * 3_600_000_000), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)),
    min_size=1,
    max_size=50,
)
tied = st.lists(
    st.builds(
        Key, st.sampled_from([0, 5 * SECOND, 5 * SECOND + 1, 9000 * SECOND]), st.integers(0, 5), st.integers(0, 5)
    ),
    min_size=1,
    max_size=50,
)


def locator(parts):
    """Over buckets of keys, as `prepare` does it over files."""

    def count(width, lows):
        times = [np.array([key.time for key in part], dtype=np.int64) for part in parts]
        lows = [None] if lows is None else lows
        return sum((histogram(t, width, low) for t in times for low in lows), histogram(np.zeros(0, np.int64), width))

    def members(lows):
        return [key for part in parts for key in part if any(low <= key.time < low + SECOND for low in lows)]

    return Locator(count, members)


@given(keys | tied, st.integers(1, 4), st.data())
def test_places_of_the_global_order_are_found_exactly(keys, buckets, data):
    places = data.draw(st.lists(st.integers(0, len(keys) - 1), min_size=1, max_size=3))
    parts = [keys[b::buckets] for b in range(buckets)]
    assert locator(parts).find(places) == [sorted(keys)[place] for place in places]


def test_sizes_do_not_fall_below_whole_numbers():
    for total in range(10, 2000, 10):
        assert sizes(total, Split()) == (total * 8 // 10, total * 9 // 10)


def test_by_user_the_last_tenth_is_test_and_few_candidates_are_train():
    starts = np.cumsum([0, 1, 2, 3, 19, 20, 35])
    codes = split_by_user(starts, Split(by="user"))
    per_user = [np.bincount(part, minlength=3).tolist() for part in np.split(codes, starts[1:-1])]
    assert per_user == [[1, 0, 0], [2, 0, 0], [1, 1, 1], [17, 1, 1], [16, 2, 2], [29, 3, 3]]
    assert (np.diff(codes[starts[5] : starts[6]]) >= 0).all()


def test_ties_at_the_boundary_second_are_resolved_by_user_and_item():
    rows = [{"user": str(u), "item": str(i), "time": 7, "like": 1} for u in (2, 10) for i in (3, 20)]
    run = config()
    as_integers = bucket(run, rows, TimeSplit(Key(7 * SECOND, 2, 20, -1), Key(7 * SECOND, 10, 20, -1)))
    found = {
        (as_integers.rows.users[u], as_integers.rows.items[as_integers.rows.item[r]]): s
        for u, r, s in zip(as_integers.candidates.user, as_integers.candidates.row, as_integers.split, strict=True)
    }
    assert found == {("2", "3"): 0, ("2", "20"): 1, ("10", "3"): 1, ("10", "20"): 2}


def test_explicit_boundaries_are_in_the_logs_unit_or_dates():
    dates = config(split={"by": "time", "train_until": "2024-05-31", "valid_until": "2024-06-01T12:00:00"})
    assert explicit_boundaries(dates) == TimeSplit(Key(1_717_113_600 * SECOND), Key(1_717_243_200 * SECOND))
    numbers = config(data__time_unit="ms", split={"by": "time", "train_until": 1000, "valid_until": 2000})
    assert explicit_boundaries(numbers) == TimeSplit(Key(SECOND), Key(2 * SECOND))
    rows = [{"user": "1", "item": str(t), "time": t, "like": 1} for t in (0, 1, 2)]
    assert bucket(numbers, rows, explicit_boundaries(numbers)).split.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"train_until": "soon", "valid_until": "later"},
            "split.train_until: 'soon' is neither a number nor an ISO date",
        ),
        (
            {"train_until": 5, "valid_until": 4},
            r"split.valid_until 4(.0)? lies before split.train_until 5.*the later time",
        ),
    ],
)
def test_wrong_boundaries_are_refused(split, message):
    with pytest.raises(ConfigError, match=message):
        explicit_boundaries(config(split=split))


def test_boundaries_outside_of_the_log_are_told():
    hours = Counter({10: 3, 12: 1})  # 1970-01-01, from 10 to 13 o'clock
    run = config(split={"train_until": 11 * 3600, "valid_until": "1970-01-02"})
    boundaries = explicit_boundaries(run)
    assert boundary_notes(boundaries, hours, run) == [
        "split.valid_until 1970-01-02 lies outside of the log, whose candidates are from 1970-01-01 10:00 to "
        "1970-01-01 13:00 UTC"
    ]
    assert boundary_notes(boundaries, Counter({10: 3, 23: 1}), run)[0].startswith("split.valid_until"), (
        "ends with the log"
    )
    assert boundary_notes(boundaries, Counter({10: 3, 24: 1}), run) == []
    assert boundary_notes(boundaries, Counter(), run) == []


def sorted_boundaries(table, run, ids):
    """The boundaries of the split by time, by sorting all candidates."""
    rows = from_table(table, run, ids.items)
    candidates = find_candidates(rows, run)
    keys = sorted(candidate_keys(rows, candidates, ids, np.arange(len(candidates.row))))
    return TimeSplit(*(keys[place] for place in sizes(len(keys), run.split)))


def counts_of(run):
    """Candidates per split of a log, all users in one bucket."""
    file = find_files(run.data)[0]
    table = pa.concat_tables(events.table for events in read_events(file, 0, run))
    ids = IdOrder(users=True, items=True)
    boundaries = sorted_boundaries(table, run, ids) if run.split.by == "time" else None
    return build_bucket(table, run, ids, boundaries)


@pytest.mark.parametrize(("by", "sizes"), [("user", [81_200, 9_818, 9_818]), ("time", [80_668, 10_084, 10_084])])
def test_movielens_protocols(movielens, by, sizes):
    run = config(
        data__logs=str(movielens / "ratings.csv"),
        data__columns={"user": "userId", "item": "movieId", "time": "timestamp"},
        tasks={"like": {"label": "rating >= 4", "feedback_delay": 0}},
        split__by=by,
    )
    assert np.bincount(counts_of(run).split).tolist() == sizes


def test_deskdrop_pairs_and_positives(deskdrop):
    tasks = {"like": "LIKE", "bookmark": "BOOKMARK", "comment": "COMMENT CREATED", "follow": "FOLLOW"}
    run = config(
        data__logs=str(deskdrop / "interactions.csv"),
        data__layout="behaviours",
        data__candidate_event="VIEW",
        data__columns={"user": "personId", "item": "contentId", "time": "timestamp", "event": "eventType"},
        tasks={name: {"event": event} for name, event in tasks.items()},
    )
    built = counts_of(run)
    assert np.bincount(built.split).tolist() == [32_192, 4_024, 4_025]
    assert built.labels[built.split == 2].sum(axis=0).tolist() == [517, 169, 135, 174]
