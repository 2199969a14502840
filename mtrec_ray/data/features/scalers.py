"""Means, deviations and quantiles of the numbers, from a sample of the train rows drawn by hash."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.side_features import Kind, number_names
from mtrec_ray.data.manifest import NumberEntry
from mtrec_ray.data.preparing.shards import Written

Array = np.ndarray[Any, np.dtype[Any]]

_BINS = 16


def number_entries(run: Run, written: Sequence[Written]) -> list[NumberEntry]:
    """One entry per number, from the samples of all buckets in the order of row ids."""
    ids = np.concatenate([w.sample_ids for w in written])
    sample = np.concatenate([w.sample for w in written])[np.argsort(ids)].astype(np.float64)
    return [_entry(name, kind, index, sample[:, index]) for index, (name, kind) in enumerate(number_names(run))]


def _entry(name: str, kind: Kind, index: int, values: Array) -> NumberEntry:
    values = values[np.isfinite(values)]
    if not len(values):
        return NumberEntry(name=name, index=index, kind=kind, mean=0.0, std=0.0, quantiles=[])
    inner = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS))
    return NumberEntry(
        name=name,
        index=index,
        kind=kind,
        mean=float(values.mean()),
        std=float(values.std()),
        quantiles=inner.tolist(),
    )
