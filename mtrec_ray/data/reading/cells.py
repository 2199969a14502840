"""Cells of a raw column -> ids, numbers and times; each function says which cells it could not read.

Raw columns are what the formats give: all text in CSV, JSON's types in JSONL, any type in Parquet.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import DataError

UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
NULL_WORDS = ("", "nan", "na", "n/a", "null", "none", "\\n")
"""Text that means a missing number, in any case of letters (`\\N` is what Hive and MySQL write)."""
EARLIEST = int(datetime(1971, 1, 1, tzinfo=UTC).timestamp()) * 10**6
LATEST = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * 10**6


def as_text(column: pa.ChunkedArray, what: str) -> pa.Array:
    """Text of each cell, null where empty. A float that is a whole number is written as one: 12.0 is `12`.

    Raises:
        DataError: the column holds lists or records, or what cannot be written as text.
    """
    array = flat(column)
    if pa.types.is_nested(array.type):
        raise DataError(f"{what} holds {array.type}; expected one value per row. Flatten it first.")
    if pa.types.is_floating(array.type):
        floats = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        whole = np.isnan(floats) | ((np.floor(floats) == floats) & (np.abs(floats) < 2**53))
        if whole.all():
            array = pa.array(np.nan_to_num(floats).astype(np.int64), mask=np.isnan(floats))
    try:
        text = array.cast(pa.string())
    except pa.ArrowException as error:
        raise DataError(f"{what} holds {array.type}, which cannot be read as text. Write it as text.") from error
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def as_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """float64 with NaN for missing cells, and a mask of the cells that are not numbers (NaN too)."""
    array = flat(column)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return values, np.zeros(len(values), dtype=bool)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan), np.zeros(len(array), dtype=bool)
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return np.full(len(array), np.nan), pc.is_valid(array).to_numpy(zero_copy_only=False)
    text = pc.utf8_trim_whitespace(array)
    text = pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(NULL_WORDS, text.type)), None, text)
    try:
        values = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return values, np.zeros(len(values), dtype=bool)
    except pa.ArrowInvalid:
        read = [_number(cell) for cell in text.to_pylist()]
        bad = np.array([number is None for number in read])
        return np.array([np.nan if number is None else number for number in read], dtype=np.float64), bad


def infinite(values: np.ndarray) -> np.ndarray:
    """bool [rows]: numbers that are infinite as float32, as which batches have them."""
    with np.errstate(over="ignore"):
        return np.isinf(values.astype(np.float32))


def as_records(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table, for people to look at. What Python has no value for is the number that stands in the file:
    a time in the year 50,000, or in a zone that nobody knows."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (OverflowError, ValueError):
            columns[name] = _stored(column)
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _stored(column: pa.ChunkedArray) -> list[Any]:
    if not pa.types.is_temporal(column.type):
        return [f"a {column.type}"] * len(column)
    return flat(column).view(pa.int32() if column.type.bit_width == 32 else pa.int64()).to_pylist()


@dataclass(frozen=True)
class Times:
    """Microseconds since 1970 UTC, [rows]; 0 wherever one of the masks holds."""

    micros: np.ndarray
    missing: np.ndarray
    unreadable: np.ndarray
    implausible: np.ndarray
    """Before 1971 or after 2099: almost always the wrong unit, or 0 for "never"."""

    @property
    def bad(self) -> np.ndarray:
        return self.missing | self.unreadable | self.implausible


def as_micros(column: pa.ChunkedArray, unit: str, zone: str = "UTC") -> Times:
    """Times in `unit` (`s`, `ms`, `us`, `ns`: integers or decimals since 1970; `iso`: ISO 8601 text) as microseconds.

    ISO text without an offset is in `zone`, as is a Parquet timestamp that is not in UTC; what this zone had twice,
    when clocks were put back, or never cannot be read. A Parquet timestamp or date column says its own unit; `unit` is
    then not used. Parts of a microsecond are cut off.
    """
    array = flat(column)
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        own = getattr(array.type, "tz", None)
        if pa.types.is_date32(array.type):
            array = array.cast(pa.timestamp("s"))
        near = _near(array)
        stamps = pc.if_else(near, array, pa.scalar(None, array.type)).cast(pa.timestamp("us", own), safe=False)
        micros = (stamps if own else _zoned(stamps, zone)).cast(pa.int64())
        return _checked(pc.if_else(near, micros, pa.scalar(0, pa.int64())), pc.is_valid(array), 10**6)
    if unit == "iso":
        return _iso(array, zone)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        present = pc.not_equal(array, "").fill_null(False)
        array = pc.if_else(present, array, pa.scalar(None, array.type))
        return _checked(_integers(array, UNITS_PER_SECOND[unit]), present, UNITS_PER_SECOND[unit])
    present = pc.is_valid(array)
    if pa.types.is_floating(array.type):
        present = pc.and_(present, pc.invert(pc.is_nan(array)))
    return _checked(_integers(array, UNITS_PER_SECOND[unit]), present, UNITS_PER_SECOND[unit])


def _near(array: pa.Array) -> pa.Array:
    """bool [rows], null where empty: timestamps that are plausible, give or take a day; others may overflow."""
    per_second = UNITS_PER_SECOND[getattr(array.type, "unit", "ms")]
    units, day = array.view(pa.int64()), 86_400 * per_second
    low, high = (bound // 10**6 * per_second for bound in (EARLIEST, LATEST))
    return pc.and_(pc.greater_equal(units, low - day), pc.less(units, high + day))


def guess_unit(column: pa.ChunkedArray) -> str | None:
    """The time unit in which at least half of the cells lie between 1971 and 2099; None if there is none."""
    if len(column) == 0:
        return None
    for unit in (*UNITS_PER_SECOND, "iso"):
        if as_micros(column, unit).bad.mean() < 0.5:
            return unit
    return None


def flat(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, without a dictionary."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def _number(cell: str | None) -> float | None:
    """The number in a cell, NaN for an empty one, None for what is no number."""
    if cell is None:
        return float("nan")
    if cell.lower() in ("true", "false"):
        return float(cell.lower() == "true")
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _integers(array: pa.Array, per_second: int) -> pa.Array:
    """Whole units where every cell is whole; else per cell: whole ones exactly, decimals to the microsecond."""
    try:
        return array.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    fine = max(1, 10**6 // per_second)
    return pa.array([_scaled(cell, fine) for cell in array.to_pylist()], pa.float64() if fine > 1 else pa.int64())


def _scaled(cell: object, fine: int) -> float | int | None:
    try:
        number = int(str(cell))
    except ValueError:
        try:
            value = float(str(cell))
        except ValueError:
            return None
        if not abs(value) < 2**63:
            return None
        return np.floor(value * fine) / fine if fine > 1 else int(value)
    return (float(number) if fine > 1 else number) if abs(number) < 2**63 else None


def _checked(units: pa.Array, present: pa.Array, per_second: int) -> Times:
    """Plausibility is checked before the change of unit: a wrong one would overflow."""
    there = np.asarray(present.to_numpy(zero_copy_only=False), dtype=bool)
    read = np.asarray(pc.is_valid(units).to_numpy(zero_copy_only=False), dtype=bool)
    values = units.fill_null(0).to_numpy(zero_copy_only=False)
    low, high = EARLIEST // 10**6 * per_second, LATEST // 10**6 * per_second
    plausible = (values >= low) & (values < high)
    good = there & read & plausible
    kept = np.where(good, values, 0)
    if kept.dtype.kind == "f":
        micros = np.round(kept * (10**6 / per_second)).astype(np.int64)
    else:
        micros = kept // (per_second // 10**6) if per_second > 10**6 else kept * (10**6 // per_second)
    return Times(micros.astype(np.int64), ~there, there & ~read, there & read & ~plausible)


def _iso(array: pa.Array, zone: str) -> Times:
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        present = pc.is_valid(array)
        return _checked(pa.nulls(len(array), pa.int64()), present, 10**6)
    array = pc.utf8_trim_whitespace(array)
    present = pc.not_equal(array, "").fill_null(False)
    array = pc.if_else(present, array, pa.scalar(None, array.type))
    for own in (None, "UTC"):
        try:
            stamps = array.cast(pa.timestamp("us", own))
            return _checked((stamps if own else _zoned(stamps, zone)).cast(pa.int64()), present, 10**6)
        except pa.ArrowInvalid:
            continue
    return _checked(pa.array([_iso_cell(cell, zone) for cell in array.to_pylist()], pa.int64()), present, 10**6)


def _zoned(stamps: pa.Array, zone: str) -> pa.Array:
    """Times on the clocks of a zone as times in UTC; null for those that the zone had twice or never."""
    if zone == "UTC":
        return stamps
    first, last = (
        pc.assume_timezone(stamps, zone, ambiguous=which, nonexistent=which).cast(pa.int64())
        for which in ("earliest", "latest")
    )
    return pc.if_else(pc.equal(first, last), first, pa.scalar(None, pa.int64()))


def _iso_cell(cell: str | None, zone: str) -> int | None:
    if cell is None:
        return None
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(zone))
        if moment.utcoffset() != moment.replace(fold=1).utcoffset():
            return None  # the zone had this time twice, or never
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**6 + since.microseconds
