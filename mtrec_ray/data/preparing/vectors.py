"""Stores the vectors of the tables, and lists all that are declared."""

from dataclasses import replace

import pyarrow.fs as pafs

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Scope, Tables, vector_columns
from mtrec_ray.data.manifest import VectorEntry
from mtrec_ray.data.reading.tables import EntityTable
from mtrec_ray.data.vectors import save_vectors


def store_vectors(fs: pafs.FileSystem, folder: str, run: Run, tables: Tables) -> tuple[Tables, list[VectorEntry]]:
    """Writes the vectors of the tables below a prepared folder; the tables without them, which is what tasks are given,
    and what the manifest says of all vectors. `run`: one `with_sizes`.

    Raises:
        ConfigError: see `vector_columns`.
    """
    entries, offset = [], 0
    for scope, vector in vector_columns(run):
        size = vector.dim if scope == "log" else _table(tables, scope).vectors[vector.column].shape[1]
        assert size is not None, "the log's vectors have sizes"
        entries.append(VectorEntry(name=vector.column, scope=scope, offset=offset, size=size))
        offset += size
    for scope in dict.fromkeys(entry.scope for entry in entries if entry.scope != "log"):
        found = _table(tables, scope).vectors
        save_vectors(fs, folder, scope, [found[entry.name] for entry in entries if entry.scope == scope])
    bare = {name: None if table is None else table.without_vectors() for name, table in vars(tables).items()}
    return replace(tables, **bare), entries


def _table(tables: Tables, scope: Scope) -> EntityTable:
    table = tables.items if scope == "item" else tables.users
    assert table is not None
    return table
