import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import Table
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.preparing.notes import table_notes
from mtrec_ray.data.reading.tables import EntityTable, read_entities
from mtrec_ray.errors import ConfigError, DataError, UserError

ITEMS: dict[str, list[Any]] = {
    "id": [3, 1, 2],
    "title": ["Heat (1995)", "Amélie", None],
    "genres": ["Crime | Drama|", None, "Drama"],
    "lang": ["en", "fr", None],
    "price": [9.5, None, 0],
}
SETTINGS: dict[str, Any] = {
    "key": "id",
    "text": "{title} [{genres}]",
    "categories": [{"column": "genres", "separator": "|"}, "lang"],
    "numbers": ["price", {"column": "title", "pattern": r"\((\d{4})\)", "name": "year"}],
}


def write(folder: Path, kind: str, items: dict[str, list[Any]] = ITEMS) -> Path:
    path = folder / f"items.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(items), path)
        return path
    rows = [dict(zip(items, row, strict=True)) for row in zip(*items.values(), strict=True)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = [["" if cell is None else str(cell) for cell in row.values()] for row in rows]
        path.write_text("".join(",".join(row) + "\n" for row in [list(items), *cells]))
    return path


def read(path: Path | str, **changes: Any) -> EntityTable:
    return read_entities(Table.model_validate({**SETTINGS, "path": str(path), **changes}))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_table(tmp_path: Path, kind: str) -> None:
    table = read(write(tmp_path, kind))
    assert table.keys.to_pylist() == ["3", "1", "2"]
    assert table.text == ["Heat (1995) [Crime | Drama|]", "Amélie []", "[Drama]"]
    assert table.categories == {"genres": [["Crime", "Drama"], [], ["Drama"]], "lang": [["en"], ["fr"], []]}
    np.testing.assert_equal(table.numbers, {"price": [9.5, np.nan, 0], "year": [1995, np.nan, np.nan]})
    assert (table.duplicates, table.bad, table.rows_read) == (0, [], 3)


def test_lookup(tmp_path: Path) -> None:
    table = read(write(tmp_path, "csv"))
    assert table.lookup(["2", "nobody", None, "3", "3"]).tolist() == [2, -1, -1, 0, 0]
    assert table.lookup(pa.chunked_array([["1"], ["2"]])).tolist() == [1, 2]
    assert table.lookup([]).tolist() == []


def test_lists_are_several_categories(tmp_path: Path) -> None:
    table = read(
        write(tmp_path, "parquet", {"id": ["a", "b"], "tags": [["x", None, "y"], None]}),
        text="{tags}",
        categories=["tags"],
        numbers=[],
    )
    assert table.categories == {"tags": [["x", "y"], []]}
    assert table.text == ["x, y", ""]


def test_sharded_table(tmp_path: Path) -> None:
    (tmp_path / "part-1.csv").write_text("id,title\n1,a\n")
    (tmp_path / "part-0.csv").write_text("id,title\n2,b\n")
    table = read(tmp_path, text="{title}", categories=[], numbers=[])
    assert table.keys.to_pylist() == ["2", "1"]
    assert table.text == ["b", "a"]


def test_the_first_of_several_rows_with_one_key_counts(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,title\n1,a\n2,b\n1,a\n1,c\n")
    table = read(tmp_path / "items.csv", text="{title}", categories=[], numbers=[])
    assert table.keys.to_pylist() == ["1", "2"]
    assert table.text == ["a", "b"]
    assert (table.duplicates, table.rows_read) == (1, 4), "the identical repetition does not count"
    (note,) = table_notes(Tables(items=None, users=table))
    assert note.startswith(
        "data.users: 1 row(s) have the key of an earlier row and other content; the earlier one counts."
    )
    assert note.endswith("name its column in data.users.valid_from")
    assert table_notes(Tables(items=replace(table, duplicates=0), users=None)) == []


def test_bad_rows_are_left_out_and_listed(tmp_path: Path) -> None:
    lines = [b"id,title,price", b"1,a,2", b",b,2", b"3,c,cheap", b"4,caf\xe9,1", b"5", b"6,d,"]
    (tmp_path / "items.csv").write_bytes(b"\n".join(lines))
    table = read(tmp_path / "items.csv", text="{title}", categories=[], numbers=["price"])
    assert table.keys.to_pylist() == ["1", "6"]
    assert sorted((bad.row, bad.reason) for _, bad in table.bad) == [
        (2, "no key (column 'id')"),
        (3, "column 'price' is not a number"),
        (4, "not UTF-8"),
        (5, "1 cells instead of 3"),
    ]
    assert table.rows_read == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "idd"}, r"data\.items\.key: no column 'idd' in .*items\.csv'\. Did you mean 'id'\? Known: genres"),
        ({"text": "{titel}"}, r"data\.items\.text: no column 'titel' .* Did you mean 'title'\?"),
        ({"text": "{title"}, r"data\.items\.text: '\{title' is not a template"),
        ({"text": "{title:>9}"}, "only column names may stand in braces"),
        ({"categories": ["genre"]}, r"data\.items\.categories\[0\]: no column 'genre'"),
        ({"numbers": ["cost"]}, r"data\.items\.numbers\[0\]: no column 'cost'"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, "csv"), **changes)


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "not a regular expression"), ("x", "no group"), ("(.)", "first group")]
)
def test_patterns_must_extract_numbers(tmp_path: Path, pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.items\.numbers\[0\]\.pattern: .*{message}"):
        read(write(tmp_path, "csv"), numbers=[{"column": "title", "pattern": pattern}])


def test_absent_broken_and_empty_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.items\.path: no file '.*/absent\.csv'"):
        read(tmp_path / "absent.csv")
    (tmp_path / "items.parquet").write_text("id\n1\n")
    with pytest.raises(DataError, match=r"items\.parquet' .* is not a complete Parquet file"):
        read(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"data\.items\.path: no row in 1 file"):
        read(write(tmp_path, "csv", {name: [] for name in ITEMS}))


def test_a_table_of_which_no_row_can_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,since\n1,1704067200\n2,1704067201\n")
    read(tmp_path / "items.csv", text=None, categories=[], numbers=[], valid_from="since")
    why = r"none of 2 row\(s\) in 1 file\(s\) .* row 1 of '.*items\.csv': column 'since' is not a time in unit 'ms'"
    with pytest.raises(DataError, match=why):
        read_entities(Table(path=str(tmp_path / "items.csv"), key="id", valid_from="since"), unit="ms")
