"""Files whose content is wrong: cut, broken, of other encodings, kinds or types."""

import os
from collections.abc import Callable
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.bad_input.setup import START, TIME_COLUMNS, Setup, any_source


def typed_parquet(setup: Setup) -> None:
    """A Parquet file with a column of one of Arrow's less usual types."""
    sources = [source for source in setup.sources if source.format == "parquet"]
    if not sources:
        return
    source = setup.random.choice(sources)
    column = setup.random.choice([*source.columns, *(name for name in TIME_COLUMNS if name in source.columns)])
    make = setup.random.choice(_ARROW_COLUMNS)
    path = setup.path(source)

    def damage() -> None:
        if path.is_file():
            table = pq.ParquetFile(path).read()
            if table.column_names.count(column) == 1:
                place = table.column_names.index(column)
                pq.write_table(table.set_column(place, column, make(table.num_rows)), path)

    setup.then.append(damage)


_ARROW_COLUMNS: list[Callable[[int], pa.Array]] = [
    lambda n: pa.array([10**15] * n, pa.int64()).cast(pa.timestamp("s")),
    lambda n: pa.array([2**62] * n, pa.int64()).cast(pa.timestamp("us")),
    lambda n: pa.array([START * 10**6] * n, pa.int64()).cast(pa.timestamp("us", "No/Zone")),
    lambda n: pa.array([START * 10**6] * n, pa.int64()).cast(pa.timestamp("us", "+05:30")),
    lambda n: pa.array([START * 10**9 + 1] * n, pa.int64()).cast(pa.timestamp("ns")),
    lambda n: pa.array([2**30] * n, pa.int32()).cast(pa.date32()),
    lambda n: pa.array([20_000] * n, pa.int32()).cast(pa.date32()),
    lambda n: pa.array([2**60] * n, pa.int64()).cast(pa.duration("s")),
    lambda n: pa.array([1] * n, pa.int64()).cast(pa.time64("ns")),
    lambda n: pa.array([b"\xff\xfe"] * n, pa.large_binary()),
    lambda n: pa.array([b"\xff\xfe"] * n, pa.binary(2)),
    lambda n: pa.array([b"ab"] * n, pa.binary(2)),
    lambda n: pa.array(["7"] * n, pa.large_string()),
    lambda n: pa.array(["7"] * n).dictionary_encode(),
    lambda n: pa.array([7] * n).dictionary_encode(),
    lambda n: pa.array([Decimal("7.5")] * n, pa.decimal128(20, 3)),
    lambda n: pa.array([1.5] * n, pa.float16()),
    lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    lambda n: pa.array([[1]] * n),
    lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
    lambda n: pa.array([{"a": 1}] * n),
    lambda n: pa.nulls(n),
    lambda n: pa.array([True] * n),
]


def cut_file(setup: Setup) -> None:
    path, part = setup.path(any_source(setup)), setup.random.random()
    setup.then.append(lambda: path.is_file() and path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)]))
    setup.lost = True


def broken_bytes(setup: Setup) -> None:
    """A byte in the middle is another one; in Parquet in the footer, whose length stays."""
    source = any_source(setup)
    path, place, byte = setup.path(source), setup.random.random(), setup.random.randrange(256)

    def damage() -> None:
        if path.is_file() and (whole := bytearray(path.read_bytes())):
            first = len(whole) * 3 // 4 if source.format == "parquet" else 0
            whole[first + int(place * (len(whole) - first))] = byte
            path.write_bytes(whole)

    setup.then.append(damage)
    setup.lost = True


def replaced_file(setup: Setup) -> None:
    path = setup.path(any_source(setup))
    content = setup.random.choice(
        [
            b"",
            b"\n",
            b"\n\n\n",
            b"\xef\xbb\xbf",
            b"\xff\xfeu\x00",
            b"PAR1",
            b"PAR1" * 5,
            b"{}",
            b"{",
            b"[1]\n" * 9,
            b"null\n",
            b"\x00" * 200,
            b"\x1f\x8b",
            b"a,b\n1,2\n",
            b'"',
            b'a,"b\n' * 9,
            b"[" * 100000,
            os.fsencode("é,b\n"),
        ]
    )
    setup.then.append(lambda: path.parent.is_dir() and path.write_bytes(content))
    setup.lost = True


def encoded_otherwise(setup: Setup) -> None:
    source = any_source(setup)
    path, encoding = setup.path(source), setup.random.choice(["utf-16", "utf-8-sig", "latin-1", "utf-32"])

    def damage() -> None:
        if path.is_file() and source.format in ("csv", "tsv", "jsonl"):
            text = path.read_bytes().decode("utf-8", "replace")
            path.write_bytes(text.replace("home", "hømé").encode(encoding, "replace"))

    setup.then.append(damage)
    setup.lost = True


def strange_lines(setup: Setup) -> None:
    """Lines in the middle or at the end of a text file that belong to no row."""
    source = any_source(setup)
    path, last = setup.path(source), setup.random.random() < 0.5
    line = setup.random.choice(
        [
            b"1,2\n",
            b"," * 60 + b"\n",
            b'"\n',
            b'"a""\n',
            b"\n",
            b"   \n",
            b"\xff\xfe\n",
            b"\x00\n",
            b"{}\n",
            b"[1]\n",
            b"null\n",
            b'{"user_id": "\\ud800", "item_id": "i1", "ts": 1704067200, "click": 1}\n',
            b"\r",
            b"no end",
            b'{"user_id": 1e999}\n',
            b'{"ts": ' + b"9" * 5000 + b"}\n",
            b'{"a":' * 5000 + b"\n",
        ]
    )

    def damage() -> None:
        if path.is_file() and source.format in ("csv", "tsv", "jsonl"):
            lines = path.read_bytes().splitlines(keepends=True)
            lines.insert(len(lines) if last else min(2, len(lines)), line)
            path.write_bytes(b"".join(lines))

    setup.then.append(damage)
    setup.lost = True
