import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import Category, Number, PartitionRange, Run
from mtrec_ray.config_file import parse
from mtrec_ray.data.inspection.inspect import propose_config
from mtrec_ray.data.reading.logs import check_log, find_files, read_events
from mtrec_ray.data.reading.tables import EntityTable, read_entities
from mtrec_ray.data.sample import write_sample
from mtrec_ray.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
START = 1_600_000_000
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data with real logs")


def propose(*paths: Path | str, **tables: str) -> tuple[Run, list[str]]:
    """The proposal, which must be short, load, and read its log without a bad row."""
    text, notes = propose_config([str(path) for path in paths], **tables)
    assert len(text.splitlines()) <= 25
    run = parse(text)
    files = find_files(run.data)
    check_log(files, run)
    first = next(read_events(files[0], 0, run))
    assert first.table.num_rows == first.rows_read > 0
    if run.data.items is not None:
        assert (read_items(run).lookup(first.table.column("item")) >= 0).any()
    return run, notes


def read_items(run: Run) -> EntityTable:
    assert run.data.items is not None
    return read_entities(run.data.items, unit=run.data.items.time_unit or run.data.time_unit)


def write_csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@needs_shared
@pytest.mark.parametrize("path", ["ml-latest-small/ratings.csv", "ml-latest-small"])
def test_movielens(path: str) -> None:
    run, notes = propose(SHARED / path)
    assert run.name == "ml-latest-small"
    columns = run.data.columns
    assert (columns.user, columns.item, columns.time, run.data.time_unit) == ("userId", "movieId", "timestamp", "s")
    assert {name: (task.kind, task.label) for name, task in run.tasks.items()} == {
        "like": ("binary", "rating >= 4"),
        "rating": ("regression", "rating"),
    }
    items = run.data.items
    assert items is not None
    assert items.path.endswith("movies.csv")
    assert (items.key, items.text) == ("movieId", "{title} {genres}")
    assert items.categories == [Category(column="genres", separator="|")]
    assert items.numbers == [Number(column="title", pattern=r"\((\d{4})\)", name="year")]
    assert any("a like is 4 or more" in note for note in notes)


@needs_shared
def test_deskdrop() -> None:
    run, _ = propose(SHARED / "deskdrop" / "interactions.csv")
    assert (run.data.layout, run.data.candidate_event) == ("behaviours", "VIEW")
    assert run.data.columns.event == "eventType"
    assert run.data.columns.request is None, "a session is not a list that was shown at once"
    assert {task.event for task in run.tasks.values()} == {"LIKE", "BOOKMARK", "COMMENT CREATED", "FOLLOW"}
    assert run.data.items is not None
    assert (run.data.items.key, run.data.items.text) == ("contentId", "{title}")


def test_generated_sample(tmp_path: Path) -> None:
    write_sample(str(tmp_path), users=200, items=80, days=4, shards=2)
    run, _ = propose(tmp_path / "logs")
    assert (run.data.columns.request, run.data.columns.position) == ("request_id", "position")
    assert {name: task.kind for name, task in run.tasks.items()} == {
        "click": "binary",
        "like": "binary",
        "purchase": "binary",
        "dwell_s": "regression",
    }
    assert run.tasks["like"].feedback_time == "like_time"
    assert run.data.numbers == [Number(column="position")]
    assert run.data.items is not None
    assert (run.data.items.text, run.data.items.categories) == ("{title}", [Category(column="topic")])
    assert run.data.items.numbers == [Number(column="price")]


@pytest.mark.parametrize(
    ("user", "item", "time", "cell", "unit"),
    [
        ("uid", "sku", "ts", 1_600_000_000_000, "ms"),
        ("User_ID", "newsId", "event_time", "2020-05-17T12:00:00Z", "iso"),
        ("visitorid", "asin", "purchase_date", 1_600_000_000, "s"),
    ],
)
def test_names_and_units(tmp_path: Path, user: str, item: str, time: str, cell: Any, unit: str) -> None:
    path = write_csv(tmp_path / "log.csv", f"{user},{item},{time},is_click", f"1,2,{cell},0", f"1,3,{cell},1")
    run, _ = propose(path)
    assert (run.data.columns.user, run.data.columns.item, run.data.columns.time) == (user, item, time)
    assert run.data.time_unit == unit
    assert run.tasks["is_click"].label == "is_click"


def test_json_lines_and_named_tables(tmp_path: Path) -> None:
    lines = [{"user": "ann", "item": f"i{i}", "time": 1_600_000_000 + i, "stars": i % 11} for i in range(40)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pq.write_table(
        pa.table(
            {
                "code": [f"i{i}" for i in range(40)],
                "about": [f"text number {i}" for i in range(40)],
                "tags": [["a"], ["b", "c"]] * 20,
            }
        ),
        tmp_path / "other.parquet",
    )
    users = write_csv(tmp_path / "people.csv", "user,country,age", "ann,no,30", "bob,no,31", "eve,fr,5", "joe,fr,")
    run, _ = propose(tmp_path / "log.jsonl", items=str(tmp_path / "other.parquet"), users=str(users))
    assert run.tasks["like"].label == "stars >= 6"
    assert run.data.items is not None
    assert run.data.users is not None
    assert (run.data.items.key, run.data.items.text) == ("code", "{about}")
    assert run.data.items.categories == [Category(column="tags")]
    assert (run.data.users.key, run.data.users.categories) == ("user", [Category(column="country")])
    assert run.data.users.numbers == [Number(column="age")]


@pytest.mark.parametrize("by_id", [True, False])
def test_feedback_in_files_of_its_own(tmp_path: Path, by_id: bool) -> None:
    log = write_csv(
        tmp_path / "log.csv",
        "impression_id,user_id,item_id,time",
        *(f"{i},u{i % 3},i{i % 2},{START + i}" for i in range(9)),
    )
    key = "impression_id" if by_id else "item_id"
    rows = ["i0,u0,1600000100000,click,", "i1,u1,1600000100000,click,", "i0,u0,1600000200000,dwell,3.5"]
    rows = [row.replace("i", "", 1) for row in rows] if by_id else rows
    feedback = write_csv(tmp_path / "feedback.csv", f"{key},userId,time,event,value", *rows)
    run, notes = propose(log, feedback=str(feedback))
    (part,) = run.data.feedback
    assert (part.by, part.event, part.user, part.time_unit) == (
        "impression" if by_id else "user+item",
        "event",
        "userId",
        "ms",
    )
    assert run.data.columns.impression == ("impression_id" if by_id else None)
    assert run.data.columns.request == (None if by_id else "impression_id")
    assert (run.tasks["click"].event, run.tasks["click"].value) == ("click", None)
    assert (run.tasks["dwell"].kind, run.tasks["dwell"].event, run.tasks["dwell"].value) == (
        "regression",
        "dwell",
        "value",
    )
    assert any("their types in 'event' are ['click', 'dwell']" in note for note in notes)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "item_id,time,event",
            r"no column of .*fb\.csv.* is called as the log's user, 'user_id'.*by hand, with `user`",
        ),
        ("user_id,time,event", r"is called as the log's item, 'item_id'"),
        ("user_id,item_id,time", r"says of what type each row is\. Call it 'event'"),
    ],
)
def test_feedback_that_cannot_be_understood_is_refused(tmp_path: Path, header: str, message: str) -> None:
    log = write_csv(tmp_path / "log.csv", "user_id,item_id,time", f"1,2,{START}", f"1,3,{START}")
    cells = {"user_id": "1", "item_id": "2", "time": str(START), "event": "click"}
    feedback = write_csv(tmp_path / "fb.csv", header, ",".join(cells[name] for name in header.split(",")))
    with pytest.raises(DataError, match=r"^data\.feedback\[0\]\.logs: .*" + message):
        propose_config([str(log)], feedback=str(feedback))


def test_columns_that_are_no_feedback_are_not_made_tasks(tmp_path: Path) -> None:
    header = "user_id,item_id,time,is_active,click,long name like"
    run, _ = propose(
        write_csv(tmp_path / "log.csv", header, "1,2,1600000000,0,1,1", "1,3,1600000000,1,0,0", "2,3,1600000000,1,1,0")
    )
    assert {name: task.label for name, task in run.tasks.items()} == {
        "click": "click",
        "long_name_like": "`long name like`",
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("item_id,time,click", r"No column looks like the user .*Rename it to 'user_id'.*add one that says whose row"),
        ("user_id,time,click", r"No column looks like the item "),
        ("user_id,item_id,click", r"No column looks like the time .*add the time of each row"),
        ("user_id,item_id,time", r"No column looks like a label .*Write `tasks`.*`mtrec init LOGS --feedback"),
    ],
)
def test_what_cannot_be_found_is_refused_with_the_remedy(tmp_path: Path, header: str, message: str) -> None:
    cells = {"user_id": "1", "item_id": "2", "time": "1600000000", "click": "1"}
    row = ",".join(cells[name] for name in header.split(","))
    path = write_csv(tmp_path / "log.csv", header, row, row.replace(",1", ",0"))
    with pytest.raises(DataError, match=message):
        propose_config([str(path)])


def test_absent_empty_and_wrong_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.logs: no file"):
        propose_config([str(tmp_path / "absent")])
    with pytest.raises(DataError, match=r"data\.logs: no row"):
        propose_config([str(write_csv(tmp_path / "empty.csv", "user,item,time"))])
    log = write_csv(tmp_path / "log.csv", "user,item,time,click", "1,2,1600000000,1", "1,3,1600000000,0")
    wrong = write_csv(tmp_path / "wrong.csv", "id,title", "77,a", "78,b")
    with pytest.raises(
        DataError, match=r"data\.items\.path: no column of .*wrong\.csv.* has the ids of the log's 'item'"
    ):
        propose_config([str(log)], items=str(wrong))


def test_columns_that_say_how_a_row_came_about(tmp_path: Path) -> None:
    header = "user_id,item_id,time,click,position,query,surface"
    rows = ["1,2,1600000000,1,0,red shoes,home", "1,3,1600000000,0,1,,search", "2,3,1600000000,1,,blue,home"]
    run, notes = propose(write_csv(tmp_path / "log.csv", header, *rows))
    columns = run.data.columns
    assert (columns.position, columns.query, columns.domain) == ("position", "query", "surface")
    assert (columns.row_weight, columns.sampling_rate, columns.propensity, columns.policy) == (None,) * 4
    assert list(run.tasks) == ["click"]
    assert any("'query' is a search query" in note for note in notes)


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("position", ["-1", "2"]),
        ("position", ["1.5", "2"]),
        ("position", ["top", "left"]),
        ("query", ["17", "18"]),
        ("query", ["", ""]),
        ("domain", ["home", "home"]),
        ("page_position", ["1", "2"]),
        ("subdomain", ["a", "b"]),
    ],
)
def test_columns_that_only_look_so_are_left_alone(tmp_path: Path, header: str, cells: list[str]) -> None:
    rows = [f"1,{item},1600000000,{item % 2},{cell}" for item, cell in enumerate(cells)]
    run, _ = propose(write_csv(tmp_path / "log.csv", f"user_id,item_id,time,click,{header}", *rows))
    columns = run.data.columns
    assert (columns.position, columns.query, columns.domain) == (None, None, None)


def partitioned(folder: Path, *names: str) -> Path:
    """Two rows in a file of each of these folders."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        header = "user_id,item_id,time,click"
        write_csv(folder / name / "part.csv", header, f"1,{i},{START + i},0", f"2,{i},{START + i},1")
    return folder


def test_folders_that_are_days_are_partitions_and_the_rest_is_a_choice(tmp_path: Path) -> None:
    days = ["dt=2026-01-30", "dt=2026-01-31", "dt=2026-02-01"]
    logs = partitioned(tmp_path / "shop", *(f"{day}/hr={hour:02}" for day in days for hour in (7, 8)))
    run, notes = propose(logs)
    assert run.data.partitions == {"dt": PartitionRange()}
    assert run.data.period is None
    assert len(find_files(run.data)) == 6
    assert "folders dt=2026-01-30 to dt=2026-02-01 are partitions, which a range can choose among" in notes
    text, _ = propose_config([str(logs)])
    remark = "  # all from 2026-01-30 to 2026-02-01; as {dt: {first: 2026-01-31}} only those from then on"
    assert f"  partitions: {{dt: {{}}}}{remark}\n" in text
    chosen = parse(text.replace("{dt: {}}", "{dt: {first: 2026-01-31}}").replace("  # period:", "  period:"))
    assert chosen.data.period == 86_400
    assert len(find_files(chosen.data)) == 4


@pytest.mark.parametrize(
    ("folders", "keys", "period"),
    [
        (["date=20260131", "date=20260201"], ["date"], True),
        (["month=2026-01", "month=2026-02"], ["month"], False),
        (["year=2025/month=12", "year=2026/month=01"], ["year"], False),
        (["country=no/dt=2026-01-31", "country=se/dt=2026-01-31"], ["dt"], True),
        (["dt=2026-01-31", "dt=__HIVE_DEFAULT_PARTITION__"], ["dt"], True),
        (["country=no", "country=se"], [], False),
        (["id=20261399", "id=20260101"], [], False),
        (["dt=2026-01-31", "more"], [], False),
        (["2026-01-31", "2026-02-01"], [], False),
    ],
)
def test_only_dates_that_all_files_have_are_partitions(
    tmp_path: Path, folders: list[str], keys: list[str], period: bool
) -> None:
    logs = partitioned(tmp_path / "logs", *folders)
    run, _ = propose(logs)
    assert list(run.data.partitions) == keys
    assert len(find_files(run.data)) == 2
    text, _ = propose_config([str(logs)])
    assert ("# period: 1d" in text) == period


def test_single_files_have_no_partitions(tmp_path: Path) -> None:
    logs = partitioned(tmp_path / "logs", "dt=2026-01-31")
    write_csv(logs / "dt=2026-01-31" / "about.csv", "item_id,title", "0,a", "1,b")
    run, notes = propose(logs)
    assert run.data.partitions == {}
    assert any("only files with a user and a time are logs" in note for note in notes)


ITEMS = ("1,a red shoe,2020-09-01", "1,a blue shoe,2020-09-10", "2,a hat,2020-09-01", "2,a cap,2020-09-09")


@pytest.mark.parametrize("column", ["valid_from", "updated_at"])
def test_a_table_with_several_rows_per_id_holds_from_a_time_on(tmp_path: Path, column: str) -> None:
    log = write_csv(tmp_path / "log.csv", "user_id,item_id,time,click", f"1,1,{START},0", f"1,2,{START},1")
    items = write_csv(tmp_path / "items.csv", f"item_id,title,{column}", *ITEMS)
    run, notes = propose(log, items=str(items))
    assert run.data.items is not None
    assert (run.data.items.key, run.data.items.valid_from, run.data.items.time_unit) == ("item_id", column, "iso")
    assert run.data.items.text == "{title}"
    assert any(f"a row holds from its '{column}' on" in note for note in notes)
    table = read_items(run)
    assert table.versions is not None
    (now,) = table.versions.at(pa.array(["1"]), np.array([START * 10**6])).tolist()
    assert table.text[now] == "a blue shoe"


@pytest.mark.parametrize(("column", "found"), [("valid_from", "valid_from"), ("updated_at", None)])
def test_where_each_id_has_one_row_only_the_very_name_says_so(tmp_path: Path, column: str, found: str | None) -> None:
    """When a row of an ordinary table was last written says nothing of when it began to hold."""
    log = write_csv(tmp_path / "log.csv", "user_id,item_id,time,click", f"1,1,{START},0", f"1,2,{START},1")
    users = write_csv(tmp_path / "users.csv", f"user_id,country,{column}", f"1,no,{START - 5}", f"2,se,{START - 9}")
    run, _ = propose(log, users=str(users))
    assert run.data.users is not None
    assert (run.data.users.valid_from, run.data.users.time_unit) == (found, None)


def test_several_rows_per_id_without_a_time_are_refused_with_the_remedy(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", "user_id,item_id,time,click", f"1,1,{START},0", f"1,2,{START},1")
    items = write_csv(tmp_path / "items.csv", "item_id,title", "1,a", "1,b", "2,c", "2,d")
    with pytest.raises(DataError, match=r"data\.items\.path: .*call the column with that time 'valid_from'"):
        propose_config([str(log)], items=str(items))


def test_a_table_of_versions_is_found_beside_the_logs(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", "user_id,item_id,time,click", f"1,1,{START},0", f"1,2,{START},1")
    write_csv(tmp_path / "items.csv", "item_id,title,valid_from", *ITEMS)
    run, _ = propose(log)
    assert run.data.items is not None
    assert run.data.items.valid_from == "valid_from"
