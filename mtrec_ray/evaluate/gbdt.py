"""Baseline `gbdt`: gradient-boosted trees on the model's own side features, one per task.

Features: all numbers (NaN = missing), one-valued categories as categories, many-valued ones as flags; no ids, no text,
no vectors: trees cut one number at a time, and of an embedding no single number says much.
Trained on train rows, stopped early and its size of trees chosen by the loss on valid rows, not refitted; rows count as
they do in the model's losses.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from mtrec_ray.data.manifest import CategoryEntry, Manifest, TaskEntry
from mtrec_ray.data.reading.context import weighs
from mtrec_ray.evaluate.candidates import Candidates, no_candidates, read_candidates
from mtrec_ray.evaluate.predictions import Scores
from mtrec_ray.evaluate.scored import Scored
from mtrec_ray.progress import track

MAX_ROWS = 1_000_000
"""Train rows beyond this are sampled, valid rows beyond a fifth of it."""
MAX_CATEGORIES = 254
"""Values per category that the trees' bins can hold; rarer ones count as missing."""
MAX_FLAGS = 64
"""Flags per many-valued category."""
LEAVES = (15, 31)
"""Sizes of trees tried."""


def score(prepared: str, manifest: Manifest, splits: list[str], seed: int) -> Scored:
    """Scores of every task that has train labels to separate; the notes say what was fitted on how many rows."""
    rng = np.random.default_rng(seed)
    train = _sample(prepared, manifest, "train", MAX_ROWS, rng)
    valid = _sample(prepared, manifest, "valid", MAX_ROWS // 5, rng)
    features = Features.fit(manifest, train)
    x, x_valid = features.matrix(train), features.matrix(valid)
    weighed = weighs(manifest.context)
    models: dict[str, Any] = {}
    notes = {}
    # Half the cores: OpenMP threads spin while they wait, and on shared cores a fit then takes many times as long.
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    with threadpool_limits(cores, "openmp"), track("gradient-boosted trees", len(manifest.tasks), "tasks") as bar:
        for t, task in enumerate(manifest.tasks):
            if task.labels == "none":
                bar.advance()
                continue
            model, notes[task.name] = _fit(task, t, features, x, train, x_valid, valid, weighed, seed)
            if model is not None:
                models[task.name] = model
                notes[task.name] += _sampled(manifest, len(train.labels))
                notes[task.name] += "; without the declared vectors" if manifest.vectors else ""
            bar.advance()
    scored = {split: _score_split(prepared, manifest, split, features, models) for split in splits}
    return Scored(
        {s: row_id for s, (row_id, _) in scored.items()}, {s: found for s, (_, found) in scored.items()}, notes
    )


def _score_split(
    prepared: str, manifest: Manifest, split: str, features: "Features", models: dict[str, Any]
) -> tuple[np.ndarray, Scores]:
    """Row ids and each model's scores, shard by shard."""
    row_id = [np.empty(0, np.int64)]
    scores: dict[str, list[np.ndarray]] = {task: [] for task in models}
    for shard in read_candidates(prepared, manifest, split):
        row_id.append(shard.row_id)
        x = features.matrix(shard)
        for task in manifest.tasks:
            if task.name in models and len(x):
                scores[task.name].append(_predict(task, models[task.name], x))
    return np.concatenate(row_id), {task: np.concatenate(parts) for task, parts in scores.items() if parts}


@dataclass(frozen=True)
class Features:
    """How candidates become columns: numbers, then category codes, then flags."""

    codes: list[tuple[int, np.ndarray]]
    """Slot of each one-valued category, and its kept values, ascending"""
    flags: list[tuple[slice, np.ndarray]]
    """Slots of each many-valued category, and the values that get a flag"""
    numbers: int

    @classmethod
    def fit(cls, manifest: Manifest, train: Candidates) -> "Features":
        codes, flags = [], []
        for category in manifest.categories:
            slots = slice(category.offset, category.offset + category.width)
            most = MAX_CATEGORIES if category.width == 1 else MAX_FLAGS
            values = _most_frequent(train.categories[:, slots], category, most)
            if category.width == 1:
                codes.append((category.offset, values))
            else:
                flags.append((slots, values))
        return cls(codes, flags, len(manifest.numbers))

    def matrix(self, candidates: Candidates) -> np.ndarray:
        """float32 [C, columns]."""
        columns = [candidates.numbers.astype(np.float32)]
        for slot, values in self.codes:
            code = np.searchsorted(values, candidates.categories[:, slot])
            kept = np.isin(candidates.categories[:, slot], values)
            columns.append(np.where(kept, code, np.nan).astype(np.float32)[:, None])
        for slots, values in self.flags:
            columns += [(candidates.categories[:, slots] == value).any(axis=1)[:, None] for value in values]
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def is_category(self) -> list[bool]:
        return [False] * self.numbers + [True] * len(self.codes) + [False] * sum(len(v) for _, v in self.flags)


def _most_frequent(values: np.ndarray, category: CategoryEntry, most: int) -> np.ndarray:
    counts = np.bincount(values[values >= 0], minlength=category.size)
    frequent = np.argsort(-counts, kind="stable")[:most]
    return np.sort(frequent[counts[frequent] > 0])


def _sample(prepared: str, manifest: Manifest, split: str, most: int, rng: np.random.Generator) -> Candidates:
    """About `most` candidates of a split, or all of them."""
    total = sum(entry.candidates for entry in manifest.shards[split])
    parts = [list(vars(no_candidates(manifest)).values())]
    for shard in read_candidates(prepared, manifest, split):
        keep = rng.random(len(shard.row_id)) < most / total if total > most else slice(None)
        parts.append([column[keep] for column in vars(shard).values()])
    return Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _sampled(manifest: Manifest, rows: int) -> str:
    total = sum(entry.candidates for entry in manifest.shards["train"])
    return "" if rows == total else f"; a sample of {rows:,} of {total:,} train rows"


def _fit(
    task: TaskEntry,
    t: int,
    features: Features,
    x: np.ndarray,
    train: Candidates,
    x_valid: np.ndarray,
    valid: Candidates,
    weighed: bool,
    seed: int,
) -> tuple[Any, str]:
    """The best of the sizes of trees, or None, with what is to be said of it."""
    observed, observed_valid = (~np.isnan(part.labels[:, t]) & (part.weights > 0) for part in (train, valid))
    y, y_valid = train.labels[observed, t], valid.labels[observed_valid, t]
    weights = train.weights[observed] if weighed else None  # without them the fit takes a shorter way
    if len(np.unique(y)) < 2:
        return None, "skipped: train labels are all the same, or none"
    if x.shape[1] == 0:
        return None, "skipped: the prepared data has no numbers and no categories"
    usable = np.isin(y_valid, y) | (task.labels == "number")  # a class that train lacks cannot be scored
    x_stop, y_stop = x_valid[observed_valid][usable], y_valid[usable]
    weights_stop = valid.weights[observed_valid][usable] if weighed else None
    best: Any = None
    best_loss = np.inf
    for leaves in LEAVES:
        model = _estimator(task, leaves, features, seed)
        if len(y_stop):
            model.fit(x[observed], y, weights, X_val=x_stop, y_val=y_stop, sample_weight_val=weights_stop)
        else:
            model.fit(x[observed], y, weights)
        loss = -float(np.max(model.validation_score_))
        if loss < best_loss:
            best, best_loss = model, loss
    held = f"{len(y_stop):,} valid rows" if len(y_stop) else "a tenth of the train rows, as no valid row is observed"
    return best, f"{best.n_iter_} trees of {best.max_leaf_nodes} leaves, {len(y):,} train rows, stopped by {held}"


def _estimator(task: TaskEntry, leaves: int, features: Features, seed: int) -> Any:
    kind = HistGradientBoostingRegressor if task.labels == "number" else HistGradientBoostingClassifier
    return kind(
        learning_rate=0.07,
        max_iter=600,
        max_leaf_nodes=leaves,
        l2_regularization=1.0,
        categorical_features=features.is_category(),
        early_stopping=True,
        n_iter_no_change=20,
        random_state=seed,
    )


def _predict(task: TaskEntry, model: Any, x: np.ndarray) -> np.ndarray:
    """[N] in the label's unit, or [N, classes] with 0 for classes that train lacks."""
    if task.labels == "number":
        return model.predict(x)
    probabilities = model.predict_proba(x)
    if task.labels == "binary":
        return probabilities[:, 1]
    found = np.zeros((len(x), task.classes))
    found[:, model.classes_.astype(np.int64)] = probabilities
    return found
