"""Columns whose type changes from one file of a log to a later one.

Columns may appear, go away and widen: an int32 may become an int64 or a float. What narrows, or becomes something else
(numbers where there was text), no longer means what it did: it is refused, and the message names both files. CSV has no
types, and so nothing to compare. Ids and times are left out: ids are text whatever their type, and of times it is the
unit that counts, which the readers check.
"""

from collections.abc import Sequence

import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.reading.log_files import LogFile, Needed, needed_columns
from mtrec_ray.data.reading.vectors import is_list
from mtrec_ray.errors import DataError

Types = dict[str, pa.DataType]
_IDS_AND_TIMES = ("user", "item", "time", "request", "event", "impression", "unique_by", "feedback_time")


def check_drift(files: Sequence[LogFile], types: Sequence[Types], run: Run) -> None:
    """`types`: of each file's columns. Raises `DataError` for the first file, in their order, that changes one."""
    asked = {source: _compared(run, source) for source in {file.feedback for file in files}}
    last: dict[tuple[int | None, str, str], tuple[pa.DataType, LogFile]] = {}
    for file, found in zip(files, types, strict=True):
        for needed in asked[file.feedback]:
            now = found.get(needed.column, pa.null())
            if pa.types.is_null(now) or (is_list(now) and pa.types.is_null(now.value_type)):
                continue
            key = (file.feedback, file.format, needed.column)
            before, earlier = last.get(key, (now, file))
            if what := _change(before, now):
                raise DataError(
                    f"{needed.where}: column '{needed.column}' {what}: it is {before} in '{earlier.path}', and {now} "
                    f"from '{file.path}' on. Write one of them again with the type of the other, or leave out the "
                    "files that mean something else."
                )
            last[key] = (now, file)


def absent_columns(files: Sequence[LogFile], types: Sequence[Types], run: Run) -> list[str]:
    """A sentence for each column that some files lack. In JSONL that says nothing: there empty cells are absent."""
    notes = []
    for source in dict.fromkeys(file.feedback for file in files):
        names = [
            set(found) | {*file.partitions}
            for file, found in zip(files, types, strict=True)
            if file.feedback == source and file.format != "jsonl"
        ]
        for column in dict.fromkeys(needed.column for needed in needed_columns(run, source)):
            absent = sum(column not in found for found in names)
            if 0 < absent < len(names):  # else it is a column of other sources
                notes.append(f"Column '{column}' is absent in {absent} of {len(names)} files: not observed there")
    return notes


def _compared(run: Run, source: int | None) -> list[Needed]:
    return [
        needed
        for needed in needed_columns(run, source)
        if needed.where != "split.column" and needed.where.rsplit(".", 1)[-1] not in _IDS_AND_TIMES
    ]


def _change(before: pa.DataType, now: pa.DataType) -> str:
    """What is wrong with a change of type; empty if nothing is."""
    if _kind(before) != _kind(now):
        return "changes its type"
    if pa.types.is_float64(before) and pa.types.is_int64(now):
        return ""  # pandas writes a column of whole numbers as floats on days with gaps
    if _kind(now) == "number":
        (low, high, bits), (new_low, new_high, new_bits) = _range(before), _range(now)
        if not (new_low <= low and high <= new_high and bits <= new_bits):
            return "narrows"
    return ""


def _kind(type: pa.DataType) -> str:
    if pa.types.is_dictionary(type):
        return _kind(type.value_type)
    if pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_binary(type):
        return "text"
    if pa.types.is_temporal(type):
        return "time"
    if is_list(type):
        return f"list of {_kind(type.value_type)}s"  # the readers check how long each is
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return "number" if any(is_number(type) for is_number in numbers) else str(type)


def _range(type: pa.DataType) -> tuple[float, float, int]:
    """The smallest and the largest number of a type, and the bits of a float (0: whole numbers only)."""
    if pa.types.is_dictionary(type):
        return _range(type.value_type)
    if pa.types.is_boolean(type):
        return 0, 1, 0
    if not pa.types.is_integer(type):
        return float("-inf"), float("inf"), type.bit_width if pa.types.is_floating(type) else 64
    signed = pa.types.is_signed_integer(type)
    return -(2 ** (type.bit_width - 1)) if signed else 0, 2 ** (type.bit_width - signed) - 1, 0
