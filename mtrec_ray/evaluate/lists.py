"""Metrics of lists: rows that were shown together, in the order of their scores; numpy only, no loop over lists.

Rows with equal scores have no order. Each metric is its mean over all orders that they could have (McSherry & Najork
2008, "Computing information retrieval performance measures efficiently in the presence of tied scores"), so a model
that cannot tell rows apart does not profit from the order of the log. N rows in G lists; k = rows at the head of a
list that count, None = all. A metric is a mean over the lists that define it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluate.judged import METRICS, Judged


class Lists(NamedTuple):
    """Where each row stands in its list."""

    rows: Judged
    k: int
    """Head of the list; at least 1"""
    list: np.ndarray
    """int64 [N] number of the row's list, 0 .. G - 1"""
    size: np.ndarray
    """int64 [G]"""
    ahead: np.ndarray
    """int64 [N] rows of the list with a higher score"""
    tied: np.ndarray
    """int64 [N] rows of the list with this score, the row among them"""

    def sum(self, values: np.ndarray) -> np.ndarray:
        """[N] -> [G]"""
        return np.bincount(self.list, weights=values, minlength=len(self.size))

    @property
    def in_head(self) -> np.ndarray:
        """float64 [N] chance to stand among the first k."""
        return np.clip((self.k - self.ahead) / self.tied, 0, 1)

    @property
    def positives(self) -> np.ndarray:
        """float64 [G]; NaN for lists that have no row with label 1 or none with label 0, which no order can spoil."""
        found = self.sum(self.rows.labels > 0)
        return np.where((found > 0) & (found < self.size), found, np.nan)


def lists_of(rows: Judged, k: int | None) -> Lists:
    """`rows`: all labels observed, all scores finite, [N]."""
    found, code = np.unique(rows.shown, return_inverse=True)
    scores = np.asarray(rows.scores, dtype=np.float64)
    order = np.lexsort((-scores, code))
    of, by = code[order], scores[order]
    starts_list = np.append(True, of[1:] != of[:-1])[: len(of)]
    starts_tie = starts_list | np.append(True, by[1:] != by[:-1])[: len(of)]
    place = np.arange(len(of))
    tie = np.cumsum(starts_tie) - 1
    ahead, tied = np.empty((2, len(of)), dtype=np.int64)
    ahead[order] = place[starts_tie][tie] - np.maximum.accumulate(np.where(starts_list, place, 0))
    tied[order] = np.bincount(tie, minlength=1)[tie]
    size = np.bincount(code, minlength=len(found))
    return Lists(rows, max(1, len(of)) if k is None else k, code, size, ahead, tied)


OfLists = Callable[[Lists], np.ndarray]
"""A value for each list [G], NaN where the list does not define it."""
OfRanks = Callable[[np.ndarray], np.ndarray]
"""The same of lists of all items with one positive, from its place [N] in the list, from 1."""


@dataclass(frozen=True)
class MeanOfLists:
    """A metric with one value for each list."""

    of_lists: OfLists
    k: int | None
    of_ranks: OfRanks | None = None
    """Where rows have ranks in the catalogue of all items, each positive is a list of its own."""

    def __call__(self, rows: Judged) -> float | None:
        values = self.values(rows)
        defined = values[~np.isnan(values)]
        return float(defined.mean()) if len(defined) else None

    def values(self, rows: Judged) -> np.ndarray:
        """float64 [G], lists ascending by `rows.shown`; NaN = not defined. Of ranks in a catalogue [N], one by row."""
        if rows.ranks is None or self.of_ranks is None:
            return self.of_lists(lists_of(rows, self.k))
        place = np.asarray(rows.ranks, dtype=np.float64)
        inside = place <= (np.inf if self.k is None else self.k)
        return np.where(place > 0, np.where(inside, self.of_ranks(np.maximum(place, 1)), 0.0), np.nan)

    def owners(self, rows: Judged) -> np.ndarray:
        """int64 [G]: a row of each of the lists of `values`."""
        if rows.ranks is not None and self.of_ranks is not None:
            return np.arange(len(rows.labels))
        return np.unique(rows.shown, return_index=True)[1]


OF_RANKS: set[str] = set()
"""Names of the metrics that rankings of all items have, too."""


def register_list_metric(name: str, of_ranks: OfRanks | None = None) -> Callable[[OfLists], OfLists]:
    """Decorator: `name` and `name@k` become metrics; `of_ranks`: what they are in a ranking of all items."""

    def add(of_lists: OfLists) -> OfLists:
        METRICS.register_head(name, lambda k: MeanOfLists(of_lists, k, of_ranks))
        if of_ranks is not None:
            OF_RANKS.add(name)
        return of_lists

    return add


@register_list_metric("ndcg", lambda place: 1 / np.log2(1 + place))
def ndcg(lists: Lists) -> np.ndarray:
    """Discounted gain 1 / log2(1 + rank) of the positives over that of the best order (Järvelin & Kekäläinen 2002)."""
    discounts = np.zeros(int(lists.size.max(initial=0)) + 1)
    head = min(lists.k, len(discounts) - 1)
    discounts[1 : head + 1] = 1 / np.log2(np.arange(2, head + 2))
    until = np.cumsum(discounts)  # [rank]: of ranks 1 .. rank
    of_row = (until[lists.ahead + lists.tied] - until[lists.ahead]) / lists.tied
    positives = lists.positives
    best = until[np.nan_to_num(positives).astype(np.int64)]
    return np.divide(lists.sum((lists.rows.labels > 0) * of_row), best, out=positives * np.nan, where=best > 0)


@register_list_metric("mrr", lambda place: 1 / place)
def mrr(lists: Lists) -> np.ndarray:
    """1 / rank of the first positive, 0 where it is not in the head."""
    positives = lists.positives
    is_positive = lists.rows.labels > 0
    first = np.full(len(positives), np.iinfo(np.int64).max)
    np.minimum.at(first, lists.list[is_positive], lists.ahead[is_positive])
    in_tie = is_positive & (lists.ahead == first[lists.list])
    # The first positive is in a tie of n rows, p of them positive, that begins after `first` rows: it stands at place
    # j of the tie with the chance that the other p - 1 are among the n - j after it.
    list_, where = np.unique(lists.list[in_tie], return_index=True)
    n, p = lists.tied[in_tie][where], np.bincount(lists.list[in_tie], minlength=len(positives))[list_]
    places = n - p + 1
    tie = np.repeat(np.arange(len(n)), places)
    j = np.arange(len(tie)) - np.repeat(np.cumsum(places) - places, places) + 1
    log = np.cumsum(np.log(np.maximum(np.arange(n.max(initial=0) + 1), 1)))  # of factorials
    chance = np.exp(
        log[n[tie] - j] - log[p[tie] - 1] - log[n[tie] - j - p[tie] + 1] - (log[n] - log[p] - log[n - p])[tie]
    )
    rank = first[list_][tie] + j
    value = np.zeros(len(positives))
    value[list_] = np.bincount(tie, weights=np.where(rank <= lists.k, chance / rank, 0), minlength=len(n))
    return np.where(np.isnan(positives), np.nan, value)


@register_list_metric("recall", np.ones_like)
def recall(lists: Lists) -> np.ndarray:
    """Share of the positives that stand in the head."""
    return lists.sum((lists.rows.labels > 0) * lists.in_head) / lists.positives


@register_list_metric("ild")
def intra_list_diversity(lists: Lists) -> np.ndarray:
    """Mean of 1 - similarity over the pairs of rows in the head (Smyth & McClave 2001; Ziegler et al. 2005).

    Similarity: cosine of the rows' sets of categories, as in `tasks.lists.Diversity`; the sets are `Judged.traits`
    [N, w], of which values below 1 say nothing. Defined where the head has two rows.
    """
    undefined = np.full(len(lists.size), np.nan)
    if lists.rows.traits is None or len(lists.rows.traits) == 0:
        return undefined
    sets = _unit_sets(lists.rows.traits)
    chance = lists.in_head
    # One tie at most is cut by the head: m of its n rows stand in it, any pair of them with m (m - 1) / (n (n - 1)).
    cut = (chance > 0) & (chance < 1)
    m, n = (np.zeros(len(lists.size)) for _ in range(2))
    m[lists.list[cut]], n[lists.list[cut]] = (lists.k - lists.ahead)[cut], lists.tied[cut]
    whole, part, both = _dot_products(lists, sets, chance == 1, cut)
    known = sets.size > 0
    whole_pairs = (whole - lists.sum(known & (chance == 1))) / 2
    cut_pairs = (part - lists.sum(known & cut)) / 2
    one, two = m / np.maximum(n, 1), m * (m - 1) / np.maximum(n * (n - 1), 1)
    head = np.minimum(lists.size, lists.k)
    pairs = head * (head - 1) / 2
    similar = whole_pairs + one * both + two * cut_pairs
    return np.where(pairs > 0, 1 - similar / np.maximum(pairs, 1), undefined)


class _Sets(NamedTuple):
    """M (row, value) memberships of sets, each set as a vector of length 1."""

    row: np.ndarray
    value: np.ndarray
    entry: np.ndarray
    """float64 [M] 1 / sqrt(values of the row)"""
    size: np.ndarray
    """int64 [N] values of each row"""


def _unit_sets(traits: np.ndarray) -> _Sets:
    values = np.sort(np.asarray(traits), axis=1)
    fresh = np.ones(values.shape, dtype=bool)
    fresh[:, 1:] = values[:, 1:] != values[:, :-1]
    row, slot = np.nonzero(fresh & (values > 0))
    size = np.bincount(row, minlength=len(values))
    return _Sets(row, values[row, slot].astype(np.int64), 1 / np.sqrt(size[row]), size)


def _dot_products(
    lists: Lists, sets: _Sets, one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the sums a, b of the vectors of two masks of rows, for each list: a·a, b·b, a·b, each [G]."""
    cells, cell = np.unique(lists.list[sets.row] * (sets.value.max(initial=0) + 1) + sets.value, return_inverse=True)
    list_ = cells // (sets.value.max(initial=0) + 1)
    a, b = (np.bincount(cell, weights=sets.entry * mask[sets.row], minlength=len(cells)) for mask in (one, other))
    found = [np.bincount(list_, weights=product, minlength=len(lists.size)) for product in (a * a, b * b, a * b)]
    return found[0], found[1], found[2]


@register_list_metric("novelty")
def novelty(lists: Lists) -> np.ndarray:
    """Mean over the head of -log2 of the item's share of the train rows, in bits (Vargas & Castells 2011).

    These are `Judged.traits` [N]; see `tasks.lists.Novelty`.
    """
    if lists.rows.traits is None:
        return np.full(len(lists.size), np.nan)
    return lists.sum(lists.in_head * lists.rows.traits) / np.minimum(lists.size, lists.k)


@dataclass(frozen=True)
class Coverage:
    """Share of the items among the rows that stand in the head of some list; with ties, the mean of it (for an item
    that is tied with itself in one list, nearly).

    No mean over lists: it grows with the rows, so only figures over the same rows compare, and resampled users, of
    whom some are missing, always cover less.
    """

    k: int | None

    def __call__(self, rows: Judged) -> float | None:
        if rows.items is None or len(rows.items) == 0:
            return None
        items, item = np.unique(rows.items, return_inverse=True)
        chance = lists_of(rows, self.k).in_head
        with np.errstate(divide="ignore"):
            never = np.bincount(item, weights=np.log1p(-chance), minlength=len(items))
        return float(np.mean(1 - np.exp(never)))


METRICS.register_head("coverage", Coverage)
