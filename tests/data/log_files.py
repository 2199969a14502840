"""Log files in every format, written by hand, and what is read from them."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.config_file import validate
from mtrec_ray.data.reading.logs import Events, find_files, read_events

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
