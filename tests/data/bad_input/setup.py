"""A small setup with everything in it that can be damaged: logs, feedback, tables, and the config that reads them."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

Row = dict[str, Any]
START = 1_704_067_200  # 2024-01-01
DAY = 86_400
TIME_COLUMNS = ("ts", "since", "liked_at")
FORMATS = ("parquet", "csv", "csv.gz", "jsonl", "tsv")


@dataclass
class Source:
    """One file to be: its rows, and how they are written."""

    path: str
    rows: list[Row]
    format: str
    header: list[str] = field(default_factory=list)
    """Columns in their order; those of the first row by default"""

    @property
    def columns(self) -> list[str]:
        return self.header or list(self.rows[0] if self.rows else {"nothing": None})


@dataclass
class Setup:
    """What lies in `folder` once it is written. `random` decides everything, so that a failure can be shrunk."""

    folder: Path
    random: random.Random
    config: dict[str, Any]
    log: list[Source]
    feedback: list[Source]
    tables: dict[str, Source]
    """items, users, map"""
    then: list[Callable[[], None]] = field(default_factory=list)
    """Damage done to the files once they are written"""
    during: list[Callable[[pytest.MonkeyPatch], None]] = field(default_factory=list)
    """What happens while the verb runs"""
    lost: bool = False
    """Whether rows are missing or added that the sources do not know of"""

    @property
    def sources(self) -> list[Source]:
        return [*self.log, *self.feedback, *self.tables.values()]

    def path(self, source: Source) -> Path:
        return self.folder / source.path

    def write(self) -> Path:
        """Writes everything; the path of the config."""
        for source in self.sources:
            path = self.path(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(source))
        for damage in self.then:
            damage()
        (self.folder / "run.yaml").write_text(yaml.safe_dump(self.config), encoding="utf-8")
        return self.folder / "run.yaml"


def content(source: Source) -> bytes:
    """The bytes of a good file."""
    if source.format == "parquet":
        arrays = [_column([row.get(name) for row in source.rows]) for name in source.columns]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(arrays, names=source.columns), sink)
        return sink.getvalue()
    if source.format == "jsonl":
        lines = [{name: row[name] for name in source.columns if row.get(name) is not None} for row in source.rows]
        return "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines).encode(
            "utf-8", "surrogatepass"
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if source.format == "tsv" else ",")
    writer.writerow(source.columns)
    for row in source.rows:
        writer.writerow(["" if row.get(name) is None else row[name] for name in source.columns])
    written = text.getvalue().encode("utf-8", "surrogatepass")
    return gzip.compress(written, mtime=0) if source.format == "csv.gz" else written


def _column(cells: list[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.array([None if c is None else str(c).encode("utf-8", "surrogatepass") for c in cells], pa.binary())


def any_source(setup: Setup) -> Source:
    return setup.random.choice(setup.sources)
