"""CSV, JSON lines and Parquet files -> batches of raw columns with row numbers, and the rows that cannot be read.

Rows are numbered from 1: data rows in CSV (the header is not counted) and Parquet, lines in JSONL. CSV cells come as
text, the others as the file types them. A row that cannot be read is given back with its reason, never dropped.
"""

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mtrec_ray.data.filesystem import FoundFile, find, open_fs, unreachable
from mtrec_ray.data.reading.cells import as_records
from mtrec_ray.data.reading.partitions import Partitions
from mtrec_ray.errors import DataError

EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
BATCH_ROWS = 65_536
_BLOCK_BYTES = 16 << 20
"""Of CSV text; also the longest record."""


@dataclass(frozen=True)
class DataFile:
    """One shard; `size` and `mtime_ns` identify its content for caching."""

    path: str
    format: str
    size: int
    mtime_ns: int
    name: str = ""
    """See `FoundFile`"""


@dataclass(frozen=True)
class BadRow:
    row: int
    reason: str
    content: str


@dataclass(frozen=True)
class RawBatch:
    table: pa.Table
    """The asked-for columns, [rows]."""
    rows: np.ndarray
    """int64 [rows]: number of each row in its file."""
    bad: list[BadRow] = field(default_factory=list)


def find_shards(paths: str | list[str], format: str, what: str, partitions: Partitions | None = None) -> list[DataFile]:
    """The files of a path, folder, glob or list of them, sorted, each once.

    Args:
        format: `csv`, `jsonl`, `parquet`, or `auto`: by the file's extension (`.gz`, `.bz2`, `.zst` may follow).
        what: dotted config path, for messages.
        partitions: folders outside their ranges are not listed.

    Raises:
        DataError: a path with no such files, or a file whose format cannot be told.
    """
    shards: dict[str, DataFile] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        found = find(path, partitions.enter if partitions else None)
        if partitions:
            inside = [file for file in found if partitions.holds(partitions.values(file.path))]
            there = partitions.outside()
            if not inside and (found or there):
                raise DataError(
                    f"{what}: no file at '{path}' in the partitions {partitions.described()}."
                    + (f" Outside of them lies {there}; change {partitions.where}." if there else "")
                )
            found = inside
        single = len(found) == 1 and _name(found[0].path) == _name(path)
        files = [shard for file in found if (shard := _typed(file, format, single, what))]
        if not files:
            raise _nothing(path, found, format, what)
        shards.update((shard.path, shard) for shard in files)
    return [shards[path] for path in sorted(shards)]


def column_names(file: DataFile, scan_rows: int = 1000) -> list[str]:
    """Names of the columns; in JSONL, every key of the first `scan_rows` lines."""
    return list(column_types(file, scan_rows))


def column_types(file: DataFile, scan_rows: int = 1000) -> dict[str, pa.DataType]:
    """Names of the columns, and the types that the file gives them: those of the schema in Parquet, null in CSV, where
    all is text; in JSONL those of the first `scan_rows` lines, with float64 for all numbers."""
    with _explained(file):
        if file.format == "csv":
            return dict.fromkeys(_csv_header(file), pa.null())
        if file.format == "parquet":
            with _open(file) as source:
                schema = pq.ParquetFile(source).schema_arrow
            _refuse_repeats(file, schema.names)
            return dict(zip(schema.names, schema.types, strict=True))
        keys: dict[str, list[Any]] = {}
        for _, record, _ in islice(_json_records(file), scan_rows):
            for key, cell in (record or {}).items():
                keys.setdefault(key, []).append(cell)
        types = {key: _json_column(cells).type for key, cells in keys.items()}
        return {key: pa.float64() if pa.types.is_integer(type) else type for key, type in types.items()}


def read_batches(file: DataFile, columns: Iterable[str], batch_rows: int = BATCH_ROWS) -> Iterator[RawBatch]:
    """Batches of at most `batch_rows` rows with only `columns`, each once.

    The caller has compared `columns` with `column_names`; in JSONL an absent key is a missing value.

    Raises:
        DataError: the file cannot be opened, is not of its format, or ends too early.
    """
    readers = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}
    with _explained(file):
        yield from readers[file.format](file, list(dict.fromkeys(columns)), batch_rows)


@contextlib.contextmanager
def _explained(file: DataFile) -> Iterator[None]:
    """Turns what goes wrong inside a file into one message that names it and the remedy."""
    kind = {"csv": "CSV", "jsonl": "JSON lines", "parquet": "Parquet"}[file.format]
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"'{file.path}' is gone; it was there when the files were listed. Run the command again."
        ) from error
    except PermissionError as error:
        raise unreachable(file.path, error) from error
    except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
        # What decompresses a file says that it is broken as an OSError without a number.
        if isinstance(error, OSError) and error.errno and file.format != "parquet":
            raise unreachable(file.path, error) from error
        raise DataError(
            f"'{file.path}' ({file.size} bytes) is not a complete {kind} file: "
            f"{' '.join(str(error).split())[:200].rstrip('.')}. Remedy: write it again, take it out of the config's "
            "paths, or, for a log of another kind, set data.format."
        ) from error


def _typed(file: FoundFile, format: str, single: bool, what: str) -> DataFile | None:
    """None for a file of another kind inside a folder."""
    name = _name(file.path).lower()
    for compression in (".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    extension = name[name.rindex(".") :] if "." in name else ""
    known = EXTENSIONS.get(extension)
    if format == "auto":
        if known is None and single:
            raise DataError(
                f"{what}: cannot tell the format of '{file.path}' from its name. Let it end in .csv, .jsonl or "
                ".parquet, or, for a log, set data.format."
            )
        chosen = known
    else:
        chosen = format if single or known == format or not extension else None
    return DataFile(file.path, chosen, file.size, file.mtime_ns, file.name) if chosen else None


def _name(path: str) -> str:
    return path.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _nothing(path: str, found: list[FoundFile], format: str, what: str) -> DataError:
    if not found:
        return DataError(f"{what}: no file '{path}'. Looked for a file, a folder or a glob of that name.")
    kinds = ", ".join(sorted(EXTENSIONS)) if format == "auto" else format
    return DataError(
        f"{what}: none of the {len(found)} files at '{path}' is a {kinds} file (the first is '{found[0].path}')."
    )


def _open(file: DataFile) -> pa.NativeFile:
    """A random-access file for Parquet, else a stream, decompressed by the file's extension."""
    fs, path = open_fs(file.path)
    return fs.open_input_file(path) if file.format == "parquet" else fs.open_input_stream(path, compression="detect")


def _read_parquet(file: DataFile, columns: list[str], batch_rows: int) -> Iterator[RawBatch]:
    with _open(file) as source:
        shard = pq.ParquetFile(source)
        first = 1
        for batch in shard.iter_batches(batch_rows, columns=columns):
            rows = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            yield _decoded(pa.table(batch).select(columns), rows, [])


def _csv_header(file: DataFile) -> list[str]:
    with _open(file) as source:
        start = source.read(1 << 20)
    kinds = {b"PAR1": "a Parquet file", b"\x1f\x8b": "compressed by gzip", b"\x28\xb5\x2f\xfd": "compressed by zstd"}
    for magic, kind in kinds.items():
        if start.startswith(magic):
            raise DataError(f"'{file.path}' is {kind}, though its name or data.format says CSV; rename it.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"'{file.path}' is UTF-16 text; expected UTF-8. Remedy: `iconv -f UTF-16 -t UTF-8`.")
    try:
        header = start.decode("utf-8-sig", "surrogateescape")
        names = next(csv.reader(io.StringIO(header, newline=""), delimiter=_delimiter(file)), [])
        "".join(names).encode()
    except (UnicodeError, csv.Error) as error:
        said = "is not UTF-8 text" if isinstance(error, UnicodeError) else f"cannot be read ({error})"
        raise DataError(f"The header line of '{file.path}' {said}; expected column names.") from error
    if not names:
        raise DataError(f"'{file.path}' is empty; a CSV file begins with a line of column names.")
    _refuse_repeats(file, names)
    return names


def _refuse_repeats(file: DataFile, names: list[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"'{file.path}' has several columns named {', '.join(map(repr, repeated))}; rename them.")


def _delimiter(file: DataFile) -> str:
    return "\t" if ".tsv" in _name(file.path).lower() else ","


def _read_csv(file: DataFile, columns: list[str], batch_rows: int) -> Iterator[RawBatch]:
    """Arrow's parser on bytes mapped one to one to characters, so that no byte can stop it; decoded afterwards."""
    names = _csv_header(file)
    wrong: list[pacsv.InvalidRow] = []

    def keep(row: pacsv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    byte_names = {name: name.encode().decode("latin-1") for name in names}
    with _open(file) as source:
        reader = pacsv.open_csv(
            source,
            # Rows are numbered only without threads. The header is named here: its first name may follow a BOM.
            read_options=pacsv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                encoding="latin-1",
                column_names=list(byte_names.values()),
                skip_rows_after_names=1,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=_delimiter(file), newlines_in_values=True, invalid_row_handler=keep
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in byte_names.values()},
                include_columns=[byte_names[name] for name in columns],
                strings_can_be_null=False,
            ),
        )
        yield from _numbered_csv(reader, columns, wrong, batch_rows)


def _numbered_csv(
    reader: Iterable[pa.RecordBatch], columns: list[str], wrong: list[pacsv.InvalidRow], batch_rows: int
) -> Iterator[RawBatch]:
    """Good rows take the numbers that the wrong ones, met while parsing up to here, left free."""
    last = 0
    for block in reader:
        table = pa.table(block).rename_columns(columns)
        taken = sorted(row.number - 1 for row in wrong)
        free = np.setdiff1d(np.arange(last + 1, last + 1 + table.num_rows + len(taken)), taken)
        rows = free[: table.num_rows]
        last = int(rows[-1]) if len(rows) else last
        bad = [entry for row in wrong if row.number - 1 <= last for entry in _explain_row(row)]
        wrong[:] = [row for row in wrong if row.number - 1 > last]
        for start in range(0, table.num_rows, batch_rows):
            part = slice(start, start + batch_rows)
            yield _decoded(table.slice(start, batch_rows), rows[part], bad, from_latin=True)
            bad = []
    if wrong:
        empty = pa.table({name: pa.array([], pa.string()) for name in columns})
        yield RawBatch(empty, np.zeros(0, np.int64), [entry for row in wrong for entry in _explain_row(row)])


def _explain_row(row: pacsv.InvalidRow) -> Iterator[BadRow]:
    """One entry per line: an unbalanced quote swallows many, and each of them is a lost row."""
    text = row.text.encode("latin-1").decode("utf-8", "backslashreplace")
    lines = text.splitlines() or [""]
    quote = " (an unbalanced quote?)" if len(lines) > 1 else ""
    for line in lines:
        yield BadRow(row.number - 1, f"{row.actual_columns} cells instead of {row.expected_columns}{quote}", line)


def _json_records(file: DataFile) -> Iterator[tuple[int, dict[str, Any] | None, BadRow | None]]:
    """Line number and record, or what is wrong with the line; blank lines are passed over."""
    with _open(file) as source, io.BufferedReader(source, 1 << 20) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield number, None, BadRow(number, "not UTF-8", line.decode("utf-8", "backslashreplace"))
            except (ValueError, RecursionError):
                yield number, None, BadRow(number, "not JSON", line.decode())
            else:
                reason = None if isinstance(record, dict) else "not a JSON object"
                if reason is None and b"\\ud" in line.lower() and not _is_text(record):
                    reason = "half of a character (\\ud800 to \\udfff alone)"
                if reason is None:
                    yield number, record, None
                else:
                    yield number, None, BadRow(number, reason, line.decode())


def _is_text(record: Any) -> bool:
    """Whether all of it can be written: JSON may name halves of characters, which are none."""
    try:
        return bool(json.dumps(record, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _read_jsonl(file: DataFile, columns: list[str], batch_rows: int) -> Iterator[RawBatch]:
    records = _json_records(file)
    while part := list(islice(records, batch_rows)):
        good = [record for _, record, _ in part if record is not None]
        table = pa.table({name: _json_column([record.get(name) for record in good]) for name in columns})
        rows = np.array([number for number, record, _ in part if record is not None], dtype=np.int64)
        yield RawBatch(table, rows, [bad for _, _, bad in part if bad is not None])


def _json_column(cells: list[Any]) -> pa.Array:
    """Arrow's own type where the cells agree on one, else text."""
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells])


def _holds_bytes(type: pa.DataType) -> bool:
    """Whether it is text, or what may be: Parquet does not say of all text that it is."""
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    own = type.value_type if pa.types.is_dictionary(type) else type
    return any(getattr(pa.types, f"is_{kind}")(own) for kind in kinds)


def _decoded(table: pa.Table, rows: np.ndarray, bad: list[BadRow], from_latin: bool = False) -> RawBatch:
    """Text columns as UTF-8; rows with other bytes become bad rows."""
    broken = np.zeros(table.num_rows, dtype=bool)
    for index, name in enumerate(table.column_names):
        column = table.column(name)
        if from_latin:
            if pc.all(pc.string_is_ascii(column)).as_py() is not False:
                continue
            cells = [cell.encode("latin-1") for cell in column.to_pylist()]
        elif _holds_bytes(column.type):
            try:
                table = table.set_column(index, name, column.cast(pa.binary()).cast(pa.string()))
                continue
            except pa.ArrowInvalid:
                cells = column.cast(pa.binary()).to_pylist()
        else:
            continue
        texts = [None if cell is None else cell.decode("utf-8", "backslashreplace") for cell in cells]
        broken |= [text is not None and text.encode() != cell for cell, text in zip(cells, texts, strict=True)]
        table = table.set_column(index, name, pa.array(texts, pa.string()))
    if broken.any():
        spoilt = as_records(table.filter(pa.array(broken)))
        contents = [json.dumps(record, ensure_ascii=False, default=str) for record in spoilt]
        bad = bad + [BadRow(int(row), "not UTF-8", text) for row, text in zip(rows[broken], contents, strict=True)]
        table, rows = table.filter(pa.array(~broken)), rows[~broken]
    return RawBatch(table, rows, bad)
