"""Numbers that say how two categories of the same row go together, as a query and a title.

    query * title               the share of the first's values that the second has, too
    page_item * linked_from     likewise: an edge of a graph, if the second column lists the nodes that lead to the item
    query ~ title               how alike they are to users: the cosine of their factors (`value_factors`)

`*` compares the values themselves, however rare. Factors are those of the second category's values, for values of the
first as well; for train rows they leave out the user's fold. Missing is a row where either has no value, or for `~`
none with factors.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Cells, category_columns
from mtrec_ray.data.features.signals import require_feedback
from mtrec_ray.data.features.value_rows import value_rows
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest

Array = np.ndarray[Any, np.dtype[Any]]

_PATTERN = re.compile(r"\s*([^*~]+?)\s*([*~])\s*([^*~]+?)\s*")
_BLOCK = 50_000


@dataclass(frozen=True)
class Match:
    """One declared match of two category columns."""

    left: str
    operator: str
    right: str

    @property
    def name(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


def declared_matches(run: Run) -> list[Match]:
    """Those of `features.matches`. Raises `ConfigError` for one that cannot be read, names what is no category, or has
    nothing to be learned from."""
    known = [category.column for _, category in category_columns(run)]
    found: list[Match] = []
    for i, text in enumerate(run.features.matches):
        where = f"features.matches[{i}]"
        parts = _PATTERN.fullmatch(text)
        if parts is None:
            raise ConfigError(f"{where}: cannot read '{text}'. Write e.g. 'query * title' or 'query ~ title'.")
        match = Match(*parts.groups())
        for name in (match.left, match.right):
            if name not in known:
                tail = suggest(name, known) if known else " There are none."
                raise ConfigError(
                    f"{where}: '{text}': no category is called '{name}'; declare it in data.categories, "
                    f"data.items.categories or data.users.categories.{tail}"
                )
        if match.left == match.right:
            raise ConfigError(f"{where}: '{text}' compares a category with itself; name two.")
        if match.operator == "~":
            require_feedback(run, f"{where}: '{text}'")
        if match in found:
            raise ConfigError(f"{where}: '{match.name}' is declared twice; remove one.")
        found.append(match)
    return found


def likened(run: Run) -> set[str]:
    """The categories whose values need factors for a match."""
    return {match.right for match in declared_matches(run) if match.operator == "~"}


def match_numbers(
    matches: list[Match], cells: dict[str, Cells], row: Array, statistics: Array, fitted: Fitted
) -> Array:
    """float64 [C, M], NaN = missing.

    Args:
        cells: of each category, in the rows of a bucket. row: int [C] the bucket's row of each candidate.
        statistics: int [C] which of the fitted ones each candidate is given.
    """
    columns = [
        _shared(cells[match.left], cells[match.right], row)
        if match.operator == "*"
        else _likeness(match, cells, row, statistics, fitted)
        for match in matches
    ]
    return np.stack(columns, axis=1) if columns else np.zeros((len(row), 0))


def _shared(left: Cells, right: Cells, row: Array) -> Array:
    """float64 [C]"""
    names = {value: k for k, value in enumerate(sorted({v for cell in [*left.values, *right.values] for v in cell}))}
    ours, theirs = _padded(left, names, -1)[left.cell], _padded(right, names, -2)[right.cell]
    share = np.full(len(row), np.nan)
    for first in range(0, len(row), _BLOCK):
        here = slice(first, first + _BLOCK)
        a, b = ours[row[here]], theirs[row[here]]
        some = (a >= 0).any(axis=1) & (b >= 0).any(axis=1)
        found = (a[:, :, None] == b[:, None, :]).any(axis=2).sum(axis=1)
        share[here] = np.where(some, found / np.maximum((a >= 0).sum(axis=1), 1), np.nan)
    return share


def _padded(cells: Cells, names: dict[str, int], absent: int) -> Array:
    """int64 [U, w] place of each cell's distinct values."""
    values = [sorted({names[value] for value in cell}) for cell in cells.values]
    padded = np.full((len(values), max([1, *map(len, values)])), absent, dtype=np.int64)
    for k, places in enumerate(values):
        padded[k, : len(places)] = places
    return padded


def _likeness(match: Match, cells: dict[str, Cells], row: Array, statistics: Array, fitted: Fitted) -> Array:
    """float64 [C]"""
    vocabulary = fitted.categories[match.right]
    ours, theirs = (
        cells[name].codes(vocabulary, fitted.widths[name])[cells[name].cell[row]] for name in (match.left, match.right)
    )
    likeness = np.full(len(row), np.nan)
    for k in np.unique(statistics).tolist():
        mine = statistics == k
        factors = fitted.statistics[k].value_factors[match.right]
        a, b = (value_rows(factors, codes[mine])[:, 1:] for codes in (ours, theirs))
        known = a.any(axis=1) & b.any(axis=1)
        likeness[mine] = np.where(known, (a * b).sum(axis=1), np.nan)
    return likeness
