"""Baseline `running_rates`: the user's smoothed rate so far, together with the item's smoothed rate in train.

The user's rate is strictly as-of: feedback counts from its own time on, with the run's lag. Where the negative label
comes to be known too, it is a mean of known labels; where only the positive one does, positives / items seen. The
item's rate is fitted on train rows. Both are shrunk to the train base rate by pseudo-counts chosen on the valid split,
and add up in log-odds (regression: in the label's unit).

Past feedback has no weight, so all of these are rates of the rows that the log kept. Where rows count differently, the
sum is moved by how far the weighted base rate is from that of the kept rows: exact where the log kept all positives and
negatives at one rate (the prior correction of King & Zeng 2001, "Logistic
Regression in Rare Events Data").
"""

from collections import defaultdict
from dataclasses import dataclass, fields
from itertools import product
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest, ShardEntry, TaskEntry
from mtrec_ray.evaluate import metrics
from mtrec_ray.evaluate.candidates import flat, read_shard, weights_of
from mtrec_ray.evaluate.scored import Scored
from mtrec_ray.evaluate.user_history import COLUMNS, UserHistory, label_values

PRIOR_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Pseudo-counts tried for users and for items."""
_ITEM_ALONE = "the item's rate alone, since history.max_events: 0 leaves no feedback to count for users"


@dataclass(frozen=True)
class Counts:
    """N candidates of one split; T tasks; K classes, or 1."""

    row_id: np.ndarray
    item: np.ndarray
    """[N] row of the item table, 0 = unknown"""
    labels: np.ndarray
    """[N, T]"""
    values: np.ndarray
    """[N, T, K] sum of the user's labels known before"""
    weights: np.ndarray
    """[N, T] how many they are"""
    counts: np.ndarray
    """[N] how much each row counts (`data.reading.context.row_weights`)"""


def score(prepared: str, manifest: Manifest, run: Run, splits: list[str]) -> Scored:
    """Scores of every task with train labels; the notes hold the chosen pseudo-counts."""
    counts, items = _collect(prepared, manifest, run)
    result = Scored({split: counts[split].row_id for split in splits}, {split: {} for split in splits}, {})
    for t, task in enumerate(manifest.tasks):
        if task.labels == "none":
            continue
        if task.observed["train"] == 0:
            result.notes[task.name] = "skipped: no observed train label"
            continue
        blends = {split: _Blend(task, t, counts[split], items) for split in {"valid", *splits}}
        user_prior, item_prior = _choose(task, counts["valid"].labels[:, t], counts["valid"].counts, blends["valid"])
        result.notes[task.name] = f"pseudo-counts chosen on valid: user {user_prior:g}, item {item_prior:g}"
        if run.history.max_events == 0:
            result.notes[task.name] = f"{_ITEM_ALONE}; pseudo-count chosen on valid: item {item_prior:g}"
        for split in splits:
            result.scores[split][task.name] = blends[split].score(user_prior, item_prior)
    return result


class _Blend:
    """One task's rates on one split as a function of the two pseudo-counts."""

    def __init__(self, task: TaskEntry, t: int, counts: Counts, items: "_Items") -> None:
        classes = task.classes if task.labels == "class" else 1
        self.labels = task.labels
        self.base = np.array(task.frequencies if task.labels == "class" else [task.mean])
        self.kept = items.mean[t, :classes]
        self.user = counts.values[:, t, :classes], counts.weights[:, t, None]
        self.item = items.values[counts.item, t, :classes], items.weights[counts.item, t, None]

    def score(self, user_prior: float, item_prior: float) -> np.ndarray:
        """[N], or [N, classes]."""
        user, item = (
            (values + prior * self.kept) / (weights + prior)
            for (values, weights), prior in ((self.user, user_prior), (self.item, item_prior))
        )
        if self.labels == "class":
            odds = _clip(user) * _clip(item) / _clip(self.kept) * (_clip(self.base) / _clip(self.kept))
            return odds / odds.sum(axis=1, keepdims=True)
        if self.labels == "binary":
            logits = _logit(user) + _logit(item) - _logit(self.kept) + (_logit(self.base) - _logit(self.kept))
            return (1 / (1 + np.exp(-logits)))[:, 0]
        return (user + item - self.kept + (self.base - self.kept))[:, 0]


def _clip(rate: np.ndarray) -> np.ndarray:
    return np.clip(rate, metrics.EPSILON, 1 - metrics.EPSILON)


def _logit(rate: np.ndarray) -> np.ndarray:
    return np.log(_clip(rate)) - np.log1p(-_clip(rate))


def _choose(task: TaskEntry, labels: np.ndarray, counts: np.ndarray, blend: _Blend) -> tuple[float, float]:
    """The pseudo-counts with the lowest loss on the observed valid rows; the middle ones if there are none."""
    observed = ~np.isnan(labels) & (counts > 0)
    if not observed.any():
        return PRIOR_WEIGHTS[2], PRIOR_WEIGHTS[2]
    loss = {"binary": metrics.log_loss, "class": metrics.multiclass_log_loss}.get(task.labels, metrics.rmse)
    labels, counts = labels[observed].astype(np.float64), counts[observed]
    losses = {
        pair: loss(labels, blend.score(*pair)[observed], counts) for pair in product(PRIOR_WEIGHTS, PRIOR_WEIGHTS)
    }
    return min(losses, key=lambda pair: losses[pair] or 0.0)


class _Items(NamedTuple):
    """What train says of I items; item 0, which is every unknown item at once, has no weight."""

    values: np.ndarray
    """[I, T, K] sums of the labels"""
    weights: np.ndarray
    """[I, T] how many they are"""
    mean: np.ndarray
    """[T, K] of all train labels, those of unknown items too"""


def _collect(prepared: str, manifest: Manifest, run: Run) -> tuple[dict[str, Counts], _Items]:
    """The counts of valid and test, and the items."""
    tasks = manifest.tasks
    item_values = np.zeros((manifest.num_items, len(tasks), max(task.classes for task in tasks)))
    item_weights = np.zeros((manifest.num_items, len(tasks)))
    parts: dict[str, list[Counts]] = {"valid": [], "test": []}
    for bucket in _buckets(manifest):
        wanted = [*COLUMNS, "item_index", "labels", "row_id", "context"]
        tables = {
            split: pa.concat_tables([read_shard(prepared, entry, wanted) for entry in entries]).combine_chunks()
            for split, entries in bucket.items()
        }
        if "train" in tables:
            values, weights = label_values(tasks, _labels(tables["train"], len(tasks)))
            np.add.at(item_values, flat(tables["train"], "item_index"), values)
            np.add.at(item_weights, flat(tables["train"], "item_index"), weights)
        history = UserHistory(list(tables.values()), tasks, run)
        for split in parts.keys() & tables.keys():
            table = tables[split]
            columns = flat(table, "row_id"), flat(table, "item_index"), _labels(table, len(tasks))
            parts[split].append(Counts(*columns, *history.before(table), weights_of(table, manifest)))
    mean = item_values.sum(axis=0) / np.maximum(item_weights.sum(axis=0), 1)[:, None]
    item_values[0] = item_weights[0] = 0
    counts = {split: _concatenate(found, item_values) for split, found in parts.items()}
    return counts, _Items(item_values, item_weights, mean)


def _labels(table: pa.Table, tasks: int) -> np.ndarray:
    return flat(table, "labels").reshape(-1, tasks)


def _concatenate(parts: list[Counts], item_values: np.ndarray) -> Counts:
    tasks, classes = item_values.shape[1:]
    empty = Counts(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.empty((0, tasks)),
        np.empty((0, tasks, classes)),
        np.empty((0, tasks)),
        np.empty(0),
    )
    return Counts(*(np.concatenate([getattr(part, f.name) for part in [empty, *parts]]) for f in fields(Counts)))


def _buckets(manifest: Manifest) -> list[dict[str, list[ShardEntry]]]:
    """Split -> shards, for each bucket of users."""
    buckets: dict[int, dict[str, list[ShardEntry]]] = defaultdict(lambda: defaultdict(list))
    for split, entries in manifest.shards.items():
        for entry in entries:
            buckets[entry.bucket][split].append(entry)
    return list(buckets.values())
