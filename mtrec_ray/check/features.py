"""The raw columns that a model reads of a candidate: what may leak, before anything is fitted."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Scope, Tables, category_columns, number_columns, read_cells, read_numbers
from mtrec_ray.data.reading.context import context_numbers
from mtrec_ray.data.requests.rows import Rows

Array = np.ndarray[Any, np.dtype[Any]]
MISSING = -1


@dataclass(frozen=True)
class Feature:
    """One column in the C rows of a view."""

    name: str
    kind: Literal["number", "category"]
    scope: Scope
    values: Array | None
    """float64 [C], NaN = missing; None of categories that are no numbers"""
    codes: Array | None
    """int64 [C] which of the different cells each row has, `MISSING` = none; None of numbers"""
    texts: tuple[str, ...]
    """The different cells that `codes` point into; none of numbers"""
    used: bool
    """Whether the config names it; of a log without a config all columns are looked at"""

    @property
    def cells(self) -> Array:
        """[C] the codes of categories, the values of numbers"""
        cells = self.values if self.codes is None else self.codes
        assert cells is not None
        return cells

    def said(self, row: int) -> str:
        """What stands in a row, for messages."""
        if self.codes is None:
            return f"{self.cells[row]:.6g}"
        return "nothing" if self.codes[row] == MISSING else self.texts[self.codes[row]]

    @property
    def missing(self) -> Array:
        """bool [C]"""
        return np.isnan(self.cells) if self.codes is None else self.codes == MISSING

    @property
    def described(self) -> str:
        source = {"log": "the log", "item": "the table of items", "user": "the table of users"}[self.scope]
        return f"'{self.name}' of {source}"


def read_features(rows: Rows, chosen: Array, run: Run, tables: Tables, unused: frozenset[str]) -> list[Feature]:
    """Numbers, categories, position and domain of the rows `chosen` (int64 [C]) of `rows`."""
    features = []
    for scope, number in number_columns(run):
        values = read_numbers(scope, number, rows, tables)[chosen]
        features.append(Feature(number.feature, "number", scope, values, None, (), number.feature not in unused))
    for scope, category in category_columns(run):
        cells = read_cells(scope, category, rows, tables)
        texts = ["|".join(cell) for cell in cells.values]
        features.append(_category(category.column, scope, texts, cells.cell[chosen], category.column not in unused))
    context = context_numbers(run.data.columns)
    if "position" in context and all(run.data.columns.position != n.column for n in run.data.numbers):
        position = rows.context[chosen, context.index("position")].astype(np.float64)
        features.append(Feature("position", "number", "log", position, None, (), True))
    if run.data.columns.domain is not None:
        domains, domain = np.unique(rows.domain[chosen].astype(str), return_inverse=True)
        features.append(_category("domain", "log", domains.tolist(), domain.ravel(), True))
    return features


def _category(name: str, scope: Scope, texts: list[str], cell: Array, used: bool) -> Feature:
    known, codes = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
    places = np.where(known == "", MISSING, np.arange(len(known)))
    values = _numbers(known)
    return Feature(
        name,
        "category",
        scope,
        None if values is None else values[codes.ravel()][cell],
        places[codes.ravel()][cell],
        tuple(known.tolist()),
        used,
    )


def _numbers(texts: Array) -> Array | None:
    """The cells as numbers, empty ones NaN, if all the others are."""
    try:
        return np.array([float(text) if text else np.nan for text in texts.tolist()], dtype=np.float64)
    except ValueError:
        return None
