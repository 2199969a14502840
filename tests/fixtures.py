"""A tiny prepared folder, written straight from the contract in docs/ARCHITECTURE.md, for tests that need no logs."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.data.manifest import CategoryEntry, Manifest, NumberEntry, ShardEntry, TaskEntry
from mtrec_ray.tasks.labels import labels_of

VOCAB = 50
REQUEST_SCHEMA = pa.schema(
    [
        ("request_uid", pa.int64()),
        ("user", pa.string()),
        ("user_index", pa.int32()),
        ("history_ids", pa.list_(pa.int32())),
        ("history_ends", pa.list_(pa.int32())),
        ("event_item", pa.list_(pa.int32())),
        ("event_time", pa.list_(pa.int64())),
        ("event_feedback", pa.list_(pa.float32())),
        ("candidate_ids", pa.list_(pa.int32())),
        ("candidate_ends", pa.list_(pa.int32())),
        ("candidate_events", pa.list_(pa.int32())),
        ("item", pa.list_(pa.string())),
        ("item_index", pa.list_(pa.int32())),
        ("time", pa.list_(pa.int64())),
        ("row_id", pa.list_(pa.int64())),
        ("categories", pa.list_(pa.int32())),
        ("numbers", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.float32())),
        ("context", pa.list_(pa.float32())),
        ("domain", pa.list_(pa.int32())),
        ("policy", pa.list_(pa.int32())),
    ]
)
EMPTY_LISTS: dict[str, list[Any]] = {field.name: [] for field in REQUEST_SCHEMA if pa.types.is_list(field.type)}


def manifest_of(**parts: Any) -> Manifest:
    """A manifest with these parts, of data without tokens or shards where they do not say otherwise."""
    nothing: dict[str, Any] = {
        "fingerprint": "0" * 16,
        "history_layout": "staircase",
        "vocab_size": 0,
        "context": [],
        "domains": [""],
        "policies": [""],
        "positions": [],
        "propensities": 0,
        "max_request_tokens": 64,
        "max_position": 64,
        "row_group_requests": 64,
        "shards": {},
        "documents": [],
        "boundaries": {},
        "counts": {},
    }
    return Manifest(**{**nothing, **parts})


def write_prepared(
    folder: Path,
    requests: dict[str, int] | None = None,
    *,
    shards: int = 3,
    row_group: int = 4,
    seed: int = 0,
    tokens: bool = True,
    shared_end: bool = False,
    tasks: tuple[str, ...] = ("like", "rating"),
) -> Manifest:
    """Writes a prepared folder: the first task depends on the item, later ones are regressions, a third is NaN."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, list[ShardEntry]] = {}
    counts = requests or {"train": 37, "valid": 7, "test": 9}
    uid = 0
    for split, count in counts.items():
        (folder / split).mkdir(exist_ok=True)
        entries[split] = []
        for shard, size in enumerate(len(part) for part in np.array_split(np.arange(count), shards)):
            rows = [_request(rng, uid + i, tokens, shared_end, tasks) for i in range(size)]
            uid += size
            entries[split].append(write_shard(folder, f"{split}/part-{shard:05d}.parquet", rows, row_group))
    documents = _write_documents(folder, rng) if tokens else []
    manifest = _manifest(entries, row_group, tokens, shared_end, tasks, documents)
    (folder / "manifest.json").write_text(manifest.to_json())
    return manifest


def _request(
    rng: np.random.Generator, uid: int, tokens: bool, shared_end: bool, tasks: tuple[str, ...]
) -> dict[str, Any]:
    events, candidates = int(rng.integers(0, 6)), int(rng.integers(1, 5))
    history = [rng.integers(3, VOCAB, rng.integers(1, 5)) for _ in range(events)] if tokens else []
    own = [rng.integers(3, VOCAB, rng.integers(1, 4)) for _ in range(candidates)] if tokens else []
    seen = np.full(candidates, events) if shared_end else np.sort(rng.integers(0, events + 1, candidates))
    items = rng.integers(0, 6, candidates)
    labels = np.stack([(items % 2).astype(float), *(items + rng.normal(size=candidates) for _ in tasks[1:])], axis=1)
    labels[rng.random(labels.shape) < 1 / 3] = np.nan
    feedback = np.where(rng.random((events, len(tasks))) < 0.5, np.nan, 1.0)
    return {
        "request_uid": uid * 7919 + 11,
        "user": f"u{uid % 12}",
        "user_index": uid % 12,
        "history_ids": np.concatenate([*history, []]).astype(int).tolist(),
        "history_ends": np.cumsum([len(h) for h in history]).astype(int).tolist(),
        "event_item": rng.integers(0, 6, events).tolist(),
        "event_time": (np.arange(events) * 1_000_000).tolist(),
        "event_feedback": feedback.ravel().tolist(),
        "candidate_ids": np.concatenate([*own, []]).astype(int).tolist(),
        "candidate_ends": np.cumsum([len(c) for c in own]).astype(int).tolist(),
        "candidate_events": seen.tolist(),
        "item": [f"i{i}" for i in items],
        "item_index": items.tolist(),
        "time": ((seen + 1) * 1_000_000).tolist(),
        "row_id": [uid * 100 + c for c in range(candidates)],
        "categories": np.stack([items % 3, np.full(candidates, -1), items % 2], axis=1).ravel().tolist(),
        "numbers": rng.normal(size=candidates * 2).tolist(),
        "labels": labels.ravel().tolist(),
        "context": np.stack([np.arange(candidates), np.where(items % 2, np.nan, 0.5)], axis=1).ravel().tolist(),
        "domain": (items % 3).tolist(),
        "policy": [uid % 2] * candidates,
    }


def write_shard(folder: Path, path: str, rows: list[dict[str, Any]], row_group: int = 64) -> ShardEntry:
    """Writes request rows to `folder/path` and their lengths beside it; a list that a row lacks is empty."""
    rows = [{**EMPTY_LISTS, **row} for row in rows]
    table = pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)
    tokens = [len(r["history_ids"]) + len(r["candidate_ids"]) for r in rows]
    candidates = [len(r["row_id"]) for r in rows]
    pq.write_table(table, folder / path, row_group_size=row_group)
    lengths = pa.table({"tokens": pa.array(tokens, pa.int32()), "candidates": pa.array(candidates, pa.int32())})
    pq.write_table(lengths, folder / path.replace(".parquet", ".lengths.parquet"), row_group_size=row_group)
    digest = hashlib.sha256((folder / path).read_bytes()).hexdigest()
    return ShardEntry(
        path=path,
        bucket=int(path.removesuffix(".parquet")[-5:]),
        period=0,
        requests=len(rows),
        candidates=sum(candidates),
        tokens=sum(tokens),
        sha256=digest,
    )


def _write_documents(folder: Path, rng: np.random.Generator) -> list[str]:
    (folder / "documents").mkdir(exist_ok=True)
    starts = rng.integers(3, 20, 200)
    documents = [((start + np.arange(rng.integers(4, 20))) % (VOCAB - 3) + 3).tolist() for start in starts]
    pq.write_table(
        pa.table({"ids": pa.array(documents, pa.list_(pa.int32()))}), folder / "documents/part-00000.parquet"
    )
    return ["documents/part-00000.parquet"]


def _manifest(
    entries: dict[str, list[ShardEntry]],
    row_group: int,
    tokens: bool,
    shared_end: bool,
    tasks: tuple[str, ...],
    documents: list[str],
) -> Manifest:
    observed, positives = dict.fromkeys(entries, 10), dict.fromkeys(entries, 5)
    kinds = ["binary", *["regression"] * (len(tasks) - 1)]
    numbers = [
        NumberEntry(name=name, index=i, kind="number", mean=0, std=1, quantiles=[-1.0, 0.0, 1.0])
        for i, name in enumerate(("price", "age"))
    ]
    return manifest_of(
        tasks=[
            TaskEntry(
                name=name, kind=kind, labels=labels_of(kind), observed=observed, positives=positives, mean=0.5, std=1.0
            )
            for name, kind in zip(tasks, kinds, strict=True)
        ],
        categories=[
            CategoryEntry(name="genre", offset=0, width=2, size=3),
            CategoryEntry(name="page", offset=2, width=1, size=2),
        ],
        numbers=numbers,
        num_users=12,
        num_items=6,
        history_layout="shared_end" if shared_end else "staircase",
        context=["position", "propensity"],
        domains=["", "home", "search"],
        policies=["", "ranker"],
        vocab_size=VOCAB if tokens else 0,
        row_group_requests=row_group,
        shards=entries,
        documents=documents,
        counts={"rows_read": 100, "rows_quarantined": 0, "requests": 53, "candidates": 130},
    )
