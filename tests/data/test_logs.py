import gzip
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import Run
from mtrec_ray.config_file import validate
from mtrec_ray.data.reading.logs import Events, check_log, event_schema, find_files, read_events
from mtrec_ray.errors import DataError

HEADER = ["user", "item", "time", "shown", "click", "rating", "liked_at", "price", "tab", "note"]
ROWS: list[list[Any]] = [
    [7, 10, 1_600_000_000, "r1", 1, 4.5, 1_600_000_060, 9.5, "home", "plain"],
    [7, 11, 1_600_000_000, "r1", 0, None, None, None, "home", 'quoted "words", comma'],
    [8, 10, 1_600_000_100, "r2", 1, 3, None, 2, None, "two\nlines"],
    [9, 12, 1_600_000_200, "r3", 0, 5, 1_600_009_999, 0, "søk", "näive"],
]


def make_run(logs: Path | str | list[str], **changes: Any) -> Run:
    tree: dict[str, Any] = {
        "name": "test",
        "data": {
            "logs": str(logs) if isinstance(logs, Path) else logs,
            "columns": {"user": "user", "item": "item", "time": "time", "request": "shown"},
            "categories": ["tab"],
            "numbers": ["price", {"column": "note", "pattern": r"(\d+) px", "name": "width"}],
        },
        "tasks": {
            "click": {"label": "click", "feedback_delay": "5s"},
            "like": {"label": "rating >= 4", "observed": "click", "feedback_time": "liked_at"},
            "rating": {"kind": "regression", "label": "rating"},
        },
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        part = tree
        for parent in parents:
            part = part[parent]
        part[last] = value
    return validate(tree)


def csv_text(rows: list[list[Any]], header: list[str] = HEADER, newline: str = "\n") -> str:
    def cell(value: Any) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n]', text) else text

    return "".join(",".join(map(cell, row)) + newline for row in [header, *rows])


def write(folder: Path, kind: str, rows: list[list[Any]] = ROWS, header: list[str] = HEADER) -> Path:
    path = folder / f"log.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), path)
    elif kind == "jsonl":
        lines = [{name: cell for name, cell in zip(header, row, strict=True) if cell is not None} for row in rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(csv_text(rows, header).encode()))
    else:
        path.write_text(csv_text(rows, header), newline="")
    return path


def read(run: Run) -> Events:
    """All files as one."""
    batches = [events for i, file in enumerate(find_files(run.data)) for events in read_events(file, i, run)]
    types: dict[str, int] = {}
    for events in batches:
        types = {name: types.get(name, 0) + events.types.get(name, 0) for name in {*types, *events.types}}
    return Events(
        pa.concat_tables([events.table for events in batches]),
        pa.concat_tables([events.quarantine for events in batches]),
        sum(events.rows_read for events in batches),
        types,
    )


def read_csv(tmp_path: Path, text: str | bytes, **changes: Any) -> Events:
    path = tmp_path / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(make_run(path, **changes))


def reasons(events: Events) -> list[tuple[int, str]]:
    rows = events.quarantine.sort_by("row").to_pylist()
    return [(row["row"], row["reason"]) for row in rows]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
def test_every_format_gives_the_same_events(tmp_path: Path, kind: str) -> None:
    run = make_run(write(tmp_path, kind))
    check_log(find_files(run.data), run)
    events = read(run)
    assert events.table.schema == event_schema(run)
    columns = events.table.to_pydict()
    nan = np.nan
    micros = [row[2] * 10**6 for row in ROWS]
    assert columns["row_id"] == [1, 2, 3, 4]
    assert columns["user"] == ["7", "7", "8", "9"]
    assert columns["item"] == ["10", "11", "10", "12"]
    assert columns["time"] == micros
    assert columns["request"] == ["r1", "r1", "r2", "r3"]
    assert columns["label.click"] == [1, 0, 1, 0]
    np.testing.assert_equal(columns["label.like"], [1, nan, 0, nan])
    np.testing.assert_equal(columns["label.rating"], [4.5, nan, 3, 5])
    assert columns["feedback_time.click"] == [time + 5_000_000 for time in micros]
    assert columns["feedback_time.like"] == [1_600_000_060_000_000, None, None, None]
    assert columns["feedback_time.rating"] == [None] * 4
    assert columns["category.tab"] == ["home", "home", None, "søk"]
    np.testing.assert_equal(columns["number.price"], [9.5, nan, 2, 0])
    np.testing.assert_equal(columns["number.width"], [nan] * 4)
    assert (events.rows_read, events.quarantine.num_rows, events.types) == (4, 0, {})


def test_behaviours(tmp_path: Path) -> None:
    text = "who,what,at,kind,seconds\n1,a,1600000000,VIEW,\n1,a,1600000009,DWELL,12.5\n1,b,1600000010,SHARE,\n"
    events = read_csv(
        tmp_path,
        text,
        data={
            "logs": str(tmp_path / "log.csv"),
            "layout": "behaviours",
            "candidate_event": "VIEW",
            "columns": {"user": "who", "item": "what", "time": "at", "event": "kind"},
        },
        tasks={"dwell": {"kind": "regression", "event": "DWELL", "value": "seconds"}, "like": {"event": "LIKE"}},
    )
    columns = events.table.to_pydict()
    np.testing.assert_equal(columns["label.dwell"], [np.nan, 12.5, np.nan])
    assert columns["feedback_time.dwell"] == [None, 1_600_000_009_000_000, None]
    assert columns["event"] == ["VIEW", "DWELL", "SHARE"]
    np.testing.assert_equal(columns["label.like"], [np.nan] * 3)
    assert events.types == {"VIEW": 1, "DWELL": 1, "SHARE": 1}, "LIKE never happened, and that can be seen"


def test_row_ids_name_file_and_row(tmp_path: Path) -> None:
    for day in ("day=2", "day=1"):
        (tmp_path / day).mkdir()
        write(tmp_path / day, "parquet")
    (tmp_path / "day=1" / "_SUCCESS").touch()
    (tmp_path / "README.md").touch()
    run = make_run(tmp_path)
    assert [Path(file.path).parent.name for file in find_files(run.data)] == ["day=1", "day=2"]
    ids = read(run).table.column("row_id").to_numpy()
    assert ids.tolist() == [file << 40 | row for file in (0, 1) for row in (1, 2, 3, 4)]


def test_paths_are_files_folders_globs_urls_and_lists(tmp_path: Path) -> None:
    for name in ("a-1.csv", "a-2.csv", "b-1.csv", "sub/a-3.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(csv_text(ROWS))

    def names(logs: str | list[str]) -> list[str]:
        return [file.path.rsplit("/", 1)[1] for file in find_files(make_run(logs).data)]

    assert names(f"{tmp_path}/a-*.csv") == ["a-1.csv", "a-2.csv"]
    assert names(f"{tmp_path}/**/a-*.csv") == ["a-1.csv", "a-2.csv", "a-3.csv"]
    assert names(f"{tmp_path}/[!a]-1.csv") == ["b-1.csv"]
    assert names([f"{tmp_path}/b-1.csv", f"{tmp_path}/a-1.csv", f"{tmp_path}/b*"]) == ["a-1.csv", "b-1.csv"]
    assert names(f"file://{tmp_path}/sub") == ["a-3.csv"]
    assert read(make_run(f"file://{tmp_path}/sub/*.csv")).rows_read == 4


def test_crlf_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    rows = [[*row[:-1], "x\r\ny"] if i == 2 else row for i, row in enumerate(ROWS)]
    plain = csv_text(rows, newline="\r\n").replace("two\nlines", "two lines")
    events = read_csv(tmp_path, b"\xef\xbb\xbf" + (plain + "\r\n\r\n").encode())
    assert events.table.column("row_id").to_pylist() == [1, 2, 3, 4]
    assert events.quarantine.num_rows == 0


def test_bad_cells_go_to_quarantine_with_row_and_reason(tmp_path: Path) -> None:
    header = "user,item,time,shown,click,rating,liked_at,price,tab,note\n"
    good = "1,2,1600000000,r,1,5,,1,a,b\n"
    bad = [
        (",2,1600000000,r,1,5,,1,a,b", "no user (column 'user')"),
        ("1,,1600000000,r,1,5,,1,a,b", "no item (column 'item')"),
        ("1,2,,r,1,5,,1,a,b", "no time (column 'time')"),
        ("1,2,noon,r,1,5,,1,a,b", "column 'time' is not a time in data.time_unit 's'"),
        ("1,2,0,r,1,5,,1,a,b", "column 'time' is a time before 1971 or after 2099"),
        ("1,2,1600000000,r,yes,5,,1,a,b", "column 'click' is not a number"),
        ("1,2,1600000000,r,2,5,,1,a,b", "tasks.click.label: a binary label must be 0 or 1; write a comparison, as"),
        ("1,2,1600000000,r,1,inf,,1,a,b", "tasks.rating.label: a label must be finite"),
        ("1,2,1600000000,r,1,5,late,1,a,b", "tasks.like.feedback_time: column 'liked_at' is not a time in"),
        ("1,2,1600000000,r,1,5,-1,1,a,b", "tasks.like.feedback_time: column 'liked_at' is before 1971"),
        ("1,2,1600000000,r,1,5,,cheap,a,b", "column 'price' is not a number"),
        ("1,2,1600000000,r,1,5", "6 cells instead of 10"),
        ("1,2,1600000000,r,1,5,,1,a,b,c", "11 cells instead of 10"),
    ]
    events = read_csv(tmp_path, header + good * 20 + "".join(line + "\n" + good for line, _ in bad))
    found = reasons(events)
    assert [row for row, _ in found] == [21 + 2 * i for i in range(len(bad))]
    for (_, reason), (line, expected) in zip(found, bad, strict=True):
        assert reason.startswith(expected), line
    kept = events.table.column("row_id").to_pylist()
    assert kept == [*range(1, 21), *(22 + 2 * i for i in range(len(bad)))]
    assert events.rows_read == 20 + 2 * len(bad)
    entry = events.quarantine.slice(0, 1).to_pylist()[0]
    assert entry["file"] == str(tmp_path / "log.csv")
    assert "1600000000" in entry["content"]


def test_missing_numbers_are_missing_not_bad(tmp_path: Path) -> None:
    words = ["", "nan", "NA", "null", "None", "\\N", " 4 ", "1e1"]
    text = "user,item,time,rating\n" + "".join(f"1,2,1600000000,{word}\n" for word in words)
    events = read_csv(
        tmp_path,
        text,
        data={"logs": str(tmp_path / "log.csv"), "columns": {"user": "user", "item": "item", "time": "time"}},
        tasks={"rating": {"kind": "regression", "label": "rating"}},
    )
    np.testing.assert_equal(events.table.column("label.rating").to_numpy(), [np.nan] * 6 + [4, 10])


def test_rows_that_are_not_utf8_go_to_quarantine(tmp_path: Path) -> None:
    lines = csv_text(ROWS[:2]).encode().splitlines(keepends=True)
    latin = "5,6,1600000000,r,1,5,,1,caf\xe9,x\n".encode("latin-1")
    short = "5,caf\xe9\n".encode("latin-1")
    events = read_csv(tmp_path, b"".join([lines[0], lines[1], latin, short, lines[2]]))
    assert reasons(events) == [(2, "not UTF-8"), (3, "2 cells instead of 10")]
    assert events.table.column("row_id").to_pylist() == [1, 4]
    assert "caf\\\\xe9" in events.quarantine.column("content").to_pylist()[1]


def test_a_file_without_any_utf8_is_all_quarantine(tmp_path: Path) -> None:
    text = "user,item,time,shown,click,rating,liked_at,price,tab,note\n" + "1,2,1600000000,r\xe9,1,5,,1,a,b\n" * 3
    events = read_csv(tmp_path, text.encode("latin-1"))
    assert (events.table.num_rows, events.quarantine.num_rows, events.rows_read) == (0, 3, 3)


@pytest.mark.parametrize(("encoding", "message"), [("utf-16", "UTF-16 text"), ("latin-1", "header line")])
def test_a_header_in_another_encoding_is_refused(tmp_path: Path, encoding: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path, "usér,item\n1,2\n".encode(encoding))


def test_an_unbalanced_quote_counts_every_line_it_swallows(tmp_path: Path) -> None:
    good = "1,2,1600000000,r,1,5,,1,a,b\n"
    events = read_csv(tmp_path, ",".join(HEADER) + "\n" + good + '1,"2,1600000000,r,1,5,,1,a,b\n' + good * 9)
    assert events.table.num_rows == 1
    assert events.quarantine.num_rows == 10
    assert "unbalanced quote" in events.quarantine.column("reason")[0].as_py()


def test_bad_json_lines_go_to_quarantine_with_their_line(tmp_path: Path) -> None:
    good = json.dumps(dict(zip(HEADER, ROWS[0], strict=True))).encode()
    lines = [good, b"{broken", b"", b"[1, 2]", good.replace(b"home", b"\xff"), good]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    events = read(make_run(path))
    assert reasons(events) == [(2, "not JSON"), (4, "not a JSON object"), (5, "not UTF-8")]
    assert events.table.column("row_id").to_pylist() == [1, 6]


def test_json_ids_of_mixed_types_are_text(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    ids = [1, "x", 2**64, 2.0]
    base = dict(zip(HEADER, ROWS[0], strict=True))
    path.write_text("".join(json.dumps({**base, "user": user}) + "\n" for user in ids))
    assert read(make_run(path)).table.column("user").to_pylist() == ["1", "x", str(2**64), "2.0"]


def test_parquet_types(tmp_path: Path) -> None:
    moment = datetime(2020, 5, 17, 12, 0, 0, 250, tzinfo=UTC)
    table = pa.table(
        {
            "user": pa.array([1.0, None, 3.0]),
            "item": pa.array(["a", "b", "a"]).dictionary_encode(),
            "time": pa.array([moment] * 3, pa.timestamp("ns", "Europe/Paris")),
            "click": pa.array([True, False, None]),
            "blob": pa.array([b"ok", b"ok", b"\xff"]),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    run = make_run(
        tmp_path / "log.parquet",
        data={
            "logs": str(tmp_path / "log.parquet"),
            "columns": {"user": "user", "item": "item", "time": "time"},
            "categories": ["blob"],
        },
        tasks={"click": {"label": "click"}},
    )
    events = read(run)
    assert events.table.column("user").to_pylist() == ["1"], "a float id is the whole number it stands for"
    assert events.table.column("item").to_pylist() == ["a"]
    assert events.table.column("time").to_pylist() == [int(moment.timestamp()) * 10**6 + 250]
    assert reasons(events) == [(2, "no user (column 'user')"), (3, "not UTF-8")]


MAY = 1_589_716_800
"""2020-05-17T12:00:00Z in seconds."""


@pytest.mark.parametrize(
    ("unit", "cells", "expected"),
    [
        ("s", [MAY, f"{MAY}.25", f" {MAY}"], [0, 250_000, 0]),
        ("ms", [MAY * 1000 + 7], [7000]),
        ("us", [MAY * 10**6 + 7], [7]),
        ("ns", [MAY * 10**9 + 7999, f"{MAY * 10**9 + 7999}.0"], [7, 7]),
        ("iso", ["2020-05-17T12:00:00", "2020-05-17 12:00:00.5"], [0, 500_000]),
        ("iso", ["2020-05-17T12:00:00Z", "2020-05-17T14:00:00.000001+02:00"], [0, 1]),
        ("iso", ["2020-05-17T12:00:00Z", "2020-05-17T12:00:00", "2020-05-17"], [0, 0, -12 * 3600 * 10**6]),
    ],
)
def test_time_units(tmp_path: Path, unit: str, cells: list[Any], expected: list[int]) -> None:
    text = ",".join(HEADER) + "\n" + "".join(f"1,2,{cell},r,1,5,,1,a,b\n" for cell in cells)
    times = read_csv(tmp_path, text, data__time_unit=unit).table.column("time").to_numpy() - MAY * 10**6
    if unit == "ns":
        assert abs(times - expected).max() <= 1, "a decimal of this size is only known to 256 ns"
    else:
        assert times.tolist() == expected


@pytest.mark.parametrize(
    ("declared", "cell", "right"),
    [
        ("s", MAY * 1000, "ms"),
        ("ms", MAY, "s"),
        ("s", MAY * 10**9, "ns"),
        ("s", "2020-05-17", "iso"),
        ("iso", MAY, "s"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_wrong_unit_is_refused_with_the_right_one(
    tmp_path: Path, kind: str, declared: str, cell: Any, right: str
) -> None:
    path = write(tmp_path, kind, [[1, 2, cell, *ROWS[0][3:]]] * 3)
    with pytest.raises(DataError, match=rf"data\.time_unit: '{declared}' .* Set data\.time_unit: {right}\."):
        read(make_run(path, data__time_unit=declared))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.logs: no file '.*/absent\.csv'"):
        find_files(make_run(tmp_path / "absent.csv").data)
    with pytest.raises(DataError, match=r"data\.logs: no file '.*/\*\.csv'"):
        find_files(make_run(f"{tmp_path}/*.csv").data)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="none of the 1 files"):
        find_files(make_run(tmp_path).data)
    with pytest.raises(DataError, match=r"cannot tell the format of .*notes\.txt"):
        find_files(make_run(tmp_path / "notes.txt").data)
    with pytest.raises(DataError, match="Cannot open 'nowhere://bucket/log'"):
        find_files(make_run("nowhere://bucket/log").data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__columns": {"user": "usr", "item": "item", "time": "time"}}, r"data\.columns\.user: no column 'usr' .*"
         r"Did you mean 'user'\? .*A log needs a column that says whose row"),
        ({"data__columns": {"user": "user", "item": "item", "time": "when"}}, r"data\.columns\.time: no column 'when'"
         r".* A log needs a column with the time"),
        ({"tasks__click": {"label": "clik == 1"}}, r"tasks\.click\.label: no column 'clik' .* Did you mean 'click'"),
        ({"data__categories": ["colour"]}, r"data\.categories\[0\]: no column 'colour'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_unknown_columns_are_refused(tmp_path: Path, kind: str, change: dict[str, Any], message: str) -> None:
    run = make_run(write(tmp_path, kind), **change)
    with pytest.raises(DataError, match=message):
        check_log(find_files(run.data), run)


def test_json_lines_may_leave_out_what_is_not_needed_in_each(tmp_path: Path) -> None:
    write(tmp_path, "jsonl")
    sparse = {"user": 1, "item": 2, "time": 1_600_000_000}
    (tmp_path / "more.jsonl").write_text(json.dumps(sparse) + "\n")
    events = read(make_run(tmp_path))
    assert np.isnan(events.table.column("label.click").to_pylist()[-1])


@pytest.mark.parametrize(("kind", "content"), [("csv", csv_text([])), ("jsonl", ""), ("jsonl", "\n\n")])
def test_an_empty_log_is_refused(tmp_path: Path, kind: str, content: str) -> None:
    (tmp_path / f"log.{kind}").write_text(content)
    run = make_run(tmp_path)
    with pytest.raises(DataError, match="the log is empty: no row in 1 file"):
        check_log(find_files(run.data), run)


def test_an_empty_csv_has_no_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv' is empty; a CSV file begins with"):
        read_csv(tmp_path, "")


def test_an_empty_shard_beside_full_ones_is_fine(tmp_path: Path) -> None:
    write(tmp_path, "csv")
    (tmp_path / "a.csv").write_text(csv_text([]))
    run = make_run(tmp_path)
    check_log(find_files(run.data), run)
    assert read(run).rows_read == 4


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_is_not_parquet_is_named(tmp_path: Path, cut: bool) -> None:
    write(tmp_path, "parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "part-2.parquet").write_bytes(whole[:-100] if cut else b"user,item\n1,2\n")
    with pytest.raises(
        DataError, match=r"part-2\.parquet' .* is not a complete Parquet file: .*Remedy: write it again"
    ):
        read(make_run(tmp_path))


def test_batches_are_bounded_and_keep_row_numbers(tmp_path: Path) -> None:
    good = "1,2,1600000000,r,1,5,,1,a,b\n"
    path = tmp_path / "log.csv"
    path.write_text(",".join(HEADER) + "\n" + good * 70_000 + "short\n" + good * 70_000)
    run = make_run(path)
    batches = list(read_events(find_files(run.data)[0], 3, run))
    assert max(batch.table.num_rows for batch in batches) <= 65_536
    rows = np.concatenate([batch.table.column("row_id").to_numpy() for batch in batches]) - (3 << 40)
    assert rows.tolist() == [*range(1, 70_001), *range(70_002, 140_002)]
    assert [reasons(batch) for batch in batches if batch.quarantine.num_rows] == [[(70_001, "1 cells instead of 10")]]
