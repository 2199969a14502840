"""Single things that `test_bad_input` found once, each with what it must come to."""

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import Task
from mtrec_ray.data.filesystem import find, open_atomic, open_fs, write_atomic
from mtrec_ray.data.inspection.glimpse import Glimpse
from mtrec_ray.data.reading.cells import as_micros
from mtrec_ray.data.reading.expressions import evaluate
from mtrec_ray.data.reading.formats import column_names, find_shards
from mtrec_ray.errors import ConfigError, DataError
from tests.data.log_files import make_run, read, read_csv, reasons, write

HEADER = "user,item,time,shown,click,rating,liked_at,price,tab,note\n"


def test_links_to_a_folder_above_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "log.csv").write_text("user\n")
    for name in ("again", "day/once more"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "other name").symlink_to(tmp_path / "day")  # no loop: another name of the same files
    assert [file.name for file in find(str(tmp_path))] == ["day/log.csv", "other name/log.csv"]


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["user", "user"]), path)
    with pytest.raises(DataError, match=r"log\.parquet' has several columns named 'user'"):
        column_names(find_shards(str(path), "auto", "data.logs")[0])


def test_a_parquet_file_that_is_called_csv_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet").rename(tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"is a Parquet file, though its name or data\.format says CSV"):
        column_names(find_shards(str(path), "auto", "data.logs")[0])


def test_times_that_python_has_no_value_for_are_quarantined(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet")
    table = pq.read_table(path)
    stamps = pa.array([1_600_000_000, 10**15, -(10**15), None], pa.int64()).cast(pa.timestamp("s"))
    pq.write_table(table.set_column(2, "time", stamps), path)
    events = read(make_run(path))
    assert events.table.num_rows == 1
    assert [(row, reason[:26]) for row, reason in reasons(events)] == [
        (2, "column 'time' is a time be"),
        (3, "column 'time' is a time be"),
        (4, "no time (column 'time')"),
    ]


def test_timestamps_that_overflow_do_not_come_back_as_others() -> None:
    wrapped = (2**64 + 1_600_000_000 * 10**6) // 10**6  # seconds, which are 1.6e15 microseconds modulo 2**64
    times = as_micros(pa.chunked_array([pa.array([wrapped], pa.int64()).cast(pa.timestamp("s"))]), "s")
    assert times.implausible.tolist() == [True]


def test_half_a_character_in_json_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    with path.open("a") as file:
        file.write('{"user": "\\ud83d", "item": 1, "time": 1600000000}\n')
        file.write('{"user": "\\ud83d\\ude00", "item": 1, "time": 1600000000, "click": 1}\n')
    events = read(make_run(path))
    assert reasons(events) == [(5, "half of a character (\\ud800 to \\udfff alone)")]
    assert "😀" in events.table["user"].to_pylist()


def test_numbers_that_a_batch_cannot_hold_are_bad_rows(tmp_path: Path) -> None:
    rows = "7,10,1600000000,r,1,{rating},,{price},home,x\n"
    cells = [("3", "1"), ("3", "inf"), ("3", "1e39"), ("1e39", "1")]
    text = HEADER + "".join(rows.format(rating=rating, price=price) for rating, price in cells)
    events = read_csv(tmp_path, text)
    assert events.table.num_rows == 1
    assert reasons(events) == [
        (2, "column 'price' is not finite, as a number of 32 bits"),
        (3, "column 'price' is not finite, as a number of 32 bits"),
        (4, "tasks.rating.label: a label must be finite"),
    ]


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(DataError, match=r"Cannot write '.*/file/deeper/x': Not a directory"):
        write_atomic(pafs.LocalFileSystem(), str(tmp_path / "file" / "deeper" / "x"), b"")
    with pytest.raises(DataError, match=r"Cannot write '.*/x': No space left on device\. Make room"):
        _write_half(str(tmp_path / "x"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _write_half(path: str) -> None:
    with open_atomic(pafs.LocalFileSystem(), path) as stream:
        stream.write(b"half")
        raise OSError(28, "full")


@pytest.mark.parametrize("path", ["a\0b", "s3://a\0b"])
def test_a_path_with_a_zero_byte_is_none(path: str) -> None:
    with pytest.raises(DataError, match="is no path"):
        open_fs(path)


def test_a_glob_that_is_none_is_told() -> None:
    with pytest.raises(DataError, match=r"'\[z-a\]' is no glob"):
        find("[z-a]")


@pytest.mark.parametrize("expression", ["-" * 5_000 + "a", "+".join(["a"] * 5_000), "a > " + "9" * 400])
def test_expressions_beyond_python_are_refused(expression: str) -> None:
    with pytest.raises(ConfigError, match="where: "):
        evaluate(expression, {"a": pa.array([1.0]).to_numpy()}, "where")


def test_durations_end_at_a_hundred_years() -> None:
    assert Task(label="a", feedback_delay="36500d").feedback_delay == 36_500 * 86_400
    with pytest.raises(ValueError, match="less than or equal to"):
        Task(label="a", feedback_delay="36501d")


def test_a_glimpse_of_files_that_no_type_holds_together_is_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": [0.5, 1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["x"], "c": [[1]]}), tmp_path / "2.parquet")
    glimpse = Glimpse(find_shards(str(tmp_path), "auto", "data.logs"), "data.logs")
    assert glimpse.texts("a") == ["1", "2", "x"]
    assert glimpse.table["b"].to_pylist() == [0.5, 1, None]
