"""What was fitted, as files of the prepared folder: `fitted/vocabularies.parquet` and `fitted/statistics-<k>.npz`."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.data.features.statistics import Statistics
from mtrec_ray.data.filesystem import open_fs, write_atomic, write_table_atomic
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.fitting.tally import Vocabulary
from mtrec_ray.data.id_hashes import table_collisions
from mtrec_ray.data.manifest import CollisionEntry, Manifest

_MAPS = ("categories", "factors", "scales", "value_factors")
_CATEGORY = "category "


def save_fitted(fs: pafs.FileSystem, folder: str, fitted: Fitted) -> None:
    """Writes the files below `folder`."""
    names = ["user", "item", "domain", "policy", *(f"{_CATEGORY}{name}" for name in fitted.categories)]
    vocabularies = [fitted.users, fitted.items, fitted.domains, fitted.policies, *fitted.categories.values()]
    ends = pa.array(np.cumsum([0, *(len(v.keys) for v in vocabularies)]), pa.int32())
    table = pa.table(
        {
            "vocabulary": pa.array(names, pa.string()),
            "known": pa.array([v.known for v in vocabularies], pa.int64()),
            "width": pa.array([1, 1, 1, 1, *(fitted.widths[name] for name in fitted.categories)], pa.int64()),
            "keys": pa.ListArray.from_arrays(ends, pa.concat_arrays([v.keys for v in vocabularies])),
        }
    )
    write_table_atomic(fs, f"{folder}/vocabularies.parquet", table)
    for k, statistics in enumerate(fitted.statistics):
        buffer = io.BytesIO()
        np.savez(buffer, **_flat(statistics))
        write_atomic(fs, f"{folder}/statistics-{k}.npz", buffer.getvalue())


def load_fitted(prepared: str, manifest: Manifest) -> Fitted:
    """What was fitted for a prepared folder."""
    fs, root = open_fs(prepared)
    folder = f"{root}/fitted"
    table = _read_vocabularies(fs, root)
    found = {row["vocabulary"]: _vocabulary(row) for row in table}
    categories = {row["vocabulary"].removeprefix(_CATEGORY): row for row in table if _CATEGORY in row["vocabulary"]}
    infos = fs.get_file_info(pafs.FileSelector(folder))
    count = sum(info.base_name.startswith("statistics-") for info in infos)
    return Fitted(
        users=found["user"],
        items=found["item"],
        categories={name: _vocabulary(row) for name, row in categories.items()},
        domains=found["domain"],
        policies=found["policy"],
        widths={name: row["width"] for name, row in categories.items()},
        statistics=[_read_statistics(fs, f"{folder}/statistics-{k}.npz") for k in range(count)],
        tasks=manifest.tasks,
    )


def load_vocabularies(prepared: str) -> dict[str, Vocabulary]:
    """Those of a prepared folder, without all else that was fitted: `user`, `item`, `domain`, `policy` and
    `category <name>`."""
    fs, root = open_fs(prepared)
    return {row["vocabulary"]: _vocabulary(row) for row in _read_vocabularies(fs, root)}


def load_items(prepared: str) -> Vocabulary:
    """The vocabulary of items of a prepared folder, without all else that was fitted."""
    fs, root = open_fs(prepared)
    return next(_vocabulary(row) for row in _read_vocabularies(fs, root) if row["vocabulary"] == "item")


def id_collisions(prepared: str, manifest: Manifest, run: Run) -> list[CollisionEntry]:
    """Of the run's hashed tables, whatever tables the data was prepared with."""
    wanted = [(run.features.user_rows, run.features.hashes), (run.features.item_rows, run.features.hashes)]
    if run.features.ids == "exact" or [(e.rows, e.hashes) for e in manifest.id_collisions] == wanted:
        return manifest.id_collisions
    fs, root = open_fs(prepared)
    keys = {row["vocabulary"]: row["keys"] for row in _read_vocabularies(fs, root)}
    return table_collisions(keys["user"], keys["item"], run)


def _read_vocabularies(fs: pafs.FileSystem, root: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(f"{root}/fitted/vocabularies.parquet", filesystem=fs).to_pylist()
    return rows


def _vocabulary(row: dict[str, Any]) -> Vocabulary:
    return Vocabulary(pa.array(row["keys"], pa.string()), row["known"])


def _flat(statistics: Statistics) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, value in vars(statistics).items():
        if name in _MAPS:
            arrays |= {f"{name}/{key}": entry for key, entry in value.items()}
        else:
            arrays[name] = value
    return arrays


def _read_statistics(fs: pafs.FileSystem, path: str) -> Statistics:
    with fs.open_input_file(path) as file:
        arrays = dict(np.load(io.BytesIO(file.read())))
    fields: dict[str, Any] = {name: {} for name in _MAPS}
    for name, array in arrays.items():
        group, mark, key = name.partition("/")
        if mark:
            fields[group][key] = float(array) if group == "scales" else array
        else:
            fields[name] = array
    return Statistics(**fields)
