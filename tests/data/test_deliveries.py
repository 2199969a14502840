"""Repeated deliveries, very long users, ids that rotate, and users without a past."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrec_ray.config import Run
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.fingerprint import fingerprint
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.logs import find_files, read_events
from mtrec_ray.data.reading.user_map import read_user_map
from mtrec_ray.data.requests.deliveries import settle, sources_of
from mtrec_ray.errors import DataError
from tests.data.by_hand import config
from tests.data.log_files import read
from tests.data.test_prepare import requests

START = 1_600_000_000


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, header: str, rows: list[tuple[Any, ...]]) -> None:
    Path(name).write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def run_of(**parts: Any) -> Run:
    return config(**{"features__aggregates": [], "data__logs": ["log-1.csv", "log-2.csv"], **parts})


def kept(run: Run) -> tuple[list[int], dict[str, int]]:
    """The items of the rows that stay, and the counts."""
    table, counts = settle(read(run).table, run, sources_of(find_files(run.data)))
    return [int(item) for item in table["item"].to_pylist()], dict(counts)


def test_of_repeated_deliveries_the_first_counts() -> None:
    header = "user,item,time,like,uid"
    write(
        "log-1.csv",
        header,
        [(1, 10, START, 0, "x"), (1, 11, START, 1, "y"), (2, 12, START, 0, ""), (2, 13, START, 0, "")],
    )
    write("log-2.csv", header, [(1, 14, START + 9, 1, "x"), (2, 15, START, 1, "y"), (1, 16, START, 1, "z")])
    run = run_of(data__unique_by=["uid"])
    assert kept(run) == ([10, 11, 12, 13, 15, 16], {"repeats": 1}), "ids are a user's, and empty ones name no row"


def test_several_columns_name_a_row_together() -> None:
    header = "user,item,time,like"
    write("log-1.csv", header, [(1, 10, START, 0), (1, 10, START + 1, 0), (1, 10, START, 0)])
    write("log-2.csv", header, [(1, 10, START, 1), (1, 11, START, 1)])
    assert kept(run_of(data__unique_by=["user", "item", "time"])) == ([10, 10, 11], {"repeats": 2})
    assert kept(run_of(data__unique_by=["user", "item", "time", "like"])) == ([10, 10, 10, 11], {"repeats": 1})


def test_a_log_delivered_twice_gives_the_same_data() -> None:
    rng = np.random.default_rng(3)
    rows = [(rng.integers(6), rng.integers(9), START + 60 * i, rng.integers(2)) for i in range(120)]
    write("log-1.csv", "user,item,time,like", rows)
    write("log-2.csv", "user,item,time,like", rows[40:90])
    once = prepare(run_of(data__logs="log-1.csv"), serial_tasks)
    twice = prepare(run_of(data__unique_by=["user", "item", "time"]), serial_tasks)
    assert (twice.manifest.counts["repeats"], twice.manifest.counts["rows_read"]) == (50, 170)
    for split in ("train", "valid", "test"):
        assert str(requests(once, split)) == str(requests(twice, split))


def test_of_long_users_the_latest_rows_stay() -> None:
    write("log-1.csv", "user,item,time,like", [(1, i, START - i, 0) for i in range(6)])
    write("log-2.csv", "user,item,time,like", [(1, 6, START, 0), (2, 7, START, 0), (2, 8, START, 0), (3, 9, START, 0)])
    items, counts = kept(run_of(data__max_user_events=2))
    assert items == [0, 6, 7, 8, 9]
    assert counts == {"repeats": 0, "long_users": 1, "rows_of_long_users_left_out": 5}


def test_the_cap_is_counted_in_the_manifest_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(user, item, START + item, 0) for user in (1, 1, 2) for item in range(20)]
    write("log-1.csv", "user,item,time,like", [*rows, *((3, item, START + item, 1) for item in range(5))])
    run = run_of(data__logs="log-1.csv", data__max_user_events=10, data__unique_by=["user", "item"])
    counts = prepare(run, serial_tasks).manifest.counts
    assert (counts["repeats"], counts["long_users"], counts["rows_of_long_users_left_out"]) == (20, 2, 20)
    assert counts["candidates"] == 25
    said = capsys.readouterr().err
    assert "20 rows were delivered before (data.unique_by)" in said
    assert "2 users have more than data.max_user_events 10 rows: their 20 earliest rows are left out" in said


def test_users_without_an_earlier_event_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the 2 validation users one is new, of the 3 test users two: of whom one has several candidates."""
    rows = [(1, i, START + i) for i in range(16)] + [(2, 0, START + 50), (1, 1, START + 51)]
    rows += [(3, 0, START + 60), (3, 1, START + 61), (4, 0, START + 62), (1, 2, START + 63)]
    write("log-1.csv", "user,item,time,like", [(*row, row[1] % 2) for row in rows])
    until = {"train_until": START + 50, "valid_until": START + 60}
    counts = prepare(run_of(data__logs="log-1.csv", split=until), serial_tasks).manifest.counts
    assert (counts["valid_users"], counts["valid_users_without_earlier_event"]) == (2, 1)
    assert (counts["test_users"], counts["test_users_without_earlier_event"]) == (3, 2)
    assert "66.7% of the 3 test users have no earlier event" in capsys.readouterr().err


MAP = "cookie,person,since"


def mapped(**parts: Any) -> list[str]:
    run = run_of(data__logs="log-1.csv", data__user_map={"path": "map.csv", "key": "cookie", "user": "person", **parts})
    (events,) = read_events(find_files(run.data)[0], 0, run, read_user_map(run.data))
    assert events.unmapped == sum(user.startswith("c") for user in events.table["user"].to_pylist())
    return events.table["user"].to_pylist()


def test_ids_mean_the_user_they_had_at_the_time() -> None:
    write(
        "log-1.csv",
        "user,item,time,like",
        [(f"c{c}", 1, START + t, 0) for c, t in [(1, 0), (1, 9), (1, 10), (1, 99), (2, 0)]],
    )
    write(
        "map.csv",
        MAP,
        [("c1", "ann", START + 10), ("c1", "bob", START + 50), ("c3", "eve", START), ("c1", "joe", START + 5)],
    )
    assert mapped(valid_from="since") == ["c1", "joe", "ann", "bob", "c2"]


def test_a_map_without_times() -> None:
    write("log-1.csv", "user,item,time,like", [(c, 1, START, 0) for c in ("c1", "c2", "c4")])
    write("map.csv", MAP, [("c2", "ann", ""), ("c1", "ann", ""), ("c1", "ann", "")])
    assert mapped() == ["ann", "ann", "c4"]
    write("map.csv", MAP, [("c2", "ann", ""), ("c2", "bob", "")])
    with pytest.raises(DataError, match=r"data\.user_map: id 'c2' means 2 users at the same time; give `valid_from`"):
        mapped()


def test_mapped_users_have_one_history_and_unmapped_rows_are_counted() -> None:
    cookies = [f"c{i // 5}" for i in range(40)]
    write("log-1.csv", "user,item,time,like", [(c, i, START + i, i % 2) for i, c in enumerate(cookies)])
    write("map.csv", MAP, [(f"c{i}", "ann", START) for i in range(7)])
    settings = {"path": "map.csv", "key": "cookie", "user": "person", "valid_from": "since"}
    prepared = prepare(run_of(data__logs="log-1.csv", data__user_map=settings), serial_tasks)
    counts = prepared.manifest.counts
    assert (counts["users"], counts["rows_unmapped"]) == (2, 5)
    assert {request["user"] for split in ("train", "valid", "test") for request in requests(prepared, split)} == {
        "ann",
        "c7",
    }
    before = fingerprint(run_of(data__logs="log-1.csv", data__user_map=settings))
    write("map.csv", MAP, [(f"c{i}", "ann", START) for i in range(8)])
    assert fingerprint(run_of(data__logs="log-1.csv", data__user_map=settings)) != before


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "cookie,who,since",
            ("c1", "a", START),
            r"data\.user_map\.user: no column 'person' .* Known: cookie, since, who",
        ),
        (MAP, ("c1", "", START), r"data\.user_map: row 1 of .*map\.csv' lacks an id, a user, or a time"),
        (MAP, ("c1", "a", "soon"), r"data\.user_map: row 1 of .*map\.csv' lacks an id, a user, or a time"),
    ],
)
def test_a_map_that_cannot_be_used(header: str, row: tuple[Any, ...], message: str) -> None:
    write("log-1.csv", "user,item,time,like", [("c1", 1, START, 0)])
    write("map.csv", header, [row])
    with pytest.raises(DataError, match=message):
        mapped(valid_from="since")
