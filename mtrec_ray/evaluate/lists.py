"""Metrics of lists: rows that were shown together, in the order of their scores; numpy only, no loop over lists.

Rows with equal scores have no order. Each metric is its mean over all orders that they could have (McSherry & Najork
2008, "Computing information retrieval performance measures efficiently in the presence of tied scores"), so a model
that cannot tell rows apart does not profit from the order of the log. N rows in G lists; k = rows at the head of a
list that count, None = all. A metric is a mean over the lists that define it.

Where rows have weights w, as negatives that were sampled have: a list counts m, the mean weight of its positives, and
in it a row stands for w / m rows with its score, as in the loss of kind `ranking`. So ranks are those that the list had
unsampled, without bias; a metric that is no linear function of a rank is biased by how much the estimate scatters (it
is the first of the estimators of Krichene & Rendle 2020, "On Sampled Metrics for Item Recommendation", Sec. 5): too
high where few of a list's rows were kept. Parts of a row take parts of places. What was left out has no categories, and
no item; so what is measured of these looks at the rows as they are, in lists that count the smallest weight of a row:
a list is in the log no less often than the likeliest of its rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluate.judged import METRICS, Judged

_PLACES_AT_ONCE = 1 << 22
"""Places of ties that are looked at at a time: rows that stand for many have as many."""


class Lists(NamedTuple):
    """Where each row stands in its list."""

    rows: Judged
    k: int
    """Head of the list; at least 1"""
    list: np.ndarray
    """int64 [N] number of the row's list, 0 .. G - 1"""
    places: np.ndarray
    """float64 [N] rows that the row stands for"""
    weight: np.ndarray
    """float64 [G] how much the list counts"""
    size: np.ndarray
    """float64 [G] places"""
    ahead: np.ndarray
    """float64 [N] places of the list with a higher score"""
    tied: np.ndarray
    """float64 [N] places of the list with this score, the row's own among them"""

    def sum(self, values: np.ndarray) -> np.ndarray:
        """[N] -> [G]"""
        return np.bincount(self.list, weights=values, minlength=len(self.size))

    @property
    def in_head(self) -> np.ndarray:
        """float64 [N] chance to stand among the first k; of a row that stands for several, their mean."""
        return np.clip((self.k - self.ahead) / self.tied, 0, 1)

    @property
    def positives(self) -> np.ndarray:
        """float64 [G] places of positives; NaN for lists that have no row with label 1 or none with label 0, which no
        order can spoil."""
        found = self.sum(np.where(self.rows.labels > 0, self.places, 0.0))
        return np.where((found > 0) & (found < self.size), found, np.nan)


def lists_of(rows: Judged, k: int | None, as_they_are: bool) -> Lists:
    """`rows`: all labels observed, all scores finite, [N]; `as_they_are`: each row has one place."""
    found, code = np.unique(rows.shown, return_inverse=True)
    places, weight = _weighed(rows, code, len(found), as_they_are)
    scores = np.asarray(rows.scores, dtype=np.float64)
    order = np.lexsort((-scores, code))
    of, by = code[order], scores[order]
    starts_list = np.append(True, of[1:] != of[:-1])[: len(of)]
    starts_tie = starts_list | np.append(True, by[1:] != by[:-1])[: len(of)]
    before = np.cumsum(places[order]) - places[order]
    tie = np.cumsum(starts_tie) - 1
    ahead, tied = np.empty((2, len(of)))
    ahead[order] = before[starts_tie][tie] - before[starts_list][of]
    tied[order] = np.bincount(tie, weights=places[order], minlength=1)[tie]
    size = np.bincount(code, weights=places, minlength=len(found))
    k = max(1, math.ceil(size.max(initial=0))) if k is None else k
    return Lists(rows, k, code, places, weight, size, ahead, tied)


def _weighed(rows: Judged, code: np.ndarray, lists: int, as_they_are: bool) -> tuple[np.ndarray, np.ndarray]:
    """Places of the rows [N] and weights of the lists [G]; list of each row `code` [N]."""
    if rows.weights is None:
        return np.ones(len(code)), np.ones(lists)
    if as_they_are:
        weight = np.full(lists, np.inf)
        np.minimum.at(weight, code, rows.weights)
        return np.ones(len(code)), weight
    positive = rows.labels > 0
    total = np.bincount(code, weights=np.where(positive, rows.weights, 0.0), minlength=lists)
    positives = np.bincount(code, weights=positive, minlength=lists)
    weight = np.divide(total, positives, out=np.ones(lists), where=positives > 0)
    return rows.weights / weight[code], weight


OfLists = Callable[[Lists], np.ndarray]
"""A value for each list [G], NaN where the list does not define it."""
OfRanks = Callable[[np.ndarray], np.ndarray]
"""The same of lists of all items with one positive, from its place [N] in the list, from 1."""


class Each(NamedTuple):
    """G lists, ascending by `Judged.shown`; of ranks in a catalogue one by row."""

    value: np.ndarray
    """float64 [G], NaN = not defined"""
    weight: np.ndarray
    """float64 [G]"""
    owner: np.ndarray
    """int64 [G] one of the rows"""


@dataclass(frozen=True)
class MeanOfLists:
    """A metric with one value for each list."""

    of_lists: OfLists
    k: int | None
    of_ranks: OfRanks | None = None
    """Where rows have ranks in the catalogue of all items, each positive is a list of its own."""
    as_they_are: bool = False
    """See `lists_of`."""

    def __call__(self, rows: Judged) -> float | None:
        value, weight, _ = self.each(rows)
        defined = ~np.isnan(value)
        return float(np.average(value[defined], weights=weight[defined])) if defined.any() else None

    def each(self, rows: Judged) -> Each:
        """What the metric is the mean of."""
        if rows.ranks is None or self.of_ranks is None:
            lists = lists_of(rows, self.k, self.as_they_are)
            return Each(self.of_lists(lists), lists.weight, np.unique(rows.shown, return_index=True)[1])
        place = np.asarray(rows.ranks, dtype=np.float64)
        inside = place <= (np.inf if self.k is None else self.k)
        value = np.where(place > 0, np.where(inside, self.of_ranks(np.maximum(place, 1)), 0.0), np.nan)
        return Each(value, rows.counts, np.arange(len(value)))


OF_RANKS: set[str] = set()
"""Names of the metrics that rankings of all items have, too."""


def register_list_metric(
    name: str, of_ranks: OfRanks | None = None, as_they_are: bool = False
) -> Callable[[OfLists], OfLists]:
    """Decorator: `name` and `name@k` become metrics; `of_ranks`: what they are in a ranking of all items;
    `as_they_are`: see `lists_of`."""

    def add(of_lists: OfLists) -> OfLists:
        METRICS.register_head(name, lambda k: MeanOfLists(of_lists, k, of_ranks, as_they_are))
        if of_ranks is not None:
            OF_RANKS.add(name)
        return of_lists

    return add


@register_list_metric("ndcg", lambda place: 1 / np.log2(1 + place))
def ndcg(lists: Lists) -> np.ndarray:
    """Discounted gain 1 / log2(1 + rank) of the positives over that of the best order (Järvelin & Kekäläinen 2002)."""
    head = min(lists.k, math.ceil(lists.size.max(initial=0)))
    ranks = np.arange(head + 1)
    sums = np.append(0, np.cumsum(1 / np.log2(ranks[1:] + 1)))  # [rank]: of ranks 1 .. rank

    def until(places: np.ndarray) -> np.ndarray:
        return np.interp(places, ranks, sums)

    of_row = (until(lists.ahead + lists.tied) - until(lists.ahead)) / lists.tied
    positives = lists.positives
    best = until(np.nan_to_num(positives))
    gain = lists.sum((lists.rows.labels > 0) * lists.places * of_row)
    return np.divide(gain, best, out=positives * np.nan, where=best > 0)


@register_list_metric("mrr", lambda place: 1 / place)
def mrr(lists: Lists) -> np.ndarray:
    """1 / rank of the first positive, 0 where it is not in the head."""
    positives = lists.positives
    is_positive = lists.rows.labels > 0
    first = np.full(len(positives), np.inf)
    np.minimum.at(first, lists.list[is_positive], lists.ahead[is_positive])
    in_tie = is_positive & (lists.ahead == first[lists.list])
    list_, where = np.unique(lists.list[in_tie], return_index=True)
    positive = np.bincount(lists.list[in_tie], weights=lists.places[in_tie], minlength=len(positives))
    value = np.zeros(len(positives))
    value[list_] = _first_of_ties(lists.tied[in_tie][where], positive[list_], first[list_], lists.k)
    return np.where(np.isnan(positives), np.nan, value)


def _first_of_ties(size: np.ndarray, positive: np.ndarray, before: np.ndarray, k: int) -> np.ndarray:
    """Mean of 1 / rank, 0 beyond k, of the first positive in each of T ties.

    Args:
        size: [T] places of the tie, n; `positive`: those of positives among them, p.
        before: [T] places of the list before the tie.
    """
    value = np.zeros(len(size))
    # Beyond place n - p + 1 of the tie the first positive cannot stand, and beyond rank k it does not count.
    places = np.minimum(np.ceil(size - positive) + 1, np.maximum(np.ceil(k - before), 0)).astype(np.int64)
    block = np.cumsum(places) // _PLACES_AT_ONCE
    for chosen in np.split(np.arange(len(size)), np.flatnonzero(np.diff(block)) + 1):
        n, p, long = size[chosen], positive[chosen], places[chosen]
        tie = np.repeat(np.arange(len(chosen)), long)
        skipped = np.cumsum(long) - long
        j = np.arange(len(tie)) - skipped[tie] + 1
        left = n[tie] - j + 1
        here = np.where(left > p[tie], p[tie] / np.maximum(left, 1e-9), 1.0)  # chance to stand at j, if not before
        # The log of the chance not to have stood before j; what follows a certain place is of the next tie.
        passed = np.append(0, np.cumsum(np.log1p(-np.where(here < 1, here, 0))))
        chance = np.exp(passed[:-1] - passed[skipped][tie]) * here
        rank = before[chosen][tie] + j
        inside = np.clip(k + 1 - rank, 0, 1)
        value[chosen] = np.bincount(tie, weights=chance * inside / rank, minlength=len(chosen))
    return value


@register_list_metric("recall", np.ones_like)
def recall(lists: Lists) -> np.ndarray:
    """Share of the positives that stand in the head."""
    return lists.sum((lists.rows.labels > 0) * lists.places * lists.in_head) / lists.positives


@register_list_metric("ild", as_they_are=True)
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


@register_list_metric("novelty", as_they_are=True)
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
        chance = lists_of(rows, self.k, as_they_are=True).in_head
        with np.errstate(divide="ignore"):
            never = np.bincount(item, weights=np.log1p(-chance), minlength=len(items))
        return float(np.mean(1 - np.exp(never)))


METRICS.register_head("coverage", Coverage)
