"""One split of a prepared folder as an indexed set of requests: row groups, sidecars, and rows by number."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from mtrec_ray.data.filesystem import open_fs, path_in
from mtrec_ray.data.manifest import FORMAT, Manifest
from mtrec_ray.errors import DataError

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Shards:
    """The requests of a split, numbered from 0 shard after shard, in row groups of `row_group_requests`.

    Only the manifest is read at first; everything else when asked for.
    """

    def __init__(self, prepared: str, manifest: Manifest, split: str) -> None:
        self.prepared = prepared
        self.split = split
        self.entries = manifest.shards[split]
        self.row_group_requests = manifest.row_group_requests
        self.context = manifest.context
        self.cost_column = "tokens" if manifest.vocab_size else "candidates"

    @cached_property
    def offsets(self) -> IntArray:
        """int64 [S + 1]: number of the first request of each shard, and the total."""
        return np.cumsum([0, *(entry.requests for entry in self.entries)], dtype=np.int64)

    @property
    def num_requests(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def _groups(self) -> tuple[IntArray, IntArray]:
        """Number of the first request, and size, of each row group of the split."""
        size = self.row_group_requests
        firsts = [np.arange(offset, end, size) for offset, end in zip(self.offsets, self.offsets[1:], strict=False)]
        ends = [np.minimum(f + size, end) for f, end in zip(firsts, self.offsets[1:], strict=True)]
        starts = np.concatenate([np.zeros(0, dtype=np.int64), *firsts])
        return starts, np.concatenate([np.zeros(0, dtype=np.int64), *ends]) - starts

    @property
    def group_sizes(self) -> IntArray:
        """int64: requests of each row group."""
        return self._groups[1]

    def costs(self, groups: IntArray) -> tuple[IntArray, IntArray]:
        """Numbers and costs (tokens, or candidates where there are none) of the requests of some row groups."""
        starts, sizes = self._groups
        spans = [np.arange(starts[g], starts[g] + sizes[g]) for g in groups]
        numbers = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
        costs = np.zeros(len(numbers), dtype=np.int64)
        for shard, chosen in self._by_shard(numbers):
            path = _sidecar(self.entries[shard].path)
            table, rows = self._read(shard, path, numbers[chosen] - self.offsets[shard], [self.cost_column])
            costs[chosen] = table.column(self.cost_column).to_numpy()[rows]
        return numbers, costs

    def rows(self, numbers: IntArray, columns: Sequence[str] | None = None) -> pa.Table:
        """The requests with these numbers, in this order; reads only the row groups that hold them."""
        tables, places, before = [], np.zeros(len(numbers), dtype=np.int64), 0
        for shard, chosen in self._by_shard(numbers):
            local = numbers[chosen] - self.offsets[shard]
            table, rows = self._read(shard, self.entries[shard].path, local, columns)
            places[chosen] = before + rows
            before += table.num_rows
            tables.append(table)
        if not tables:
            return self.schema(columns).empty_table()
        return pa.concat_tables(tables).take(pa.array(places))

    def schema(self, columns: Sequence[str] | None = None) -> pa.Schema:
        """Arrow schema of the request rows."""
        filesystem, root = open_fs(self.prepared)
        schema = pq.read_schema(path_in(root, self.entries[0].path), filesystem=filesystem).remove_metadata()
        return schema if columns is None else pa.schema([schema.field(name) for name in columns])

    def _by_shard(self, numbers: IntArray) -> Iterator[tuple[int, IntArray]]:
        """For each shard that holds some of the requests: the shard, and the places of those in `numbers`."""
        shards = np.searchsorted(self.offsets, numbers, side="right") - 1
        for shard in np.unique(shards):
            yield int(shard), np.flatnonzero(shards == shard)

    def _read(self, shard: int, path: str, local: IntArray, columns: Sequence[str] | None) -> tuple[pa.Table, IntArray]:
        """The row groups of a file that hold some of its rows, and where in that table those rows are."""
        filesystem, root = open_fs(self.prepared)
        try:
            with pq.ParquetFile(path_in(root, path), filesystem=filesystem) as file:
                sizes = _group_sizes(file)
                if sizes.sum() != self.entries[shard].requests:
                    raise DataError(self._damaged(path, f"{sizes.sum()} requests", self.entries[shard].requests))
                ends = np.cumsum(sizes)
                groups = np.searchsorted(ends, local, side="right")
                needed = np.unique(groups)
                table = file.read_row_groups(needed.tolist(), columns=None if columns is None else list(columns))
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(self._damaged(path, str(error), self.entries[shard].requests)) from error
        start_in_table = np.zeros(len(sizes), dtype=np.int64)
        start_in_table[needed] = np.cumsum(sizes[needed]) - sizes[needed]
        rows = start_in_table[groups] + local - (ends - sizes)[groups]
        return table.replace_schema_metadata(None), rows

    def _damaged(self, path: str, found: str, requests: int) -> str:
        return (
            f"{self.prepared}/{path}: found {found}, but the manifest promises {requests} requests. "
            "It is damaged: delete it, all files of its name and the prepared folder, and run `mtrec prepare` again."
        )


def load_manifest(prepared: str) -> Manifest:
    """The manifest of a prepared folder. Raises `DataError` where there is none, or one that cannot be read."""
    filesystem, root = open_fs(prepared)
    try:
        with filesystem.open_input_stream(f"{root}/manifest.json") as file:
            return Manifest.model_validate_json(file.read())
    except ValidationError as error:
        raise DataError(
            f"{prepared}/manifest.json cannot be read: {_first_mistake(error)}. The folder was prepared by another "
            f"version, or is damaged; expected format {FORMAT}. Run `mtrec prepare` again."
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{prepared} holds no manifest.json, so it is no prepared folder; run `mtrec prepare`."
        ) from error


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors()[0]
    return f"{'.'.join(map(str, mistake['loc']))} {mistake['msg'].lower()}".strip()


def _sidecar(path: str) -> str:
    return path.removesuffix(".parquet") + ".lengths.parquet"


def _group_sizes(file: Any) -> IntArray:
    metadata = file.metadata
    return np.array([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)], dtype=np.int64)
