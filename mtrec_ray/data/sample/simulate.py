"""The days of a generated log, one after the other, each in memory as a whole.

Every draw is a function of the seed and the day; what passes from day to day are the users' states and what the logging
policy has counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.feedback import react
from mtrec_ray.data.sample.policy import Policy, draw_slates
from mtrec_ray.data.sample.population import TOPIC_COUNT, Array, Items, Users, spreads
from mtrec_ray.data.sample.scenario import DAY, HOUR, MINUTE, Scenario, Size
from mtrec_ray.errors import ConfigError

_SESSION_END = 50 * MINUTE
"""No request comes later in its session: the last clicks of a day are known before the next one begins."""
_GAP = (90, 600)
"""Fewest and most seconds between the requests of a session: more than `CLICK_DELAY`, so that clicks are known."""


@dataclass(frozen=True)
class World:
    """A scenario's users and items. Everything in it but `quality` may be known to the ideal observer."""

    scenario: Scenario
    size: Size
    items: Items
    users: Users
    quality: Array
    """float [N]: what only the item's id tells"""

    @classmethod
    def drawn(cls, scenario: Scenario, size: Size) -> "World":
        quality = np.random.default_rng([size.seed, 12]).normal(0, scenario.quality_spread, size.items)
        return cls(scenario, size, Items.drawn(scenario, size), Users.drawn(scenario, size), quality)

    def days(self) -> Iterator[tuple[Exposures, Truth]]:
        """Rows of each day, ordered by time, request and position.

        Raises:
            ConfigError: a day on which fewer items can be shown than a request has.
        """
        sessions = requests = 0
        states = _States(self)
        policy = Policy(self.scenario, self.items, self.users, np.random.default_rng([self.size.seed, 13]))
        for day in range(self.size.days):
            rng = np.random.default_rng([self.size.seed, 14, day])
            if day:
                states.renew(rng)
            visits = _visits(rng, self, day)
            rows = _shown(rng, self, policy, visits, day)
            taste, liked = states.now, self.items.topics[rows["item"]]
            intents = rng.normal(0, self.scenario.intent_spread, (visits.sessions, TOPIC_COUNT))
            wanted = taste[rows["user"], 1:] + intents[rows["session"]]
            latent = (taste[rows["user"], 0], (wanted * liked).sum(1), self.quality[rows["item"]])
            labels, known, truth, dwell = react(rng, self.scenario, self.items, self.users, rows, latent)
            root = self.scenario.root.name
            policy.learn(rows["user"], rows["item"], labels[root] == 1)
            rows["session"] = rows["session"] + sessions
            rows["request"] = rows["request"] + requests
            sessions, requests = sessions + visits.sessions, requests + len(visits.user)
            bot = self.users.bot[rows["user"]]
            yield Exposures(**rows, labels=labels, known=known, dwell=dwell), Truth(truth, bot)


class _States:
    """Activity and tastes of all users on one day, float [U, 1 + K]."""

    def __init__(self, world: World) -> None:
        self.means = world.users.means[world.users.segment]
        self.spreads, self.drift = spreads(world.scenario), world.scenario.drift
        rng = np.random.default_rng([world.size.seed, 15])
        self.now = self.means + self.spreads * rng.normal(size=self.means.shape)

    def renew(self, rng: np.random.Generator) -> None:
        """One day later: a share of the variance around the segment's mean is drawn anew."""
        away = np.sqrt(1 - self.drift) * (self.now - self.means)
        self.now = self.means + away + np.sqrt(self.drift) * self.spreads * rng.normal(size=self.means.shape)


@dataclass(frozen=True)
class _Visits:
    """R requests of a day, by time."""

    user: Array
    time: Array
    session: Array
    sessions: int


def _visits(rng: np.random.Generator, world: World, day: int) -> _Visits:
    users, scenario = world.users, world.scenario
    counts = rng.poisson(np.where(users.joined <= day, users.visits, 0.0))
    owner = np.repeat(np.arange(len(counts)), counts)
    start = np.mod(rng.normal(19, 4, len(owner)) * HOUR, DAY - HOUR).astype(np.int64)
    start = start[np.lexsort((start, owner))]
    apart = (np.diff(owner, prepend=-1) != 0) | (np.diff(start, prepend=0) > HOUR)
    number = np.cumsum(apart) - 1  # visits that overlap are one session
    lengths = np.minimum(1 + rng.poisson(scenario.requests_per_session - 1, len(owner)), _SESSION_END // _GAP[1] + 1)
    visit = np.repeat(np.arange(len(owner)), lengths)
    gaps = np.cumsum(rng.integers(*_GAP, len(visit), endpoint=True))
    since = gaps - gaps[np.cumsum(lengths) - lengths][visit]
    time = world.size.start + day * DAY + start[visit] + since
    order = np.lexsort((visit, time))
    return _Visits(owner[visit][order], time[order], number[visit][order], int(apart.sum()))


def _shown(rng: np.random.Generator, world: World, policy: Policy, visits: _Visits, day: int) -> dict[str, Array]:
    """Columns of `Exposures` that are there before any feedback; requests and sessions count from 0."""
    scenario, count = world.scenario, len(visits.user)
    shares = np.array([domain.share for domain in scenario.domains])
    own = world.users.domain[visits.user]
    domain = np.where(own >= 0, own, rng.choice(len(shares), count, p=shares / shares.sum()))
    uniform = rng.random(count) < scenario.random_share
    lengths = rng.integers(*scenario.slate, count, endpoint=True)
    seed = np.full(count, -1)
    if scenario.seeded:
        alive = np.flatnonzero((world.items.born <= day) & (day < world.items.dies))
        seed = rng.choice(alive, count)
    wishes = np.where(uniform[:, None], 0.0, policy.wishes(visits.user, seed if scenario.seeded else None))
    parts = []
    for place in range(len(shares)):
        for random in (False, True):
            mine = np.flatnonzero((domain == place) & (uniform == random))
            shelf = policy.shelf(day, place, random)
            if shelf.size <= scenario.slate[1]:
                raise ConfigError(
                    f"On day {day} domain '{scenario.domains[place].name}' of scenario '{scenario.name}' has only "
                    f"{shelf.size} items to show, for requests of up to {scenario.slate[1]}; found items="
                    f"{world.size.items}, days={world.size.days}. Give more items, or fewer days."
                )
            request, *rest = draw_slates(rng, shelf, wishes[mine], lengths[mine])
            parts.append((mine[request], *rest))
    request, position, item, propensity = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((position, request))
    request, position, item, propensity = request[order], position[order], item[order], propensity[order]
    seconds = visits.time[request] - world.size.start
    return {
        "user": visits.user[request],
        "item": item,
        "time": visits.time[request],
        "session": visits.session[request],
        "request": request,
        "position": position,
        "domain": domain[request],
        "random": uniform[request],
        "propensity": propensity,
        "seed": seed[request],
        "age": seconds / DAY - world.items.born[item],
    }
