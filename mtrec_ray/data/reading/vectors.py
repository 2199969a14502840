"""Cells that hold vectors: lists of numbers, all of one size, or text that is such a list in JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import SHORTEST_VECTOR, Run, Vector
from mtrec_ray.data.reading.cells import NULL_WORDS, flat
from mtrec_ray.data.reading.formats import DataFile, column_names, read_batches
from mtrec_ray.data.reading.log_files import find_files
from mtrec_ray.errors import DataError
from mtrec_ray.registry import suggest

Array = np.ndarray[Any, np.dtype[Any]]

_FIRST_ROWS = 1000


def as_vectors(column: pa.ChunkedArray, size: int) -> tuple[Array, list[tuple[Array, str]]]:
    """float32 [rows, size] with rows of NaN for missing cells (null, or an empty list); and masks of the cells that are
    no such vectors (NaN too), each with what they are."""
    lists, faults = _lists(column)
    lengths = _lengths(lists)
    fits = lengths == size
    with np.errstate(over="ignore"):  # what is too large for float32 is not finite
        values = _floats(lists)[np.repeat(fits, lengths)].astype(np.float32)
    vectors = np.full((len(lists), size), np.nan, dtype=np.float32)
    vectors[fits] = values.reshape(-1, size)
    infinite = fits & ~np.isfinite(vectors).all(axis=1)
    vectors[infinite] = np.nan
    for length in np.unique(lengths[(lengths > 0) & ~fits]).tolist():
        faults.append((lengths == length, f"holds {length} numbers, not {size} as the others"))
    if infinite.any():
        faults.append((infinite, "holds numbers that are missing or not finite"))
    return vectors, faults


def lists_of_numbers(column: pa.ChunkedArray) -> list[Array]:
    """The numbers in each cell, NaN where one is missing; none of cells that hold no list of numbers."""
    lists, _ = _lists(column)
    return np.split(_floats(lists), np.cumsum(_lengths(lists))[:-1])


def to_lists(vectors: Array) -> pa.Array:
    """list<float> [rows], empty for rows of NaN: as canonical events have vectors, which `as_vectors` reads again."""
    there = ~np.isnan(vectors[:, 0])
    offsets = np.concatenate([[0], np.cumsum(there * vectors.shape[1])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors[there].ravel(), pa.float32()))


def is_list(kind: pa.DataType) -> bool:
    """Whether cells of this type hold lists, of any or of a fixed size."""
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def sized(vectors: Sequence[Vector], files: Sequence[DataFile], where: str) -> list[Vector]:
    """The same with their sizes: as declared, else that of the first vector in the files. `where`: dotted config path.

    Raises:
        DataError: a column without vectors, or with shorter ones than a vector can be.
    """
    return [
        vector
        if vector.dim is not None
        else vector.model_copy(update={"dim": _first_size(files, vector.column, f"{where}[{i}]")})
        for i, vector in enumerate(vectors)
    ]


def with_sizes(run: Run) -> Run:
    """The run with the sizes of the log's own vectors, which every task that reads a part of the log must know.

    Raises:
        DataError: as `sized`, or there is no log.
    """
    if not run.data.vectors:
        return run
    log = [file for file in find_files(run.data) if file.feedback is None]
    data = run.data.model_copy(update={"vectors": sized(run.data.vectors, log, "data.vectors")})
    return run.model_copy(update={"data": data})


def _first_size(files: Sequence[DataFile], column: str, where: str) -> int:
    names: dict[str, None] = {}
    for file in files:
        found = column_names(file)
        names |= dict.fromkeys(found)
        if file.format != "jsonl" and column not in found:
            continue
        for batch in read_batches(file, [column], _FIRST_ROWS):
            lengths = _lengths(_lists(batch.table.column(column))[0])
            for row in np.flatnonzero(lengths)[:1].tolist():
                if lengths[row] >= SHORTEST_VECTOR:
                    return int(lengths[row])
                raise DataError(
                    f"{where}: column '{column}' holds {lengths[row]} number(s) in row {batch.rows[row]} of "
                    f"'{file.path}'; a vector has at least {SHORTEST_VECTOR}, since it is scaled to one length. Write "
                    "the numbers to columns of their own, and declare these as `numbers`."
                )
    if column not in names:
        raise DataError(f"{where}: no column '{column}' in '{files[0].path}'.{suggest(column, names)}")
    raise DataError(
        f"{where}: column '{column}' holds no list of numbers in {len(files)} file(s), the first is "
        f"'{files[0].path}'. Expected lists in Parquet or JSONL, text like [0.5, 1] in CSV."
    )


def _lists(column: pa.ChunkedArray) -> tuple[pa.Array, list[tuple[Array, str]]]:
    """Lists of numbers, null where a cell is missing or none."""
    array = flat(column)
    if is_list(array.type):
        kind = array.type.value_type
        if any(is_kind(kind) for is_kind in (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)):
            return array, []
        return _nothing(array, [] if pa.types.is_null(kind) else [_fault(_there(array), f"holds {array.type}")])
    if pa.types.is_null(array.type):
        return _nothing(array, [])
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return _nothing(array, [_fault(_there(array), f"holds {array.type}")])
    read = [_from_text(cell) for cell in array.to_pylist()]
    bad = np.array([cell is None for cell in read], dtype=bool)
    return pa.array(read, pa.list_(pa.float64())), [_fault(bad, "is no list of numbers")] if bad.any() else []


def _fault(mask: Array, what: str) -> tuple[Array, str]:
    return mask, f"{what}; expected a list of numbers, as [0.5, 1]"


def _nothing(array: pa.Array, faults: list[tuple[Array, str]]) -> tuple[pa.Array, list[tuple[Array, str]]]:
    return pa.nulls(len(array), pa.list_(pa.float64())), faults


def _there(array: pa.Array) -> Array:
    present: Array = pc.is_valid(array).to_numpy(zero_copy_only=False)
    return present


def _from_text(cell: str | None) -> list[float] | None:
    """The numbers in a cell, NaN for `null` among them; none in an empty cell; None for what is no list of numbers."""
    if cell is None or cell.strip().lower() in NULL_WORDS:
        return []
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or any(isinstance(n, bool) or not isinstance(n, int | float | None) for n in found):
        return None
    return list(_numbers(found))


def _numbers(found: list[int | float | None]) -> Iterator[float]:
    for number in found:
        try:
            yield float("nan") if number is None else float(number)
        except OverflowError:
            yield float("inf")


def _lengths(lists: pa.Array) -> Array:
    """int64 [rows], 0 where null"""
    lengths: Array = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _floats(lists: pa.Array) -> Array:
    """All numbers of all lists, NaN where one is missing."""
    values = lists.flatten()  # without those that lie behind a null
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    floats: Array = values.to_numpy(zero_copy_only=False)
    return floats
