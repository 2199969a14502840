"""A small world with known chances: its prepared folder, predictions and training log, as the contracts have them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.data.manifest import CategoryEntry, Manifest, NumberEntry, ShardEntry, TaskEntry
from mtrec_ray.evaluate.facts import shown_together
from mtrec_ray.tasks.labels import labels_of
from tests.fixtures import manifest_of, write_shard

TASKS = ("like", "rating", "mood")
MOODS = 3
DAY = 86_400_000_000

CONFIG = """
name: demo
data: {logs: logs.csv, columns: {user: user, item: item, time: time}}
tasks:
  like: {label: rating >= 4, feedback_delay: 0s}
  rating: {kind: regression, label: rating, feedback_delay: 0s}
  mood: {kind: multiclass, classes: 3, label: mood, feedback_delay: 0s}
"""


@dataclass(frozen=True)
class World:
    """N ratings in order of time; what the user likes is a tendency of the user, of the item, and of one number."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    number: np.ndarray
    genres: np.ndarray
    labels: np.ndarray
    """[N, T]"""
    chance: np.ndarray
    """[N] true probability of `like`"""
    split: np.ndarray


def make_world(users: int = 40, items: int = 30, rows: int = 1200, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, users, rows), rng.integers(0, items, rows)
    time = np.sort(rng.integers(1, 50, rows)) * DAY
    number = rng.normal(0, 1, rows)
    taste, quality = rng.normal(0, 1, users), rng.normal(0, 1, items)
    affinity = taste[user] + quality[item] + 1.5 * number
    chance = 1 / (1 + np.exp(-affinity))
    like = (rng.random(rows) < chance) * 1.0
    rating = np.clip(3 + affinity + rng.normal(0, 0.5, rows), 0.5, 5)
    mood = np.clip(np.digitize(affinity, [-1, 1]), 0, MOODS - 1) * 1.0
    like[rng.random(rows) < 0.05] = np.nan
    genres = np.stack([item % 4 + 1, np.where(item % 3 == 0, -1, item % 3)], axis=1)
    split = np.where(np.arange(rows) < 0.7 * rows, "train", np.where(np.arange(rows) < 0.85 * rows, "valid", "test"))
    return World(user, item, time, number, genres, np.stack([like, rating, mood], axis=1), chance, split)


def request(world: World, rows: np.ndarray, user: int) -> dict:
    """One request: some rows of one user, each seeing all the user's rows of earlier days."""
    mine = np.flatnonzero((world.user == user) & (world.time < world.time[rows].max()))
    return {
        "request_uid": int(rows[0]),
        "user": f"u{user}",
        "user_index": user + 1,
        "event_item": world.item[mine] + 1,
        "event_time": world.time[mine],
        "event_feedback": world.labels[mine].ravel(),
        "candidate_ends": np.arange(len(rows)),
        "candidate_events": [int((world.time[mine] < t).sum()) for t in world.time[rows]],
        "item": [f"i{i}" for i in world.item[rows]],
        "item_index": world.item[rows] + 1,
        "time": world.time[rows],
        "row_id": rows,
        "categories": np.concatenate([world.item[rows][:, None] % 5, world.genres[rows]], axis=1).ravel(),
        "numbers": np.where(rows % 50 == 0, np.nan, world.number[rows]),
        "labels": world.labels[rows].ravel(),
    }


def write_prepared(folder: Path, world: World, buckets: int = 2) -> Manifest:
    shards: dict[str, list[ShardEntry]] = {}
    for split in ("train", "valid", "test"):
        (folder / split).mkdir(parents=True)
        shards[split] = []
        for bucket in range(buckets):
            requests = []
            for user in range(bucket, world.user.max() + 1, buckets):
                rows = np.flatnonzero((world.user == user) & (world.split == split))
                requests += [
                    request(world, part, user) for part in np.array_split(rows, 1 + len(rows) // 8) if len(part)
                ]
            path = f"{split}/part-{bucket:05}.parquet"
            shards[split].append(write_shard(folder, path, requests))
    manifest = make_manifest(world, shards)
    (folder / "manifest.json").write_text(manifest.to_json())
    pq.write_table(
        pa.table(
            {
                "file": ["logs.csv"] * 3,
                "row": [4, 8, 9],
                "reason": ["no time", "no time", "no user"],
                "content": ["", "", ""],
            }
        ),
        folder / "quarantine.parquet",
    )
    return manifest


def make_manifest(world: World, shards: dict[str, list[ShardEntry]]) -> Manifest:
    kinds = {"like": "binary", "rating": "regression", "mood": "multiclass"}
    train = world.labels[world.split == "train"]
    moods = np.bincount(train[:, 2].astype(int), minlength=MOODS) / len(train)
    tasks = []
    for t, name in enumerate(TASKS):
        observed = train[~np.isnan(train[:, t]), t]
        by_split = {split: world.labels[world.split == split][:, t] for split in shards}
        tasks.append(
            TaskEntry(
                name=name,
                kind=kinds[name],
                labels=labels_of(kinds[name]),
                classes=MOODS if name == "mood" else 1,
                observed={split: int((~np.isnan(column)).sum()) for split, column in by_split.items()},
                positives={split: int((column > 0).sum()) for split, column in by_split.items()},
                mean=float(observed.mean()) if len(observed) else 0.0,
                std=float(observed.std()) if len(observed) else 0.0,
                frequencies=moods.tolist() if name == "mood" else [],
            )
        )
    return manifest_of(
        fingerprint="0123456789abcdef",
        tasks=tasks,
        categories=[
            CategoryEntry(name="brand", offset=0, width=1, size=5),
            CategoryEntry(name="genres", offset=1, width=2, size=5),
        ],
        numbers=[NumberEntry(name="affinity", index=0, kind="number", mean=0, std=1, quantiles=[0])],
        num_users=int(world.user.max()) + 2,
        num_items=int(world.item.max()) + 2,
        shards=shards,
        counts={
            "rows_read": len(world.user) + 3,
            "rows_quarantined": 3,
            "requests": sum(e.requests for entries in shards.values() for e in entries),
            "candidates": len(world.user),
            "users": 40,
        },
    )


def write_predictions(path: Path, world: World, seed: int = 1) -> None:
    """A model that knows the truth but for a little noise."""
    rows = np.flatnonzero(world.split != "train")
    rows = np.random.default_rng(seed).permutation(rows)
    noise = np.random.default_rng(seed).normal(0, 0.5, len(rows))
    logit = np.log(world.chance / (1 - world.chance))[rows] + noise
    moods = np.exp(-np.square(np.clip(1 + logit / 2, 0, 2)[:, None] - np.arange(MOODS)))
    table = {
        "split": world.split[rows],
        "row_id": rows,
        "shown": shown_together(world.user, world.time, np.arange(len(world.user)))[rows],
        "user": [f"u{u}" for u in world.user[rows]],
        "item": [f"i{i}" for i in world.item[rows]],
        "time": world.time[rows],
        "score.like": 1 / (1 + np.exp(-logit)),
        "score.rating": np.clip(3 + logit, 0.5, 5),
        "score.mood": (moods / moods.sum(axis=1, keepdims=True)).tolist(),
    }
    table |= {f"label.{name}": world.labels[rows, t] for t, name in enumerate(TASKS)}
    pq.write_table(pa.table(table), path)


def write_log(path: Path) -> None:
    """Forty training steps and two evaluations, as the training loop writes them."""
    lines: list[dict] = []
    for step in range(10, 410, 10):
        decay = np.exp(-step / 150)
        losses = {"loss/like": 0.5 + 0.2 * decay, "loss/rating": 0.4 + 0.5 * decay, "loss/mood": 0.7 + 0.4 * decay}
        speed = {"candidates_per_s": 900.0 + step % 7, "tokens_per_s": 52_000.0, "ingest_wait_share": 0.02}
        rates = {"lr/adapters": 1e-3, "lr/towers": 1e-3, "lr/tables": 2e-3, "grad_norm": 1 + decay}
        lines.append(
            {"kind": "train", "step": step, "epoch": step / 200, "loss": sum(losses.values())} | losses | rates | speed
        )
        if step % 200 == 0:
            metrics = {
                "like/auc": 0.8 + step / 1e4,
                "like/gauc": 0.7,
                "like/logloss": 0.5,
                "rating/rmse": 0.9,
                "mood/accuracy": 0.8,
            }
            lines.append({"kind": "valid", "step": step, "epoch": step / 200} | metrics)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
