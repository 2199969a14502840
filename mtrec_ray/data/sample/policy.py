"""The logging policy: what is shown where, with which probability.

It prefers topics that the user has clicked, items that were clicked often, and some for no reason; of all this it knows
no more than the log said when the day began. A place is drawn from the items not yet on the page (Plackett 1975, Luce
1959), so `propensity` is the probability of the item at its place given the places above it. A share of the requests
is drawn uniformly.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.sample.population import TOPIC_COUNT, Array, Items, Users
from mtrec_ray.data.sample.scenario import Scenario

_MEMORY = 0.93
"""What a click counts a day later."""
_SEED_PULL = 2.0
"""How much the topics of the seed draw, where a request has one."""
_PRIOR = 4.0
"""Exposures at the mean rate that each count starts with."""


@dataclass(frozen=True)
class Shelf:
    """Items that can be drawn, each with a weight, by main topic."""

    members: list[Array]
    """int [n_k] of each topic"""
    bounds: list[Array]
    """float [n_k] cumulative weights"""

    @classmethod
    def of(cls, items: Array, main: Array, weights: Array) -> "Shelf":
        groups = [items[main[items] == topic] for topic in range(TOPIC_COUNT)]
        return cls(groups, [np.cumsum(weights[group]) for group in groups])

    @property
    def size(self) -> int:
        return sum(len(group) for group in self.members)

    def draw(self, rng: np.random.Generator, wishes: Array) -> tuple[Array, Array]:
        """An item [R] and its probability for each row of `wishes` [R, K], logits of the topics."""
        totals = np.array([bounds[-1] if len(bounds) else 0.0 for bounds in self.bounds])
        mass = np.exp(wishes - wishes.max(1, keepdims=True)) * totals
        upto = np.cumsum(mass, 1)
        row = np.arange(len(wishes))
        place = rng.random(len(wishes)) * upto[:, -1]
        topic = np.minimum((place[:, None] >= upto).sum(1), np.flatnonzero(totals)[-1])
        own = mass[row, topic]
        inside = np.clip((place - (upto[row, topic] - own)) / own, 0, 1)
        item, weight = np.zeros(len(topic), np.int64), np.zeros(len(topic))
        for k in np.unique(topic):
            rows, bounds = topic == k, self.bounds[k]
            at = np.minimum(np.searchsorted(bounds, inside[rows] * bounds[-1], "right"), len(bounds) - 1)
            item[rows], weight[rows] = self.members[k][at], np.diff(bounds, prepend=0.0)[at]
        return item, own / upto[:, -1] * weight / totals[topic]


def draw_slates(
    rng: np.random.Generator, shelf: Shelf, wishes: Array, lengths: Array
) -> tuple[Array, Array, Array, Array]:
    """Request, position, item and propensity of each row [sum of lengths], by request and position.

    Args:
        wishes: [R, K]. lengths: [R], each at most the number of items on the shelf.
    """
    most = int(lengths.max(initial=0))
    chosen, chance = np.full((len(lengths), most), -1), np.zeros((len(lengths), most))
    for place in range(most):
        open_rows = np.flatnonzero(lengths > place)
        while len(open_rows):
            item, probability = shelf.draw(rng, wishes[open_rows])
            fresh = ~(chosen[open_rows, :place] == item[:, None]).any(1)
            rows = open_rows[fresh]
            chosen[rows, place], chance[rows, place] = item[fresh], probability[fresh]
            open_rows = open_rows[~fresh]
    above = np.cumsum(chance, 1) - chance
    shown = np.arange(most) < lengths[:, None]
    request, position = np.nonzero(shown)
    return request, position, chosen[shown], np.minimum(chance / np.maximum(1 - above, 1e-12), 1.0)[shown]


class Policy:
    """What the logging policy has counted of the log until now."""

    def __init__(self, scenario: Scenario, items: Items, users: Users, rng: np.random.Generator) -> None:
        self.scenario, self.items = scenario, items
        self.shown = np.zeros((len(users.segment), TOPIC_COUNT), np.float32)
        self.clicked = np.zeros_like(self.shown)
        self.item_shown, self.item_clicked = np.zeros(len(items.main)), np.zeros(len(items.main))
        self.promotion = rng.normal(0, scenario.promotion, len(items.main))

    def shelf(self, day: int, domain: int, uniform: bool) -> Shelf:
        """What a domain shows on a day."""
        items = self.items
        here = (items.domain == -1) | (items.domain == domain)
        alive = np.flatnonzero((items.born <= day) & (day < items.dies) & here)
        rate = (self.item_clicked.sum() + 1) / (self.item_shown.sum() + 8)
        liked = np.log((self.item_clicked + _PRIOR * rate) / (self.item_shown + _PRIOR) / rate)
        weights = np.exp(self.promotion + self.scenario.popularity * liked)
        return Shelf.of(alive, items.main, np.ones_like(weights) if uniform else weights)

    def wishes(self, user: Array, seed: Array | None) -> Array:
        """Logits [R, K] of the topics for these users, on the pages of these items."""
        shown, clicked = self.shown[user], self.clicked[user]
        rate = (self.clicked.sum() + 1) / (self.shown.sum() + 8)
        logits = self.scenario.affinity * np.log((clicked + _PRIOR * rate) / (shown + _PRIOR) / rate)
        return logits if seed is None else logits + _SEED_PULL * self.items.topics[seed]

    def learn(self, user: Array, item: Array, click: Array) -> None:
        """Counts a day's rows [N], when the day is over."""
        for counts in (self.shown, self.clicked, self.item_shown, self.item_clicked):
            counts *= _MEMORY
        place = (user, self.items.main[item])
        np.add.at(self.shown, place, 1)
        np.add.at(self.clicked, place, click)
        self.item_shown += np.bincount(item, minlength=len(self.item_shown))
        self.item_clicked += np.bincount(item, weights=click, minlength=len(self.item_clicked))
