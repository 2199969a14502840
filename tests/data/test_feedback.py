"""Feedback in files of its own: joined to the exposures that it belongs to, days later and in any order."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.config import Run
from mtrec_ray.config_file import validate
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.logs import find_files
from mtrec_ray.data.requests.deliveries import settle, sources_of
from mtrec_ray.data.requests.splits import Key, TimeSplit
from mtrec_ray.errors import ConfigError, DataError
from tests.data.by_hand import ALL_TRAIN, INTEGERS, SECOND, build_bucket, config
from tests.data.log_files import read

START = 1_600_000_000
DAY = 86_400
VIEWS = [(1, 10, 0, "a"), (1, 11, 5, "b"), (1, 10, 100, "c"), (2, 10, 50, "d")]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def views(rows: list[tuple[Any, ...]] = VIEWS) -> None:
    write("views.csv", "user,item,time,shown", [(u, i, START + t, *rest) for u, i, t, *rest in rows])


def write(name: str, header: str, rows: list[tuple[Any, ...]]) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def run_of(*feedback: dict[str, Any], **parts: Any) -> Run:
    settings: dict[str, Any] = {
        "data__logs": "views.csv",
        "data__feedback": list(feedback),
        "tasks": {"like": {"event": "LIKE"}},
        "features__aggregates": [],
    }
    return config(**{**settings, **parts})


def settled(run: Run) -> tuple[pa.Table, Counter[str]]:
    return settle(read(run).table, run, sources_of(find_files(run.data)))


def labels(table: pa.Table, task: str = "like") -> dict[tuple[str, str, int], tuple[float, int | None]]:
    """(user, item, time) of each exposure -> label and time of the feedback, in seconds after `START`."""
    return {
        (row["user"], row["item"], row["time"] // SECOND - START): (
            row[f"label.{task}"],
            None if row[f"feedback_time.{task}"] is None else row[f"feedback_time.{task}"] // SECOND - START,
        )
        for row in table.to_pylist()
    }


def test_it_belongs_to_the_last_exposure_that_is_not_later() -> None:
    views()
    likes = [(1, 10, 99), (1, 10, 100 + 3 * DAY), (1, 10, 4 * DAY), (1, 11, 4), (2, 10, 50), (3, 10, 60)]
    write("likes.csv", "user,item,time", [(u, i, START + t) for u, i, t in reversed(likes)])
    table, counts = settled(run_of({"logs": "likes.csv", "type": "LIKE"}))
    assert table.column_names == read(config(data__logs="views.csv", tasks__like__label="item > 0")).table.column_names
    assert labels(table) == {
        ("1", "10", 0): (1, 99),
        ("1", "11", 5): (0, None),  # its like came before it
        ("1", "10", 100): (1, 100 + 3 * DAY),  # the first of two
        ("2", "10", 50): (1, 50),  # at the same time
    }
    assert counts == {"repeats": 0, "feedback": 6, "feedback_unmatched": 2, "feedback_repeated": 1}


def test_no_longer_than_within() -> None:
    views()
    write("likes.csv", "user,item,time", [(1, 10, START + 100 + DAY), (2, 10, START + 50 + DAY + 1)])
    table, counts = settled(run_of({"logs": "likes.csv", "type": "LIKE", "within": "1d"}))
    assert [row for row, (label, _) in labels(table).items() if label] == [("1", "10", 100)]
    assert counts["feedback_unmatched"] == 1


def test_an_impression_id_names_the_exposure_whatever_the_clocks_say() -> None:
    views()
    write(
        "likes.csv", "who,when,ref", [(1, (START + 9000) * 1000, "a"), (1, (START + 90) * 1000, "c"), (2, 1.6e12, "a")]
    )
    source = {"logs": "likes.csv", "type": "LIKE", "by": "impression", "time_unit": "ms"}
    source |= {"user": "who", "time": "when", "impression": "ref"}
    table, counts = settled(run_of(source, data__columns__impression="shown"))
    assert labels(table) == {
        ("1", "10", 0): (1, 9000),
        ("1", "11", 5): (0, None),
        ("1", "10", 100): (1, 100),  # 10 s before its exposure, by another clock: known with it, not before
        ("2", "10", 50): (0, None),  # 'a' is an impression of user 1
    }
    assert counts["feedback_unmatched"] == 1


def test_an_exposure_without_an_impression_id_is_not_observed() -> None:
    views([(1, 10, 0, "a"), (1, 11, 5, ""), (1, 12, 9, "c")])
    write("likes.csv", "user,time,shown", [(1, START + 20, "a")])
    source = {"logs": "likes.csv", "type": "LIKE", "by": "impression"}
    table, _ = settled(run_of(source, data__columns__impression="shown"))
    found = {item: label for (_, item, _), (label, _) in labels(table).items()}
    assert (found["10"], found["12"]) == (1, 0)
    assert math.isnan(found["11"])


def test_with_the_id_of_a_list_the_item_says_which_row() -> None:
    views([(1, 10, 0, "list"), (1, 11, 0, "list"), (1, 12, 0, "list")])
    write("likes.csv", "user,item,time,shown", [(1, 11, START + 9, "list"), (1, 13, START + 9, "list")])
    source = {"logs": "likes.csv", "type": "LIKE", "by": "impression", "item": "item"}
    table, counts = settled(run_of(source, data__columns__impression="shown"))
    assert [row[1] for row, (label, _) in labels(table).items() if label] == ["11"]
    assert counts["feedback_unmatched"] == 1


def test_types_and_values() -> None:
    views()
    write("views.csv", "user,item,time", [(1, 10, START), (1, 11, START), (1, 12, START)])
    rows = [
        (1, 10, 5, "BUY", 30),
        (1, 10, 4, "LIKE", ""),
        (1, 11, 7, "BUY", ""),
        (1, 11, 8, "BUY", 2),
        (1, 12, 5, "HIDE", 1),
    ]
    write("acts.csv", "user,item,time,what,paid", [(u, i, START + t, w, p) for u, i, t, w, p in rows])
    tasks = {"like": {"event": "LIKE"}, "spend": {"kind": "regression", "event": "BUY", "value": "paid"}}
    table, counts = settled(run_of({"logs": "acts.csv", "event": "what"}, tasks=tasks))
    assert labels(table) == {("1", "10", 0): (1, 4), ("1", "11", 0): (0, None), ("1", "12", 0): (0, None)}
    spent = labels(table, "spend")
    assert (spent["1", "10", 0], spent["1", "11", 0]) == ((30, 5), (2, 8)), "the first with a value"
    assert np.isnan(spent["1", "12", 0][0]), "what nobody bought has no price"
    assert counts == {"repeats": 0, "feedback": 4, "feedback_unmatched": 0, "feedback_repeated": 1}


def test_labels_are_as_of_the_end_of_the_train_period_and_histories_as_of_the_feedback() -> None:
    """User 1 sees 10 (liked at 20), 11 (liked at 300), then 12 at 15 and 25; train ends at 200."""
    views([(1, 10, 0, ""), (1, 11, 1, ""), (1, 12, 15, ""), (1, 13, 25, ""), (1, 14, 250, "")])
    write("likes.csv", "user,item,time", [(1, 10, START + 20), (1, 11, START + 300)])
    run = run_of({"logs": "likes.csv", "type": "LIKE"})
    split = TimeSplit(Key((START + 200) * SECOND), Key((START + 10**6) * SECOND))
    bucket = build_bucket(settled(run)[0], run, INTEGERS, split)
    assert bucket.labels[:, 0].tolist() == [1, 0, 0, 0, 0], "the like of 11 came later, and 0 is what the others have"
    assert build_bucket(settled(run)[0], run, INTEGERS, ALL_TRAIN).labels[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert bucket.ends.tolist() == [0, 1, 2, 4, 5], "the like of 10 is an event of its own between 15 and 25"
    liked = ~np.isnan(bucket.events.feedback[:, 0])
    assert (bucket.events.time[liked] // SECOND - START).tolist() == [20, 300]


def test_a_window_decides_what_is_known() -> None:
    """Train ends at 100 and the log at 400: the window of the row at 50 was not over then."""
    views([(1, 10, 0, ""), (1, 11, 50, ""), (1, 12, 150, ""), (1, 13, 390, "")])
    write(
        "likes.csv",
        "user,item,time",
        [(1, 10, START + 61), (1, 11, START + 70), (1, 12, START + 210), (9, 9, START + 400)],
    )
    run = run_of({"logs": "likes.csv", "type": "LIKE"}, tasks={"like": {"event": "LIKE", "window": "60s"}})
    split = TimeSplit(Key((START + 100) * SECOND), Key((START + 10**6) * SECOND))
    bucket = build_bucket(settled(run)[0], run, INTEGERS, split, (START + 400) * SECOND)
    np.testing.assert_equal(bucket.labels[:, 0], [0, np.nan, 1, np.nan])
    np.testing.assert_equal(bucket.delays.delays[:, 0], [np.nan, np.nan, 60, np.nan])


def test_behaviours_take_feedback_as_rows_of_its_type() -> None:
    """Views and likes apart are the same as one log of both, also where the views have no column with a type."""
    views()
    write("likes.csv", "user,item,time", [(1, 10, START + 99), (2, 11, START + 60)])
    rows = [(u, i, START + t, "VIEW") for u, i, t, _ in VIEWS]
    write("all.csv", "user,item,time,type", [*rows, (1, 10, START + 99, "LIKE"), (2, 11, START + 60, "LIKE")])
    both = {"data__layout": "behaviours", "data__candidate_event": "VIEW"}
    apart = read(run_of({"logs": "likes.csv", "type": "LIKE"}, **both)).table
    together = read(run_of(data__logs="all.csv", data__columns__event="type", **both)).table
    keys = [name for name in apart.column_names if name != "row_id"]
    np.testing.assert_equal(apart.select(keys).to_pydict(), together.select(keys).to_pydict())


def test_the_manifest_counts_and_the_log_ends_with_its_feedback(capsys: pytest.CaptureFixture[str]) -> None:
    """The log ends at 99,000 s, with a feedback of no exposure: the row at 97,900 s is ripe, that at 98,500 is not."""
    late = [(0, 7, 2500, ""), (1, 8, 5000, ""), (2, 9, 97_900, ""), (3, 9, 98_500, "")]
    views([(user, item, 10 * user + item, "") for user in range(6) for item in range(5)] + late)
    write("likes/1.csv", "user,item,time", [(0, 1, START + 2), (4, 4, START + 9000)])
    write("likes/2.csv", "user,item,time", [(1, 3, START + 13), (77, 1, START + 99_000)])
    split = {"train_until": START + 2000, "valid_until": START + 3000}
    tasks = {"like": {"event": "LIKE", "window": "1000s"}}
    run = run_of({"logs": "likes", "type": "LIKE"}, tasks=tasks, split=split, data__buckets=3)
    manifest = prepare(run, serial_tasks).manifest
    counts = manifest.counts
    assert (counts["rows_read"], counts["candidates"]) == (38, 34)
    assert (counts["feedback"], counts["feedback_unmatched"], counts["feedback_repeated"]) == (4, 1, 0)
    assert manifest.tasks[0].observed == {"train": 30, "valid": 1, "test": 2}
    assert manifest.tasks[0].positives == {"train": 2, "valid": 0, "test": 0}
    assert "4 rows of feedback: 1 belong to no exposure" in capsys.readouterr().err


def test_a_type_that_no_row_has_is_refused_with_those_there_are() -> None:
    views()
    write("acts.csv", "user,item,time,what", [(1, 10, START, "like")])
    with pytest.raises(DataError, match=r"tasks\.like\.event: no row of data\.feedback has type 'LIKE'\. Known: like"):
        prepare(run_of({"logs": "acts.csv", "event": "what"}), serial_tasks)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, r"data\.feedback\[0\]\.user: no column 'user' in .*likes\.csv'\. Known: item, moment"),
        ({"user": "item"}, r"data\.feedback\[0\]\.time: no column 'time'"),
        ({"user": "item", "time": "moment", "unique_by": ["id"]}, r"data\.feedback\[0\]\.unique_by: no column 'id'"),
    ],
)
def test_its_files_need_a_user_an_item_and_a_time(source: dict[str, Any], message: str) -> None:
    views()
    write("likes.csv", "item,moment", [(10, START)])
    with pytest.raises(DataError, match=message):
        prepare(run_of({"logs": "likes.csv", "type": "LIKE", **source}), serial_tasks)


def test_a_value_that_no_feedback_has_is_refused() -> None:
    views()
    write("likes.csv", "user,item,time", [(1, 10, START)])
    tasks = {"spend": {"kind": "regression", "event": "LIKE", "value": "paid"}}
    with pytest.raises(DataError, match=r"tasks\.spend\.value: no column 'paid' in .*likes\.csv'"):
        prepare(run_of({"logs": "likes.csv", "type": "LIKE"}, tasks=tasks), serial_tasks)


LIKES = {"logs": "likes.csv", "type": "LIKE"}


@pytest.mark.parametrize(
    ("data", "tasks", "message"),
    [
        ({"feedback": [{"logs": "x"}]}, {}, "give `type`, the type of all rows, or `event`"),
        ({"feedback": [{**LIKES, "event": "what"}]}, {}, "and not both"),
        ({"feedback": [{**LIKES, "by": "impression"}]}, {}, "needs data.columns.impression"),
        ({"feedback": [{**LIKES, "impression": "id"}]}, {}, "impression needs by: impression"),
        ({"feedback": []}, {}, "layout 'impressions' needs `label`, not `event`"),
        (
            {"feedback": [LIKES]},
            {"feedback_delay": 5},
            "`feedback_delay` belongs to `label`; feedback has its own time",
        ),
    ],
)
def test_settings_that_contradict_each_other(data: dict[str, Any], tasks: dict[str, Any], message: str) -> None:
    columns = {"user": "user", "item": "item", "time": "time"}
    tree = {
        "name": "x",
        "data": {"logs": "views.csv", "columns": columns, **data},
        "tasks": {"like": {"event": "LIKE", **tasks}},
    }
    with pytest.raises(ConfigError, match=message):
        validate(tree)
