"""Users and items of a scenario: what they are in truth, and what the tables say of them."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from mtrec_ray.data.sample.scenario import Scenario, Size
from mtrec_ray.data.sample.words import NOISE, STYLES, TOPICS

Array = np.ndarray[Any, np.dtype[Any]]

TOPIC_COUNT = len(TOPICS)
SECOND_SHARE = 0.3
"""Of an item's second topic, which is any; the rest is its main one's."""
CATEGORIES = ("indoors", "outdoors")
_CATEGORY_OF_TOPIC = np.array([0, 1, 1, 0, 0, 0, 1, 1])
"""All that the table of items says of the main topic, beside the title."""
NEIGHBOURS = 8
_FRIENDS = 10
_AT_HOME = 0.85
"""Share of the edges of a graph that stay within the segment, or within the main topic."""


@dataclass(frozen=True)
class Items:
    """N items, ordered by the day on which they appear; the id is the place."""

    main: Array
    """int [N] topic"""
    topics: Array
    """float [N, K] shares that add up to one"""
    style: Array
    """int [N] place in `STYLES`"""
    effect: Array
    """float [N] of the style on a logit"""
    price: Array
    """float [N] standardised logarithm"""
    born: Array
    """int [N] first day"""
    dies: Array
    """int [N] first day without it"""
    domain: Array
    """int [N], -1 = all"""
    titles: list[str]
    neighbours: Array | None
    """int [N, NEIGHBOURS] of the item graph"""

    @classmethod
    def drawn(cls, scenario: Scenario, size: Size) -> Self:
        rng = np.random.default_rng([size.seed, 10])
        count = size.items
        if scenario.life_days is None:
            born = np.sort(_arrivals(rng, count, scenario.new_items, size.days))
        else:  # as many come as go; those of the first day are of all ages
            born = np.sort(rng.integers(1 - scenario.life_days, size.days, count))
        main, second = rng.integers(0, TOPIC_COUNT, count), rng.integers(0, TOPIC_COUNT, count)
        topics = np.zeros((count, TOPIC_COUNT))
        topics[np.arange(count), main] += 1 - SECOND_SHARE
        topics[np.arange(count), second] += SECOND_SHARE
        style = rng.integers(0, len(STYLES), count)
        own = scenario.shared_items or len(scenario.domains) == 1
        return cls(
            main=main,
            topics=topics,
            style=style,
            effect=scenario.style_scale * np.array(list(STYLES.values()))[style],
            price=rng.normal(size=count),
            born=born,
            dies=born + scenario.life_days if scenario.life_days is not None else np.full(count, size.days),
            domain=np.full(count, -1) if own else rng.integers(0, len(scenario.domains), count),
            titles=_titles(rng, main, second, style),
            neighbours=_edges(rng, main, NEIGHBOURS) if scenario.item_graph else None,
        )

    @property
    def category(self) -> Array:
        """int [N] place in `CATEGORIES`"""
        return _CATEGORY_OF_TOPIC[self.main]

    def untitled(self) -> "Items":
        """As one knows them who reads no title: topics by category, the mean style."""
        mean = np.stack([self.topics[self.category == c].mean(0) for c in range(len(CATEGORIES))])
        return replace(self, topics=mean[self.category], effect=np.full(len(self.effect), self.effect.mean()))


@dataclass(frozen=True)
class Users:
    """U users; the id is the place."""

    segment: Array
    """int [U]"""
    means: Array
    """float [segments, 1 + K]: mean activity and tastes"""
    joined: Array
    """int [U] first day"""
    domain: Array
    """int [U], -1 = any"""
    visits: Array
    """float [U] mean sessions a day"""
    untracked: dict[str, Array]
    """bool [U] of each stage: its labels are not observed"""
    bot: Array
    """bool [U]"""
    friends: Array | None
    """int [U, 10] of the social graph"""

    @classmethod
    def drawn(cls, scenario: Scenario, size: Size) -> Self:
        rng = np.random.default_rng([size.seed, 11])
        count = size.users
        segment = rng.integers(0, scenario.segments, count)
        means = rng.normal(0, scenario.segment_spread, (scenario.segments, 1 + TOPIC_COUNT))
        means[:, 0] = 0
        shares = np.array([domain.share for domain in scenario.domains])
        own = scenario.shared_users or len(shares) == 1
        visits = rng.lognormal(-0.32, 0.8, count)
        return cls(
            segment=segment,
            means=means,
            joined=_arrivals(rng, count, scenario.new_users, size.days),
            domain=np.full(count, -1) if own else rng.choice(len(shares), count, p=shares / shares.sum()),
            visits=scenario.sessions_per_day * visits,
            untracked={stage.name: rng.random(count) >= stage.tracked for stage in scenario.stages},
            bot=rng.random(count) < size.bots,
            friends=_edges(rng, segment, _FRIENDS) if scenario.user_graph else None,
        )


def spreads(scenario: Scenario) -> Array:
    """float [1 + K]: standard deviations of activity and tastes around the segment's means."""
    return np.array([scenario.activity_spread, *[scenario.taste_spread] * TOPIC_COUNT])


def _arrivals(rng: np.random.Generator, count: int, late: float, days: int) -> Array:
    """int [count]: a share of `late` comes on a day after the first, any of them alike."""
    return np.where(rng.random(count) < late, rng.integers(1, days, count), 0)


def _titles(rng: np.random.Generator, main: Array, second: Array, style: Array) -> list[str]:
    """Two words of the main topic, one of the second, the style's, one to three of noise; in any order."""
    vocabulary = np.array([words.split() for words in TOPICS.values()])
    words, noise, count = vocabulary.shape[1], np.array(NOISE.split()), len(main)
    first = rng.integers(0, words, count)
    other = (first + rng.integers(1, words, count)) % words
    parts = np.stack(
        [
            vocabulary[main, first],
            vocabulary[main, other],
            vocabulary[second, rng.integers(0, words, count)],
            np.array(list(STYLES))[style],
            *noise[rng.integers(0, len(noise), (3, count))],
        ],
        axis=1,
    )
    lengths = 4 + rng.integers(1, 4, count)
    shuffled = np.argsort(rng.random(parts.shape), axis=1)
    rows = zip(parts, shuffled, lengths, strict=True)
    return [" ".join(words[order[order < length]]) for words, order, length in rows]


def _edges(rng: np.random.Generator, group: Array, degree: int) -> Array:
    """int [N, degree]: neighbours, most of them of the same group; several edges may lead to the same one."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    inside = order[starts[group][:, None] + (rng.random((len(group), degree)) * sizes[group][:, None]).astype(int)]
    anyone = rng.integers(0, len(group), (len(group), degree))
    return np.where(rng.random((len(group), degree)) < _AT_HOME, inside, anyone)
