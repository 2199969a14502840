"""Small synthetic requests, manifests and configs for tests of model, engines and loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import CategoryEntry, Manifest, NumberEntry, TaskEntry
from mtrec_ray.model.dropout import token_uids
from mtrec_ray.model.layout import RequestLayout
from tests.fixtures import manifest_of

VOCAB, USERS, ITEMS = 60, 9, 13
OBSERVED, POSITIVES = {"train": 100, "valid": 40, "test": 40}, {"train": 30, "valid": 12, "test": 12}
TASKS = [
    TaskEntry(name="like", kind="binary", labels="binary", observed=OBSERVED, positives=POSITIVES, mean=0.3, std=0.45),
    TaskEntry(
        name="stars", kind="regression", labels="number", observed=OBSERVED, positives=POSITIVES, mean=3.5, std=1.2
    ),
    TaskEntry(
        name="kind",
        kind="multiclass",
        labels="class",
        classes=3,
        observed=OBSERVED,
        positives=POSITIVES,
        mean=1,
        std=1,
        frequencies=[0.5, 0.3, 0.2],
    ),
]
OBSERVED = (0.9, 0.5, 0.25)
"""Shares of observed labels: uneven over tasks, and by chance over requests."""
CONFIG = """
name: test
data: {logs: none.csv, columns: {user: user, item: item, time: time}}
tasks: {like: {label: like}, stars: {label: stars, kind: regression}, kind: {label: kind, kind: multiclass, classes: 3}}
backbone: none
features: {user_dim: 4, item_dim: 4, category_dim: 3, number_dim: 2, hidden: [12], dropout: 0.1, id_dropout: 0.2}
towers: {z_dim: 8, hidden: [6], dropout: 0.1}
train: {batch_requests: 8, warmup: 0.1}
engine: {name: plain}
"""


@dataclass(frozen=True)
class Step:
    """As `data.stream.Step`, with a number for a plan."""

    plan: int
    batches: list[Batch]


def make_run(*overrides: str) -> Run:
    return config_file.parse(CONFIG, overrides)


def make_manifest(tasks: Sequence[TaskEntry] = TASKS) -> Manifest:
    numbers = [
        NumberEntry(name="a", index=0, kind="number", mean=0.0, std=1.0, quantiles=[-1.5, -0.5, 0.0, 0.5, 1.5]),
        NumberEntry(name="b", index=1, kind="aggregate", mean=1.0, std=2.0, quantiles=[-1.0, 1.0, 3.0]),
        NumberEntry(name="c", index=2, kind="time", mean=5.0, std=0.0, quantiles=[5.0]),
    ]
    categories = [
        CategoryEntry(name="g", offset=0, width=2, size=5),
        CategoryEntry(name="h", offset=2, width=1, size=4),
    ]
    return manifest_of(
        tasks=list(tasks),
        categories=categories,
        numbers=numbers,
        num_users=USERS,
        num_items=ITEMS,
        vocab_size=VOCAB,
    )


def make_request(number: int, seed: int = 0, tasks: int = len(TASKS)) -> dict[str, Any]:
    """One request by number: 0-4 events, 1-5 candidates; labels follow the first number, so they can be learned."""
    rng = np.random.default_rng([seed, number])
    events, candidates = int(rng.integers(0, 5)), int(rng.integers(1, 6))
    numbers = rng.normal(size=(candidates, 3)).astype(np.float32)
    like = (numbers[:, 0] + 0.3 * rng.normal(size=candidates) > 0).astype(np.float32)
    labels = np.stack([like, 3.5 + numbers[:, 0], rng.integers(0, 3, candidates)], axis=1).astype(np.float32)
    labels[rng.random(labels.shape) >= OBSERVED] = np.nan
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    return {
        "uid": number,
        "events": events,
        "event_tokens": rng.integers(1, 4, events),
        "event_item": rng.integers(0, ITEMS, events),
        "event_feedback": np.where(rng.random((events, 3)) < 0.5, np.nan, 1.0).astype(np.float32)[:, :tasks],
        "candidate_tokens": rng.integers(1, 4, candidates),
        "candidate_events": np.sort(rng.integers(0, events + 1, candidates)),
        "tokens": rng.integers(0, VOCAB, 40),
        "user": rng.integers(0, USERS),
        "item": rng.integers(0, ITEMS, candidates),
        "categories": np.stack(
            [rng.integers(0, 5, candidates), rng.integers(-1, 5, candidates), rng.integers(0, 4, candidates)], 1
        ),
        "numbers": numbers,
        "labels": labels[:, :tasks],
        "row_ids": number * 100 + np.arange(candidates),
    }


def make_batch(requests: Sequence[dict[str, Any]], tokens: bool = False, tasks: int = len(TASKS)) -> Batch:
    """A micro-batch of these requests, with token rows if asked for; without requests an empty one."""

    def join(key: str, empty: tuple[int, ...], dtype: Any) -> torch.Tensor:
        parts = [np.asarray(r[key]) for r in requests]
        return torch.from_numpy(np.concatenate(parts).astype(dtype) if parts else np.zeros(empty, dtype))

    counts = np.array([len(r["item"]) for r in requests], dtype=np.int64)
    event_start = np.concatenate([[0], np.cumsum([r["events"] for r in requests])]).astype(np.int64)[: len(requests)]
    start = torch.from_numpy(np.repeat(event_start, counts))
    layout, ids, uids = _tokens(requests if tokens else [], counts)
    row_ids = join("row_ids", (0,), np.int64)
    return Batch(
        ids=ids,
        layout=layout,
        token_uids=uids,
        user_index=torch.from_numpy(np.repeat(np.array([r["user"] for r in requests], dtype=np.int64), counts)),
        item_index=join("item", (0,), np.int64),
        categories=join("categories", (0, 3), np.int64),
        numbers=join("numbers", (0, 3), np.float32),
        labels=join("labels", (0, tasks), np.float32),
        label_weights=torch.ones(len(row_ids), tasks),
        row_ids=row_ids,
        times=1_000_000_000 + row_ids,
        event_item=join("event_item", (0,), np.int64),
        event_feedback=join("event_feedback", (0, tasks), np.float32),
        event_time=torch.arange(int(sum(r["events"] for r in requests))) * 1000,
        request=torch.from_numpy(np.repeat(np.arange(len(requests)), counts)),
        context=torch.zeros(len(row_ids), 0),
        delays=torch.full((len(row_ids), tasks), torch.nan),
        elapsed=torch.full((len(row_ids),), torch.nan),
        domain=torch.zeros(len(row_ids), dtype=torch.int64),
        policy=torch.zeros(len(row_ids), dtype=torch.int64),
        shown=join("candidate_events", (0,), np.int64),
        candidate_event_start=start,
        candidate_event_end=start + join("candidate_events", (0,), np.int64),
    )


def _tokens(requests: Sequence[dict[str, Any]], counts: np.ndarray) -> tuple[RequestLayout, torch.Tensor, torch.Tensor]:
    history = [int(r["event_tokens"].sum()) for r in requests]
    ends = [np.concatenate([[0], np.cumsum(r["event_tokens"])])[r["candidate_events"]].tolist() for r in requests]
    lengths = [r["candidate_tokens"].tolist() for r in requests]
    layout = RequestLayout.from_lengths(history, lengths, ends)
    parts = [r["tokens"][: h + sum(n)] for r, h, n in zip(requests, history, lengths, strict=True)]
    ids = torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.zeros(0, dtype=torch.int64)
    uids = torch.tensor([r["uid"] for r in requests], dtype=torch.int64)
    return layout, ids, token_uids(uids, layout.token_requests(), layout.request_offsets())


def make_steps(
    count: int,
    ranks: int = 1,
    rank: int = 0,
    micro_steps: int = 1,
    requests: int = 8,
    tokens: bool = False,
    tasks: int = len(TASKS),
) -> list[Step]:
    """`count` steps of `requests` requests each, dealt round robin to ranks and micro-steps."""
    steps = []
    for step in range(count):
        mine = [n for n in range(step * requests, (step + 1) * requests) if n % ranks == rank]
        parts = [[make_request(n, tasks=tasks) for n in mine[m::micro_steps]] for m in range(micro_steps)]
        steps.append(Step(step, [make_batch(part, tokens, tasks) for part in parts]))
    return steps
