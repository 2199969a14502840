"""The vectors of a prepared folder's items and users: `vectors/<scope>.npy`, once for all requests.

float32 [1 + N, V], a row per row of the table of items or users (of a table with `valid_from`, per version), the
declared vectors of the table side by side; row 0 is that of unknown ones, and NaN as every missing vector is. Not with
each request: ten thousand items of 768 numbers are 30 MB, and of a million candidates the same vectors would be 3 GB.

Requests name a candidate's vectors by hashes, columns `item_vector` and `user_vector`, 0 = none, which no new row of a
table moves; `vectors/<scope>.hashes.npy`, int64 [1 + N] with 0 first, has them of all rows, and the rows are looked up
where requests are read. The catalogue (`data.catalogue`), made anew each time, says the rows themselves.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from mtrec_ray.data.filesystem import open_atomic, open_fs
from mtrec_ray.data.manifest import Manifest, VectorEntry
from mtrec_ray.data.requests.ids import RowsByHash
from mtrec_ray.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

VECTORS = "vectors"
"""The column of requests with the log's own vectors of each candidate."""
STORED = ("item", "user")
"""The scopes of vectors that are looked up."""
VALUES, HASHES = ".npy", ".hashes.npy"


@dataclass(frozen=True)
class StoredVectors:
    """Those of the items, or of the users."""

    scope: str
    values: Array
    """float32 [1 + N, V]"""
    hashes: Array
    """int64 [1 + N], all different; 0 = the unknown"""

    def rows(self, hashes: Array) -> Array:
        """int64 [C] of `values`, of candidates that name them by these hashes, int64 [C].

        Raises:
            DataError: one that is not there.
        """
        found = self._by_hash.of(hashes)
        if missing := int((found < 0).sum()):
            raise DataError(
                f"{_path(self.scope, HASHES)}: the vectors of {missing} of {len(found)} candidates are not in it. The "
                "prepared folder is damaged; delete it and run `mtrec prepare` again."
            )
        return found

    @cached_property
    def _by_hash(self) -> RowsByHash:
        return RowsByHash(self.hashes)


def hash_column(scope: str) -> str:
    """The column of requests that says which of the stored vectors a candidate has."""
    return f"{scope}_vector"


def save_vectors(fs: pafs.FileSystem, folder: str, scope: str, vectors: Sequence[Array], hashes: Array) -> None:
    """Writes the vectors of a table, each float32 [N, size], and the hashes of its rows below the prepared folder."""
    width = sum(part.shape[1] for part in vectors)
    rows = np.empty((1 + len(vectors[0]), width), dtype=np.float32)
    rows[0] = np.nan
    np.concatenate(vectors, axis=1, out=rows[1:])
    for end, array in ((VALUES, rows), (HASHES, np.append(np.int64(0), hashes))):
        with open_atomic(fs, f"{folder}/{_path(scope, end)}") as stream:
            np.lib.format.write_array(stream, array, allow_pickle=False)


def load_vectors(prepared: str, manifest: Manifest) -> dict[str, StoredVectors]:
    """The stored vectors by scope, of those that the manifest has: of local files only what is looked up is read.

    Raises:
        DataError: a file that is not what the manifest promises.
    """
    fs, root = open_fs(prepared)
    found = {}
    for scope in STORED:
        width = sum(entry.size for entry in manifest.vectors if entry.scope == scope)
        if width:
            values, hashes = (_load(fs, root, prepared, _path(scope, end)) for end in (VALUES, HASHES))
            if values.ndim != 2 or values.shape[1] != width:
                raise _damaged(prepared, _path(scope, VALUES), values, f"rows of {width} numbers")
            if hashes.shape != values.shape[:1]:
                raise _damaged(prepared, _path(scope, HASHES), hashes, f"{len(values)} hashes")
            found[scope] = StoredVectors(scope, values, hashes)
    return found


def assemble(
    entries: Sequence[VectorEntry], own: Array, stored: Mapping[str, Array], rows: Mapping[str, Array]
) -> Array:
    """float32 [C, V] in the order of the manifest's `entries`: the log's own vectors [C, .], and the rows (int [C]) of
    the stored ones of each scope."""
    scopes = [scope for scope in STORED if any(entry.scope == scope for entry in entries)]
    return np.concatenate([own, *(stored[scope][rows[scope]] for scope in scopes)], axis=1)


def _load(fs: pafs.FileSystem, root: str, prepared: str, name: str) -> Array:
    path = f"{root}/{name}"
    try:
        if fs.type_name == "local":
            mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        with fs.open_input_file(path) as file:
            read: Array = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return read
    except (OSError, ValueError) as error:
        raise _damaged(prepared, name, error, "vectors of its table") from error


def _path(scope: str, end: str) -> str:
    return f"vectors/{scope}{end}"


def _damaged(prepared: str, name: str, found: Array | Exception, promised: str) -> DataError:
    said = found if isinstance(found, Exception) else f"an array of shape {found.shape}"
    return DataError(
        f"{prepared}/{name}: found {said}, but the manifest promises {promised}. The prepared folder is damaged; "
        "delete it and run `mtrec prepare` again."
    )
