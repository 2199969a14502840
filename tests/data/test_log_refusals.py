"""Logs that cannot be read at all are refused, with what to do."""

from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.errors import DataError
from tests.data.log_files import csv_text, make_run, read, read_csv, write


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


@pytest.mark.parametrize(("kind", "content"), [("csv", csv_text([])), ("jsonl", ""), ("jsonl", "\n\n")])
def test_an_empty_log_is_refused(tmp_path: Path, kind: str, content: str) -> None:
    (tmp_path / f"log.{kind}").write_text(content)
    run = make_run(tmp_path)
    with pytest.raises(DataError, match="the log is empty: no row in 1 file"):
        check_log(find_files(run.data), run)


def test_an_empty_csv_has_no_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv' is empty; a CSV file begins with"):
        read_csv(tmp_path, "")


@pytest.mark.parametrize(("encoding", "message"), [("utf-16", "UTF-16 text"), ("latin-1", "header line")])
def test_a_header_in_another_encoding_is_refused(tmp_path: Path, encoding: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path, "usér,item\n1,2\n".encode(encoding))


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_is_not_parquet_is_named(tmp_path: Path, cut: bool) -> None:
    write(tmp_path, "parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "part-2.parquet").write_bytes(whole[:-100] if cut else b"user,item\n1,2\n")
    with pytest.raises(
        DataError, match=r"part-2\.parquet' .* is not a complete Parquet file: .*Remedy: write it again"
    ):
        read(make_run(tmp_path))
