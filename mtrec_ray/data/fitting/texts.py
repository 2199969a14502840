"""Texts of events, and those that a tokenizer learns from."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.requests.distinct import distinct_rows
from mtrec_ray.tasks.labels import labels_of

Array = np.ndarray[Any, np.dtype[Any]]


def feedback_words(feedback: Sequence[float], run: Run) -> str:
    """The words of one event's labels [T], NaN = none: `like`, `no like` (impressions only), `rating 4.5`."""
    words = []
    for (name, task), value in zip(run.tasks.items(), feedback, strict=True):
        if np.isnan(value):
            continue
        if labels_of(task.kind, run.plugins) != "binary":
            words.append(f"{name} {value:g}")
        elif value == 1:
            words.append(name)
        elif run.data.layout == "impressions":
            words.append(f"no {name}")
    return " ".join(words)


def distinct_feedback(feedback: Array, run: Run) -> tuple[list[str], Array]:
    """The distinct feedback words of events [E, T], and int64 [E] which of them each event has."""
    if not len(feedback):
        return [], np.zeros(0, dtype=np.int64)
    bits = np.ascontiguousarray(feedback, dtype=np.float32).copy()
    bits[np.isnan(bits)] = np.nan  # one bit pattern for all NaN
    first, codes = distinct_rows(list(bits.view(np.int32).T))
    return [feedback_words(row, run) for row in bits[first]], codes


def tokenizer_texts(texts: Sequence[str], words: Sequence[str]) -> Iterable[str]:
    """What a tokenizer learns from: every item's text and every query once, all feedback words together about a tenth
    as often."""
    yield from texts
    if words:
        times = max(1, len(texts) // (10 * len(words)))
        for _ in range(times):
            yield from words
