"""Columns that appear, widen, narrow, or change their meaning from one file to the next."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.errors import DataError
from tests.data.by_hand import config
from tests.data.log_files import read

START = 1_600_000_000


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(day: int, **columns: Any) -> None:
    """A day of five rows; a column is what is given in place of the usual one, None = it is absent."""
    usual = {
        "user": [f"u{i}" for i in range(5)],
        "item": [1, 2, 3, 4, 5],
        "time": [START + day * 86400 + i for i in range(5)],
        "like": [0, 1, 0, 1, 0],
        "tab": ["a", "b", "a", "b", "a"],
        "price": pa.array([1, 2, 3, 4, 5], pa.int32()),
    }
    kept = {name: column for name, column in {**usual, **columns}.items() if column is not None}
    Path("logs").mkdir(exist_ok=True)
    pq.write_table(pa.table(kept), f"logs/day-{day}.parquet")


def run(**parts: Any) -> Any:
    settings = {"data__logs": "logs", "data__categories": ["tab"], "data__numbers": ["price"]}
    return config(**{**settings, "features__aggregates": [], **parts})


def test_columns_appear_and_widen(capsys: pytest.CaptureFixture[str]) -> None:
    write(1, tab=None, price=None, like=pa.array([True, False, True, False, True]))
    write(2)
    write(3, price=pa.array([1, 2, 3, 4, 5], pa.int64()), like=None)
    write(4, price=pa.array([0.5, 2, 3, 4, 5], pa.float64()))
    asked = run()
    table = read(asked).table
    assert np.isnan(table["number.price"].to_numpy()[:5]).all()
    assert table["number.price"].to_numpy()[5:].tolist() == [*[1, 2, 3, 4, 5] * 2, 0.5, 2, 3, 4, 5]
    assert table["category.tab"].to_pylist()[:5] == [None] * 5
    labels = table["label.like"].to_numpy()
    assert labels[:10].tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert np.isnan(labels[10:15]).all(), "what no column says was not observed"
    manifest = prepare(asked, serial_tasks).manifest
    assert (manifest.tasks[0].observed["train"], manifest.counts["candidates"]) == (11, 20)
    assert "Column 'like' is absent in 1 of 4 files: not observed there" in capsys.readouterr().err


def test_a_column_that_no_file_has_is_a_mistake() -> None:
    write(1, price=None)
    write(2, price=None)
    with pytest.raises(DataError, match=r"data\.numbers\[0\]: no column 'price' in .*day-1\.parquet'"):
        check_log(find_files(run().data), run())


@pytest.mark.parametrize("column", ["user", "item", "time"])
def test_ids_and_times_must_be_in_every_file(column: str) -> None:
    write(1)
    write(2, **{column: None})
    with pytest.raises(DataError, match=rf"data\.columns\.{column}: no column '{column}' in .*day-2\.parquet'"):
        prepare(run(), serial_tasks)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"price": pa.array([1, 2, 3, 4, 5], pa.int16())}, "'price' narrows: it is int32 .* and int16"),
        ({"price": pa.array([1, 2, 3, 4, 5], pa.uint32())}, "'price' narrows: it is int32 .* and uint32"),
        ({"price": ["1", "2", "3", "4", "5"]}, "'price' changes its type: it is int32 .* and string"),
        ({"tab": [7, 8, 7, 8, 7]}, "'tab' changes its type: it is string .* and int64"),
        ({"like": pa.array([1, 0, 1, 0, 1], pa.int8())}, "'like' narrows: it is int64 .* and int8"),
    ],
)
def test_narrowing_and_another_type_are_refused(changed: dict[str, Any], message: str) -> None:
    """With the file before, though an earlier one had it too, and the first of those that changed."""
    write(1)
    write(2)
    write(3, **changed)
    write(4, **changed)
    with pytest.raises(DataError, match=rf"column {message}") as error:
        prepare(run(), serial_tasks)
    assert "day-2.parquet', and" in str(error.value)
    assert "day-3.parquet' on." in str(error.value)


def test_a_float_that_becomes_an_integer_narrows_and_empty_columns_say_nothing() -> None:
    write(1, price=pa.array([1.5] * 5, pa.float32()))
    write(2, price=pa.nulls(5))
    write(3)
    with pytest.raises(DataError, match=r"'price' narrows: it is float in .*day-1\.parquet', and int32"):
        prepare(run(), serial_tasks)


def test_whole_numbers_on_days_with_and_without_gaps_are_one_type() -> None:
    write(1, price=pa.array([1.0, None, 3.0, 4.0, 5.0], pa.float64()))
    write(2, price=pa.array([1, 2, 3, 4, 5], pa.int64()))
    write(3, price=pa.array([1.0, None, 3.0, 4.0, 5.0], pa.float64()))
    assert prepare(run(), serial_tasks).manifest.counts["rows_read"] == 15


@pytest.mark.parametrize(("declared", "factor", "looks"), [("s", 1000, "ms"), ("ms", 0.001, "s")])
def test_a_change_of_unit_is_refused_with_both_files(declared: str, factor: float, looks: str) -> None:
    scale = 1 if declared == "s" else 1000
    for day in range(1, 5):
        jump = factor if day >= 3 else 1
        write(day, time=[int((START + day * 86400 + i) * scale * jump) for i in range(5)])
    with pytest.raises(DataError, match=rf"column 'time' changes its unit: .*'{looks}' would fit") as error:
        prepare(run(data__time_unit=declared), serial_tasks)
    assert f"day-2.parquet' its times are in '{declared}', as declared, but from" in str(error.value)
    assert "day-3.parquet' on they are not" in str(error.value)


def test_a_wrong_unit_from_the_first_file_on_is_a_wrong_setting() -> None:
    for day in (1, 2):
        write(day, time=[(START + day) * 1000] * 5)
    with pytest.raises(DataError, match=r"data\.time_unit: 's' does not fit .* Set data\.time_unit: ms\."):
        prepare(run(), serial_tasks)


def test_lines_of_json_have_numbers_and_text(tmp_path: Path) -> None:
    for day, (tab, price) in enumerate([('"a"', 1), ('"b"', 0.5), ('"a"', 2), ("3", 2)]):
        line = f'{{"user": 1, "item": 1, "time": {START + day}, "like": 1, "tab": {tab}, "price": {price}}}\n'
        (tmp_path / f"day-{day}.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"'tab' changes its type: it is string in .*day-2\.jsonl', and double"):
        prepare(run(data__logs=str(tmp_path)), serial_tasks)


def test_ids_may_change_their_type() -> None:
    write(1)
    write(2, item=["1", "2", "3", "4", "5"])
    assert read(run()).table["item"].to_pylist() == ["1", "2", "3", "4", "5"] * 2
    prepare(run(), serial_tasks)
