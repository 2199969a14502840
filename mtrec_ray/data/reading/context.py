"""Context columns: what a log says of how a row came about, beside what came of it.

Numbers: how much a row counts, the share of such rows that was kept, the place on the page, the chance of being shown
there. Texts: the surface, the logging policy, the search query, the zone of the user's clock. All of them are optional,
each with its key in `data.columns`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Columns

Array = np.ndarray[Any, np.dtype[Any]]

NUMBERS = ("row_weight", "sampling_rate", "position", "propensity")
"""Their order in request rows and batches, of those that the log has."""
CODED = ("domain", "policy")
"""Texts that a batch has as indices; request rows hold the text itself as `<name>_name`, where the log has it."""
TEXTS = (*CODED, "query", "time_zone")
MOST_POSITION = 2**24 - 1
"""A batch holds positions as float32, which has all whole numbers up to here."""

# An empty weight or rate is refused, as an empty user or time is: with 1 in its place, one of the negatives that were
# kept at 10 % would count a tenth of what it stands for, and nothing would tell.
_REQUIRED = ("row_weight", "sampling_rate")
_EXPECTED = {
    "row_weight": "a number of at least 0",
    "sampling_rate": "a number above 0 and at most 1",
    "position": f"a whole number from 0 to {MOST_POSITION}, or empty",
    "propensity": "a number above 0 and at most 1, or empty",
}


def context_numbers(columns: Columns) -> list[str]:
    """Those of `NUMBERS` that the log has, in their order: what `Manifest.context` lists."""
    return [name for name in NUMBERS if getattr(columns, name) is not None]


def context_texts(columns: Columns) -> list[str]:
    """Those of `TEXTS` that the log has."""
    return [name for name in TEXTS if getattr(columns, name) is not None]


def row_weights(context: Array, names: Sequence[str]) -> Array:
    """float64 [C] how much each row counts, in losses and in metrics alike; `context` [C, X] has the columns `names`.

    Its row weight, times the rows that it stands for: 1 / sampling rate. A rate is that of the row itself, so that its
    inverse makes sums over the rows those over all that there were, whatever rows were left out by it: negatives, or
    those of one surface.
    """
    weights = np.ones(len(context))
    if "row_weight" in names:
        weights *= context[:, names.index("row_weight")]
    if "sampling_rate" in names:
        weights /= context[:, names.index("sampling_rate")]
    return weights


def weighs(names: Sequence[str]) -> bool:
    """Whether rows count differently by the context columns `names`."""
    return not set(names).isdisjoint(_REQUIRED)


def faults(name: str, column: str, values: Array) -> Iterator[tuple[Array, str]]:
    """What is wrong with the cells [N] of a number, NaN = empty: masks [N], each with the reason."""
    for mask, found in _found(name, values):
        yield mask, f"column '{column}' is {found}; data.columns.{name} must be {_EXPECTED[name]}"


def _found(name: str, values: Array) -> Iterator[tuple[Array, str]]:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)  # as a batch has them, where 1e-50 is 0
    if name in _REQUIRED:
        yield np.isnan(values), "empty"
    yield np.isinf(single), "not finite"
    yield values < 0, "below 0"
    if name in ("sampling_rate", "propensity"):
        yield single == 0, "0"
        yield single > 1, "above 1"
    if name == "position":
        yield values > MOST_POSITION, f"above {MOST_POSITION}"
        yield values > np.floor(values), "not whole"


def trimmed(texts: pa.Array) -> pa.Array:
    """Texts without white space at their ends, null where there is none left."""
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
