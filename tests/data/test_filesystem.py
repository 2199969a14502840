from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.filesystem import find, open_atomic, open_fs, write_atomic, write_table_atomic
from mtrec_ray.errors import DataError


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_written_files_are_found_and_replaced(tmp_path: Path, prefix: str) -> None:
    fs, path = open_fs(f"{prefix}{tmp_path}/new/folder/a.bin")
    write_atomic(fs, path, b"old")
    write_atomic(fs, path, b"longer")
    assert Path(path).read_bytes() == b"longer"
    assert [(file.path, file.size) for file in find(f"{prefix}{tmp_path}")] == [(prefix + path, 6)]
    assert find(f"{prefix}{tmp_path}/absent") == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    fs, path = open_fs(str(tmp_path / "a.bin"))
    write_atomic(fs, path, b"old")

    def half() -> None:
        with open_atomic(fs, path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.bin", b"old")]


def test_tables(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]})
    write_table_atomic(*open_fs(str(tmp_path / "t.parquet")), table, row_group_size=2)
    shard = pq.ParquetFile(tmp_path / "t.parquet")
    assert shard.read().equals(table)
    assert shard.num_row_groups == 2


def test_an_unknown_kind_of_url_is_named() -> None:
    with pytest.raises(DataError, match=r"Cannot open 'nowhere://bucket/log'.*credentials.*network"):
        open_fs("nowhere://bucket/log")
