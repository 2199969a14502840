"""A catalogue, batches and models of tasks that match users with items."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.id_hashes import hash_ids
from mtrec_ray.data.manifest import CatalogueEntry, Manifest, TaskEntry, VectorEntry
from mtrec_ray.data.requests.ragged import Ragged
from mtrec_ray.data.requests.rows import NEVER
from mtrec_ray.data.vectors import assemble
from mtrec_ray.model.recommender import Recommender
from tests.batches import ITEMS, POSITIVES, USERS, VOCAB, Step, make_batch, make_manifest, make_request, make_run
from tests.training import small_backbone

COLD = 4
"""Items behind those of `tests.batches` that train does not know; the last two cannot be told apart."""
OBSERVED_LABELS = {"train": 100, "valid": 40, "test": 40}
TASKS = [
    TaskEntry(name=name, kind=kind, labels="binary", observed=OBSERVED_LABELS, positives=POSITIVES, mean=0.3, std=0.45)
    for name, kind in (("like", "binary"), ("next", "retrieval"), ("interest", "interest_match"))
]
MATCHING = (
    "tasks={like: {label: like}, next: {label: next, kind: retrieval, params: {negatives: 6}}, "
    "interest: {label: interest, kind: interest_match}}"
)
ONLY = "tasks={next: {label: next, kind: retrieval, params: {negatives: 6}}}"

VECTORS = [
    VectorEntry(name="scene", scope="log", offset=0, size=4),
    VectorEntry(name="image", scope="item", offset=4, size=6),
    VectorEntry(name="audio", scope="item", offset=10, size=5),
    VectorEntry(name="graph", scope="user", offset=15, size=4),
]


def stored_vectors() -> dict[str, np.ndarray]:
    """As `data.vectors.load_vectors` has them; row 3 of items lacks its image, and the last two are the same."""
    rng = np.random.default_rng(4)
    items, users = rng.normal(size=(9, 11)).astype(np.float32), rng.normal(size=(USERS, 4)).astype(np.float32)
    items[0], items[3, :6], items[-1] = np.nan, np.nan, items[-2]
    users[0] = np.nan
    return {"item": items, "user": users}


def catalogue(vectors: bool = False) -> Catalogue:
    """Rows 0 .. ITEMS - 1 have the item's number in the vocabulary; row 0 is itself unknown.

    With `vectors` a third cold item has the text and the categories of the last two, but not their vectors.
    """
    rng = np.random.default_rng(3)
    size = ITEMS + COLD
    texts = [rng.integers(0, VOCAB, rng.integers(0, 4)).astype(np.int32) for _ in range(size)]
    categories = rng.integers(-1, 5, (size, 2))
    texts[-2] = texts[-1] = np.array([5, 6], np.int32)
    categories[-1] = categories[-2]
    shown = np.concatenate([[0], rng.integers(1, 9, ITEMS - 1), [0] * COLD])
    declared: dict[str, Any] = {}
    if vectors:
        texts[ITEMS], categories[ITEMS] = texts[-1], categories[-1]
        rows = np.append(np.arange(ITEMS) % 7, [6, 2, 7, 8])
        declared = {"item_row": rows, "vectors": stored_vectors()["item"]}
    return Catalogue(
        items=pa.array([f"i{row:02d}" for row in range(size)]),
        hashes=hash_ids([f"i{row:02d}" for row in range(size)], "item"),
        index=np.append(np.arange(ITEMS), [0] * COLD),
        categories=categories,
        text=Ragged.of(texts, np.int32),
        first_seen=np.append(1_000_000_000 + 40 * np.arange(-10, size - 11), NEVER),
        shown=shown,
        positives={"next": shown // 2, "interest": shown // 3},
        **declared,
    )


def manifest(tasks: Sequence[TaskEntry] = TASKS, vectors: bool = False) -> Manifest:
    entry = CatalogueEntry(path="catalogue.parquet", items=ITEMS + COLD, in_train=ITEMS - 1, categories=["g"])
    return make_manifest(tasks).model_copy(update={"catalogue": entry, "vectors": VECTORS if vectors else []})


def matching_run(*overrides: str, only: bool = False) -> Run:
    return make_run(ONLY if only else MATCHING, *overrides)


def matching_batch(
    requests: Sequence[dict[str, Any]], tokens: bool = False, only: bool = False, vectors: bool = False
) -> Batch:
    """Labels 0 and 1 of all tasks, some of them not observed; or of `next` alone."""
    batch = make_batch(requests, tokens)
    labels = torch.where(torch.isnan(batch.labels), torch.nan, (batch.labels > 0.5).float())
    labels[:, 1] = torch.where(torch.isnan(labels[:, 1]), torch.nan, (batch.row_ids % 2).float())
    kept = slice(1, 2) if only else slice(None)
    return replace(
        batch,
        labels=labels[:, kept],
        label_weights=batch.label_weights[:, kept],
        event_feedback=batch.event_feedback[:, kept],
        catalogue=batch.item_index,
        event_catalogue=batch.event_item,
        vectors=_vectors_of(batch) if vectors else batch.vectors,
    )


def _vectors_of(batch: Batch) -> torch.Tensor:
    own = np.sin(np.outer(batch.row_ids.numpy(), [1.0, 2.0, 3.0, 5.0])).astype(np.float32)
    item_row, user_row = catalogue(vectors=True).item_row, batch.user_index.numpy()
    assert item_row is not None
    rows = {"item": item_row[batch.item_index.numpy()], "user": user_row}
    return torch.from_numpy(assemble(VECTORS, own, stored_vectors(), rows))


def matching_steps(
    count: int, ranks: int = 1, rank: int = 0, micro_steps: int = 1, tokens: bool = False, vectors: bool = False
) -> list[Step]:
    """As `tests.batches.make_steps`."""
    steps = []
    for step in range(count):
        mine = [n for n in range(step * 8, (step + 1) * 8) if n % ranks == rank]
        parts = [[make_request(n) for n in mine[m::micro_steps]] for m in range(micro_steps)]
        steps.append(Step(step, [matching_batch(part, tokens, vectors=vectors) for part in parts]))
    return steps


def matching_model(
    run: Run, backbone: bool = False, entries: Sequence[TaskEntry] = TASKS, vectors: bool = False
) -> Recommender:
    kept = [entry for entry in entries if entry.name in run.tasks]
    return Recommender(small_backbone(run) if backbone else None, manifest(kept, vectors), run, catalogue(vectors))
