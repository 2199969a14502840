"""The last pass: buckets -> encoded shards, one per bucket, split and period (`data.period`), and their documents.

A shard is a piece whose key is the digest of the part of the bucket that its candidates can see, so it is made again
only if something changed that they see: rows of their users before them, labels, items' cells, what was fitted.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.data.features.aggregates import declared
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.features.side_features import asked_of_items
from mtrec_ray.data.filesystem import FoundFile, write_atomic
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.preparing.digest import digest
from mtrec_ray.data.preparing.encode import Encoded, encode, encode_documents
from mtrec_ray.data.preparing.item_pass import read_answers
from mtrec_ray.data.preparing.part import part_of, table_rows, train_part
from mtrec_ray.data.preparing.pieces import Pieces, key_of
from mtrec_ray.data.preparing.settle import Source
from mtrec_ray.data.preparing.shuffle import BucketFiles
from mtrec_ray.data.preparing.stages import has_windows, read_built
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.ids import hashed
from mtrec_ray.data.requests.splits import TimeSplit

Array = np.ndarray[Any, np.dtype[Any]]

ROW_GROUP_REQUESTS = 32
SHARDS, DOCUMENTS = "shards", "documents"


@dataclass(frozen=True)
class EncodeTask:
    """For the pass that writes the result."""

    source: Source
    pieces: Pieces
    run: Run
    """Its `encoding_part`"""
    period: float | None
    """`data.period`"""
    tables: Tables
    boundaries: TimeSplit | None
    log_end: int
    fitted: Fitted
    encoder: TextEncoder | None
    shared_end: bool
    items_run: bool
    sample_below: int
    """Train candidates whose hashed row id is below this are the sample for the scalers"""
    sample_until: int
    """First time, microseconds, of train rows from which nothing is fitted"""
    common: str
    """Digest of all that is the same for every bucket"""


@dataclass(frozen=True)
class Written:
    """One shard, or the documents of a bucket."""

    requests: int
    candidates: int
    tokens: int
    sha256: str
    sample_ids: Array
    """int64 [n] row ids of the sample"""
    sample: Array
    """float32 [n, F]"""
    longest: dict[str, int]
    counts: dict[str, int]


@dataclass(frozen=True)
class BucketShards:
    """What a bucket became."""

    shards: list[tuple[int, str, str]]
    """(period, split, key) of each shard"""
    documents: str | None
    """Key, if it has any"""


def encode_bucket(files: BucketFiles, task: EncodeTask) -> BucketShards:
    """Writes those shards of one bucket, and its documents, that are not there yet."""
    data = read_built(files, task.source, task.boundaries, task.log_end)
    past = np.zeros((0, 0))
    if task.items_run:
        past = read_answers(task.source.fs, task.source.work, files.number, task.source.run.data.buckets)
        past = asked_of_items(past, task.run)
        if not any(aggregate.kind == "running" for aggregate in declared(task.run)):
            past = past[:, :1]  # since when an item is there is all that is asked
    shards = []
    delayed = has_windows(task.run)
    for period, code, chosen in _parts(data, task.period):
        part = part_of(data, chosen, delayed)
        own_past = past[chosen] if len(past) else past
        key = key_of(SHARDS, task.common, part, own_past, table_rows(part, task.tables, task.run))
        if not task.pieces.has(SHARDS, key):
            _write_shard(_encode(part, own_past, task), part, SPLITS[code], key, task)
        shards.append((period, SPLITS[code], key))
    documents = None
    if task.encoder is not None:
        part = train_part(data)
        key = key_of(DOCUMENTS, task.common, part, table_rows(part, task.tables, task.run))
        if not task.pieces.has(DOCUMENTS, key):
            _write_documents(encode_documents(part, task.run, task.tables, task.encoder), key, task)
        documents = key if task.pieces.load(DOCUMENTS, key).requests else None
    return BucketShards(shards, documents)


def encode_key(files: BucketFiles, task: EncodeTask, tables: Sequence[Sequence[FoundFile]], answers: str) -> str:
    """The key of what a bucket becomes. `tables`: their files; `answers`: digest of what its candidates are told of
    their items."""
    return key_of(files.key, task.common, task.boundaries, task.log_end, task.period, tables, answers)


def common_digest(task: EncodeTask, tokenizer: str) -> str:
    """Of what is the same for all parts of all buckets; `tokenizer`: the digest of its files."""
    fitted = (task.fitted, task.sample_below, task.sample_until)
    return digest(task.run, fitted, tokenizer, task.shared_end, ROW_GROUP_REQUESTS)


def _parts(data: Bucket, period: float | None) -> list[tuple[int, int, Array]]:
    """(period, split, candidates) of each shard: of every split at least one, should it have no candidates. Rows shown
    together are in one period."""
    length = round((period or 0) * 1_000_000)
    periods = data.candidates.asof // length if length else np.zeros(len(data.split), dtype=np.int64)
    parts = []
    for code in range(len(SPLITS)):
        mine = np.flatnonzero(data.split == code)
        for one in np.unique(periods[mine]).tolist() or [0]:
            parts.append((one, code, mine[periods[mine] == one]))
    return parts


def _encode(part: Bucket, past: Array, task: EncodeTask) -> Encoded:
    return encode(part, task.run, task.tables, task.fitted, task.encoder, task.shared_end, past)


def _write_shard(encoded: Encoded, part: Bucket, split: str, key: str, task: EncodeTask) -> None:
    requests, lengths = encoded.requests[split], encoded.lengths[split]
    sha256 = _write_parquet(task.pieces, SHARDS, key, ".parquet", requests, ROW_GROUP_REQUESTS)
    _write_parquet(task.pieces, SHARDS, key, ".lengths.parquet", lengths, None)
    row = part.candidates.row
    row_ids = part.rows.row_id[row]
    sampled = part.train & (hashed(row_ids) < np.uint64(task.sample_below)) & (part.rows.time[row] < task.sample_until)
    written = Written(
        requests=requests.num_rows,
        candidates=int(lengths["candidates"].to_numpy().sum()),
        tokens=int(lengths["tokens"].to_numpy().sum()),
        sha256=sha256,
        sample_ids=row_ids[sampled],
        sample=encoded.numbers[sampled],
        longest=encoded.longest,
        counts=encoded.counts,
    )
    task.pieces.save(SHARDS, key, written)


def _write_documents(documents: pa.Table, key: str, task: EncodeTask) -> None:
    sha256 = _write_parquet(task.pieces, DOCUMENTS, key, ".parquet", documents, None)
    none = np.zeros(0)
    task.pieces.save(DOCUMENTS, key, Written(documents.num_rows, 0, 0, sha256, none, none, {}, {}))


def _write_parquet(pieces: Pieces, kind: str, key: str, rest: str, table: pa.Table, row_group: int | None) -> str:
    """Writes the file at once, and returns its SHA-256."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group)
    content = sink.getvalue()
    write_atomic(pieces.fs, pieces.path(kind, key, rest), content)
    return hashlib.sha256(content).hexdigest()
