"""One hash of all that a result depends on."""

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

_BYTES = 16


def digest(*values: Any) -> str:
    """Hex digest of values and, all the way down, of what they consist of: texts, numbers, arrays, Arrow columns and
    tables, collections, dataclasses, config parts. Values that differ, in type or order too, have different digests.

    Raises:
        TypeError: something of another type, of which nobody knows what it depends on.
    """
    total = hashlib.blake2b(digest_size=_BYTES)
    _add(total, values)
    return total.hexdigest()


def _add(total: Any, value: Any) -> None:
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        _add_bytes(total, type(value).__name__, repr(value).encode())
    elif isinstance(value, np.ndarray):
        _add_array(total, value)
    elif isinstance(value, pa.Array | pa.ChunkedArray):
        _add_column(total, value)
    elif isinstance(value, pa.Table):
        _add_bytes(total, "table", repr(value.column_names).encode())
        for column in value.columns:
            _add_column(total, column)
    elif isinstance(value, BaseModel):
        _add_bytes(total, type(value).__name__, value.model_dump_json().encode())
    elif is_dataclass(value):
        _add_bytes(total, type(value).__name__, b"")
        for field in fields(value):
            _add(total, field.name)
            _add(total, getattr(value, field.name))
    elif isinstance(value, Mapping):
        _add_bytes(total, "mapping", str(len(value)).encode())
        for key, entry in value.items():
            _add(total, key)
            _add(total, entry)
    elif isinstance(value, AbstractSet):
        _add(total, sorted(value))
    elif isinstance(value, Sequence):
        _add_sequence(total, value)
    else:
        raise TypeError(f"no digest of a {type(value).__name__}")


def _add_bytes(total: Any, kind: str, content: bytes | memoryview) -> None:
    total.update(f"{kind} {len(content)} ".encode())
    total.update(content)


def _add_array(total: Any, array: np.ndarray) -> None:
    if array.dtype == object:  # texts, some of them absent
        _add_column(total, pa.array(array, pa.string(), from_pandas=False))
        return
    _add_bytes(total, f"{array.dtype.str}{array.shape}", np.ascontiguousarray(array).tobytes())


def _add_sequence(total: Any, values: Sequence[Any]) -> None:
    if all(type(value) is str for value in values):
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        _add_bytes(total, "lengths", lengths.tobytes())
        _add_bytes(total, "texts", "".join(values).encode(errors="surrogatepass"))
        return
    _add_bytes(total, "sequence", str(len(values)).encode())
    for value in values:
        _add(total, value)


def _add_column(total: Any, column: pa.Array | pa.ChunkedArray) -> None:
    """By way of the format for streams, which leaves out what a slice does not show."""
    chunks = [column.combine_chunks()] if isinstance(column, pa.ChunkedArray) else [column]
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_arrays(chunks, ["column"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    _add_bytes(total, "column", sink.getvalue().to_pybytes())
