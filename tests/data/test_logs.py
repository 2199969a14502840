import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.reading.logs import check_log, event_schema, find_files, read_events
from tests.data.log_files import HEADER, ROWS, csv_text, make_run, read, read_csv, reasons, write


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


def test_json_lines_may_leave_out_what_is_not_needed_in_each(tmp_path: Path) -> None:
    write(tmp_path, "jsonl")
    sparse = {"user": 1, "item": 2, "time": 1_600_000_000}
    (tmp_path / "more.jsonl").write_text(json.dumps(sparse) + "\n")
    events = read(make_run(tmp_path))
    assert np.isnan(events.table.column("label.click").to_pylist()[-1])


def test_an_empty_shard_beside_full_ones_is_fine(tmp_path: Path) -> None:
    write(tmp_path, "csv")
    (tmp_path / "a.csv").write_text(csv_text([]))
    run = make_run(tmp_path)
    check_log(find_files(run.data), run)
    assert read(run).rows_read == 4


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
