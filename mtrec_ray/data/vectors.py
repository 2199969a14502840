"""The vectors of a prepared folder's items and users: `vectors/<scope>.npy`, once for all requests.

float32 [1 + N, V], a row per row of the table of items or users (of a table with `valid_from`, per version), the
declared vectors of the table side by side; row 0 is that of unknown ones, and NaN as every missing vector is. Requests
name a candidate's rows in their columns `item_row` and `user_row`, and the catalogue (`data.catalogue`) those of all
items. Not with each request: ten thousand items of 768 numbers are 30 MB, and of a million candidates the same vectors
would be 3 GB.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from mtrec_ray.data.filesystem import open_atomic, open_fs
from mtrec_ray.data.manifest import Manifest, VectorEntry
from mtrec_ray.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

VECTORS = "vectors"
"""The column of requests with the log's own vectors of each candidate."""
STORED = ("item", "user")
"""The scopes of vectors that are looked up."""


def row_column(scope: str) -> str:
    """The column of requests that says which row of the stored vectors a candidate has."""
    return f"{scope}_row"


def save_vectors(fs: pafs.FileSystem, folder: str, scope: str, vectors: Sequence[Array]) -> None:
    """Writes the vectors of a table, each float32 [N, size], below the prepared folder."""
    width = sum(part.shape[1] for part in vectors)
    rows = np.empty((1 + len(vectors[0]), width), dtype=np.float32)
    rows[0] = np.nan
    np.concatenate(vectors, axis=1, out=rows[1:])
    with open_atomic(fs, f"{folder}/{_path(scope)}") as stream:
        np.lib.format.write_array(stream, rows, allow_pickle=False)


def load_vectors(prepared: str, manifest: Manifest) -> dict[str, Array]:
    """The stored vectors by scope, of those that the manifest has: of local files only what is looked up is read.

    Raises:
        DataError: a file that is not what the manifest promises.
    """
    fs, root = open_fs(prepared)
    found = {}
    for scope in STORED:
        width = sum(entry.size for entry in manifest.vectors if entry.scope == scope)
        if width:
            found[scope] = _load(fs, root, prepared, scope)
            if found[scope].ndim != 2 or found[scope].shape[1] != width:
                raise DataError(_damaged(prepared, scope, f"an array of shape {found[scope].shape}", width))
    return found


def assemble(
    entries: Sequence[VectorEntry], own: Array, stored: Mapping[str, Array], rows: Mapping[str, Array]
) -> Array:
    """float32 [C, V] in the order of the manifest's `entries`: the log's own vectors [C, .], and the rows (int [C]) of
    the stored ones of each scope."""
    scopes = [scope for scope in STORED if any(entry.scope == scope for entry in entries)]
    return np.concatenate([own, *(stored[scope][rows[scope]] for scope in scopes)], axis=1)


def _load(fs: pafs.FileSystem, root: str, prepared: str, scope: str) -> Array:
    path = f"{root}/{_path(scope)}"
    try:
        if fs.type_name == "local":
            mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        with fs.open_input_file(path) as file:
            read: Array = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return read
    except (OSError, ValueError) as error:
        raise DataError(_damaged(prepared, scope, str(error), None)) from error


def _path(scope: str) -> str:
    return f"vectors/{scope}.npy"


def _damaged(prepared: str, scope: str, found: str, width: int | None) -> str:
    promised = "vectors of its table" if width is None else f"rows of {width} numbers"
    return (
        f"{prepared}/{_path(scope)}: found {found}, but the manifest promises {promised}. The prepared folder is "
        "damaged; delete it and run `mtrec prepare` again."
    )
