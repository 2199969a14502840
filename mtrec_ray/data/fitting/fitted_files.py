"""What was fitted, as files of the prepared folder: `fitted/vocabularies.parquet` and `fitted/statistics-<k>.npz`."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.data.features.statistics import Statistics
from mtrec_ray.data.filesystem import open_fs, write_atomic, write_table_atomic
from mtrec_ray.data.fitting.fit import Fitted
from mtrec_ray.data.fitting.tally import Vocabulary
from mtrec_ray.data.manifest import Manifest

_MAPS = ("categories", "factors", "scales")


def save_fitted(fs: pafs.FileSystem, folder: str, fitted: Fitted) -> None:
    """Writes the files below `folder`."""
    names = ["user", "item", *(f"category {name}" for name in fitted.categories)]
    vocabularies = [fitted.users, fitted.items, *fitted.categories.values()]
    table = pa.table(
        {
            "vocabulary": pa.array(names, pa.string()),
            "known": pa.array([v.known for v in vocabularies], pa.int64()),
            "width": pa.array([1, 1, *(fitted.widths[name] for name in fitted.categories)], pa.int64()),
            "keys": pa.array([v.keys.to_pylist() for v in vocabularies], pa.list_(pa.string())),
        }
    )
    write_table_atomic(fs, f"{folder}/vocabularies.parquet", table)
    write_table_atomic(fs, f"{folder}/first_seen.parquet", pa.table({"time": fitted.first_seen}))
    for k, statistics in enumerate(fitted.statistics):
        buffer = io.BytesIO()
        np.savez(buffer, **_flat(statistics))
        write_atomic(fs, f"{folder}/statistics-{k}.npz", buffer.getvalue())


def load_fitted(prepared: str, manifest: Manifest) -> Fitted:
    """What was fitted for a prepared folder."""
    fs, root = open_fs(prepared)
    folder = f"{root}/fitted"
    table = pq.read_table(f"{folder}/vocabularies.parquet", filesystem=fs).to_pylist()
    found = {row["vocabulary"]: Vocabulary(pa.array(row["keys"], pa.string()), row["known"]) for row in table}
    columns = [name.removeprefix("category ") for name in found if name.startswith("category ")]
    infos = fs.get_file_info(pafs.FileSelector(folder))
    count = sum(info.base_name.startswith("statistics-") for info in infos)
    return Fitted(
        users=found["user"],
        items=found["item"],
        first_seen=pq.read_table(f"{folder}/first_seen.parquet", filesystem=fs)["time"].to_numpy(),
        categories={name: found[f"category {name}"] for name in columns},
        widths={row["vocabulary"].removeprefix("category "): row["width"] for row in table[2:]},
        statistics=[_read_statistics(fs, f"{folder}/statistics-{k}.npz") for k in range(count)],
        tasks=manifest.tasks,
    )


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
