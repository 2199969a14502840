"""Baseline `running_rates`: the user's smoothed rate so far, together with the item's smoothed rate in train.

The user's rate is strictly as-of: feedback counts from its own time on, with the run's lag. Where the negative label
comes to be known too, it is a mean of known labels; where only the positive one does, positives / items seen. The
item's rate is fitted on train rows. Both are shrunk to the train base rate by pseudo-counts chosen on the valid split,
and add up in log-odds (regression: in the label's unit).
"""

from collections import defaultdict
from dataclasses import dataclass, fields
from itertools import product

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest, ShardEntry, TaskEntry
from mtrec_ray.evaluate import metrics
from mtrec_ray.evaluate.candidates import flat, read_shard
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


def score(prepared: str, manifest: Manifest, run: Run, splits: list[str]) -> Scored:
    """Scores of every task with train labels; the notes hold the chosen pseudo-counts."""
    counts, item_values, item_weights = _collect(prepared, manifest, run)
    result = Scored({split: counts[split].row_id for split in splits}, {split: {} for split in splits}, {})
    for t, task in enumerate(manifest.tasks):
        if task.labels == "none":
            continue
        if task.observed["train"] == 0:
            result.notes[task.name] = "skipped: no observed train label"
            continue
        blends = {split: _Blend(task, t, counts[split], item_values, item_weights) for split in {"valid", *splits}}
        user_prior, item_prior = _choose(task, counts["valid"].labels[:, t], blends["valid"])
        result.notes[task.name] = f"pseudo-counts chosen on valid: user {user_prior:g}, item {item_prior:g}"
        if run.history.max_events == 0:
            result.notes[task.name] = f"{_ITEM_ALONE}; pseudo-count chosen on valid: item {item_prior:g}"
        for split in splits:
            result.scores[split][task.name] = blends[split].score(user_prior, item_prior)
    return result


class _Blend:
    """One task's rates on one split as a function of the two pseudo-counts."""

    def __init__(
        self, task: TaskEntry, t: int, counts: Counts, item_values: np.ndarray, item_weights: np.ndarray
    ) -> None:
        classes = task.classes if task.labels == "class" else 1
        self.labels = task.labels
        self.base = np.array(task.frequencies if task.labels == "class" else [task.mean])
        self.user = counts.values[:, t, :classes], counts.weights[:, t, None]
        self.item = item_values[counts.item, t, :classes], item_weights[counts.item, t, None]

    def score(self, user_prior: float, item_prior: float) -> np.ndarray:
        """[N], or [N, classes]."""
        user, item = (
            (values + prior * self.base) / (weights + prior)
            for (values, weights), prior in ((self.user, user_prior), (self.item, item_prior))
        )
        if self.labels == "class":
            odds = _clip(user) * _clip(item) / _clip(self.base)
            return odds / odds.sum(axis=1, keepdims=True)
        if self.labels == "binary":
            logits = _logit(user) + _logit(item) - _logit(self.base)
            return (1 / (1 + np.exp(-logits)))[:, 0]
        return (user + item - self.base)[:, 0]


def _clip(rate: np.ndarray) -> np.ndarray:
    return np.clip(rate, metrics.EPSILON, 1 - metrics.EPSILON)


def _logit(rate: np.ndarray) -> np.ndarray:
    return np.log(_clip(rate)) - np.log1p(-_clip(rate))


def _choose(task: TaskEntry, labels: np.ndarray, blend: _Blend) -> tuple[float, float]:
    """The pseudo-counts with the lowest loss on the observed valid rows; the middle ones if there are none."""
    observed = ~np.isnan(labels)
    if not observed.any():
        return PRIOR_WEIGHTS[2], PRIOR_WEIGHTS[2]
    loss = {"binary": metrics.log_loss, "class": metrics.multiclass_log_loss}.get(task.labels, metrics.rmse)
    labels = labels[observed].astype(np.float64)
    losses = {pair: loss(labels, blend.score(*pair)[observed]) for pair in product(PRIOR_WEIGHTS, PRIOR_WEIGHTS)}
    return min(losses, key=lambda pair: losses[pair] or 0.0)


def _collect(prepared: str, manifest: Manifest, run: Run) -> tuple[dict[str, Counts], np.ndarray, np.ndarray]:
    """The counts of valid and test, and the items' train values [I, T, K] and weights [I, T]; item 0 has none."""
    tasks = manifest.tasks
    item_values = np.zeros((manifest.num_items, len(tasks), max(task.classes for task in tasks)))
    item_weights = np.zeros((manifest.num_items, len(tasks)))
    parts: dict[str, list[Counts]] = {"valid": [], "test": []}
    for bucket in _buckets(manifest):
        tables = {
            split: read_shard(prepared, entry, [*COLUMNS, "item_index", "labels", "row_id"])
            for split, entry in bucket.items()
        }
        if "train" in tables:
            values, weights = label_values(tasks, _labels(tables["train"], len(tasks)))
            np.add.at(item_values, flat(tables["train"], "item_index"), values)
            np.add.at(item_weights, flat(tables["train"], "item_index"), weights)
        history = UserHistory(list(tables.values()), tasks, run)
        for split in parts.keys() & tables.keys():
            table = tables[split]
            columns = flat(table, "row_id"), flat(table, "item_index"), _labels(table, len(tasks))
            parts[split].append(Counts(*columns, *history.before(table)))
    item_values[0] = item_weights[0] = 0  # row 0 is every unknown item at once
    return {split: _concatenate(found, item_values) for split, found in parts.items()}, item_values, item_weights


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
    )
    return Counts(*(np.concatenate([getattr(part, f.name) for part in [empty, *parts]]) for f in fields(Counts)))


def _buckets(manifest: Manifest) -> list[dict[str, ShardEntry]]:
    """Split -> shard, for each bucket of users: a bucket's shards bear the same file name in each split."""
    buckets: dict[str, dict[str, ShardEntry]] = defaultdict(dict)
    for split, entries in manifest.shards.items():
        for entry in entries:
            buckets[entry.path.rsplit("/", 1)[-1]][split] = entry
    return list(buckets.values())
