"""Hive partitions: chosen by range while the folders are walked, and as columns."""

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from mtrec_ray.data import filesystem
from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.errors import ConfigError, DataError
from tests.data.log_files import ROWS, make_run, read, write

JANUARY = {"first": "2026-01-30", "last": "2026-01-31"}


class CountingFileSystem:
    """A local file system that notes which folders are listed."""

    type_name = "local"

    def __init__(self) -> None:
        self.listed: list[str] = []
        self.local = pafs.LocalFileSystem()

    def get_file_info(self, asked: Any) -> Any:
        if isinstance(asked, pafs.FileSelector):
            assert not asked.recursive
            self.listed.append(asked.base_dir)
        return self.local.get_file_info(asked)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three days of two hours, each with one row of its own user, beside what Spark leaves there."""
    user = 0
    for day in ("2026-01-29", "2026-01-30", "2026-01-31", "2026-02-01"):
        for hour in ("00", "07", "23"):
            folder = tmp_path / "logs" / f"dt={day}" / f"hr={hour}"
            folder.mkdir(parents=True)
            write(folder, "parquet", [[user, *ROWS[0][1:]]])
            user += 1
    (tmp_path / "logs" / "_SUCCESS").write_text("")
    (tmp_path / "logs" / "_temporary").mkdir()
    return tmp_path / "logs"


def users(path: Path, partitions: dict[str, Any], **changes: Any) -> list[str]:
    return read(make_run(path, data__partitions=partitions, **changes)).table["user"].to_pylist()


@pytest.mark.parametrize(
    ("partitions", "expected"),
    [
        ({"dt": JANUARY}, [3, 4, 5, 6, 7, 8]),
        ({"dt": JANUARY, "hr": {"first": 7, "last": 7}}, [4, 7]),
        ({"dt": {"first": "2026-01-31"}, "hr": {"last": "07"}}, [6, 7, 9, 10]),
        ({"hr": {"first": 8}}, [2, 5, 8, 11]),
        ({"dt": {}}, list(range(12))),
    ],
)
def test_a_range_includes_both_of_its_ends(log: Path, partitions: dict[str, Any], expected: list[int]) -> None:
    assert users(log, partitions) == [str(user) for user in expected]


def test_a_glob_and_a_range_together(log: Path) -> None:
    run = make_run(str(log / "**" / "hr=07" / "*.parquet"), data__partitions={"dt": JANUARY})
    assert read(run).table["user"].to_pylist() == ["4", "7"]


def test_nothing_is_listed_below_a_folder_out_of_range(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = CountingFileSystem()
    monkeypatch.setattr(filesystem, "open_fs", lambda path: (counting, path))
    run = make_run(log, data__partitions={"dt": JANUARY, "hr": {"first": 0, "last": 7}})
    assert len(find_files(run.data)) == 4
    listed = sorted(Path(folder).relative_to(log).as_posix() for folder in counting.listed)
    assert listed == [
        ".",
        *("dt=2026-01-30", "dt=2026-01-30/hr=00", "dt=2026-01-30/hr=07"),
        *("dt=2026-01-31", "dt=2026-01-31/hr=00", "dt=2026-01-31/hr=07"),
    ]


def test_a_key_is_a_column_where_rows_lack_it(log: Path) -> None:
    run = make_run(log, data__partitions={"dt": JANUARY, "hr": {}}, data__categories=["hr", "tab"])
    check_log(find_files(run.data), run)
    table = read(run).table
    assert table["category.hr"].to_pylist() == ["00", "07", "23"] * 2
    assert set(table["category.tab"].to_pylist()) == {"home"}


def test_a_column_of_the_rows_comes_before_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tab=folder"
    folder.mkdir()
    write(folder, "csv")
    run = make_run(tmp_path, data__partitions={"tab": {}})
    assert read(run).table["category.tab"].to_pylist() == ["home", "home", None, "søk"]


def test_escaped_values_and_null_partitions(tmp_path: Path) -> None:
    for value in ("a%2Fb", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"place={value}").mkdir()
        write(tmp_path / f"place={value}", "csv", ROWS[:1])
    run = make_run(tmp_path, data__partitions={"place": {}}, data__categories=["place"], data__numbers=[])
    assert read(run).table["category.place"].to_pylist() == [None, "a/b"]
    run = make_run(tmp_path, data__partitions={"place": {"first": "a"}}, data__categories=["place"], data__numbers=[])
    assert read(run).table["category.place"].to_pylist() == ["a/b"], "no value lies in no range"


@pytest.mark.parametrize(
    ("partitions", "error", "message"),
    [
        ({"dt": {"first": "20260130"}}, DataError, r"folder 'dt=2026-01-29' cannot be compared with '20260130'"),
        ({"dt": {"first": "2027-01-01"}}, DataError, r"no file at .* in the partitions dt from 2027-01-01\."),
        (
            {"dt": {"first": "2027-01-01"}},
            DataError,
            r"Outside of them lies dt=2026-01-29 to dt=2026-0.*change data\.p",
        ),
        ({"day": {}}, DataError, r"data\.partitions\.day: .* lies in no folder 'day=\.\.\.'"),
        ({"hr": {"first": 9, "last": 10}}, DataError, r"in the partitions hr from 9 to 10"),
        ({"hr": {"first": 10, "last": 9}}, ConfigError, r"data\.partitions\.hr: first '10' lies after last '9'"),
    ],
)
def test_what_is_refused(log: Path, partitions: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_files(make_run(log, data__partitions=partitions).data)
