"""Stores the vectors of the tables, and lists all that are declared."""

from dataclasses import replace

import numpy as np
import pyarrow.fs as pafs

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Scope, Tables, vector_columns
from mtrec_ray.data.manifest import VectorEntry
from mtrec_ray.data.reading.tables import EntityTable
from mtrec_ray.data.requests.ids import Of, first_repeat
from mtrec_ray.data.vectors import Array, save_vectors
from mtrec_ray.errors import DataError


def store_vectors(fs: pafs.FileSystem, folder: str, run: Run, tables: Tables) -> tuple[Tables, list[VectorEntry]]:
    """Writes the vectors of the tables below a prepared folder; the tables without them, which is what tasks are given,
    and what the manifest says of all vectors. `run`: one `with_sizes`.

    Raises:
        ConfigError: see `vector_columns`.
        DataError: two rows of a table with the same hash, which requests could not tell apart.
    """
    entries, offset = [], 0
    for scope, vector in vector_columns(run):
        size = vector.dim if scope == "log" else _table(tables, scope).vectors[vector.column].shape[1]
        assert size is not None, "the log's vectors have sizes"
        entries.append(VectorEntry(name=vector.column, scope=scope, offset=offset, size=size))
        offset += size
    for scope in dict.fromkeys(entry.scope for entry in entries if entry.scope != "log"):
        table = _table(tables, scope)
        own = [table.vectors[entry.name] for entry in entries if entry.scope == scope]
        save_vectors(fs, folder, scope, own, _hashes(table, scope))
    bare = {name: None if table is None else table.without_vectors() for name, table in vars(tables).items()}
    return replace(tables, **bare), entries


def _hashes(table: EntityTable, of: Of) -> Array:
    """int64 [N] of all rows."""
    hashes = table.hashes(np.arange(len(table.keys)), of)
    if (same := first_repeat(hashes)) is not None:
        one, other = (table.keys[place] for place in same)
        raise DataError(
            f"data.{of}s: rows of '{one}' and '{other}' have the same 64-bit hash, by which requests name the vectors "
            f"of {of}s. Give one of the {of}s another id, here and in the log."
        )
    return hashes


def _table(tables: Tables, scope: Scope) -> EntityTable:
    table = tables.items if scope == "item" else tables.users
    assert table is not None
    return table
