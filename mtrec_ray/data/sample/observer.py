"""The ideal observer: how likely a row's labels are, given only what the log showed before the row.

It knows the generator's parameters: every strength of the scenario, the means of the segments and who is in which, the
effect of each word, position and price, the item graph. It does not know what no parameter tells: the users' tastes
and activity, the intents of sessions, the quality that only an item's id stands for. Of these it holds the posterior,
from all users' feedback known strictly before the row (see `beliefs`), items' qualities as of the start of the hour.

Two more things make it a little less than ideal: that feedback has not come yet, while it still may, tells it nothing;
and what comes after its session is over tells it nothing of that session's intent. Who is a bot it is told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mtrec_ray.data.sample.beliefs import Beliefs, after_label, after_number, expected_logistic
from mtrec_ray.data.sample.exposures import Exposures
from mtrec_ray.data.sample.feedback import given
from mtrec_ray.data.sample.population import Array, Items, Users, spreads
from mtrec_ray.data.sample.scenario import DAY, HOUR, Dwell, Scenario, Size, Stage

_SCORE = -1


@dataclass(frozen=True)
class Sees:
    """Which of its senses the observer has; without one of them it tells what that one is worth."""

    history: bool = True
    """What users' own feedback says of them."""
    ids: bool = True
    """What feedback says of items."""
    text: bool = True
    """Titles; without them the category, and words' effects count into what the id stands for."""


@dataclass(frozen=True)
class Moments:
    """Of each row [N], when it was shown: activity, liking of the item's topics, quality. Independent but for the first
    two."""

    mean: Array
    """[N, 3]"""
    cov: Array
    """[N, 3, 3]"""


def predict(
    scenario: Scenario, size: Size, items: Items, users: Users, log: Exposures, sees: Sees | None = None
) -> dict[str, Array]:
    """Probability [N] of a label of 1, by stage."""
    sees = sees or Sees()
    if not sees.text:
        hidden = float(np.hypot(scenario.quality_spread, items.effect.std()))
        scenario, items = replace(scenario, quality_spread=hidden), items.untitled()
    known = {signal: given(scenario, items, vars(log), signal) for signal in _signals(scenario)}
    moments = _follow(scenario, size, items, users, log, known, sees)
    return {stage.name: _probability(scenario.chain(stage.name), moments, known) for stage in scenario.stages}


def _signals(scenario: Scenario) -> list[Stage | Dwell]:
    return [*scenario.stages, *([scenario.dwell] if scenario.dwell is not None else [])]


def _probability(chain: tuple[Stage, ...], moments: Moments, known: dict[Stage | Dwell, Array]) -> Array:
    """The product over the chain, each factor given that the one before happened."""
    mean, cov = moments.mean, moments.cov
    total = np.ones(len(mean))
    for stage in chain:
        w = np.array([stage.loads.activity, stage.loads.taste, stage.loads.quality])
        spread = cov @ w
        m, v = known[stage] + mean @ w, spread @ w
        total *= expected_logistic(m, v)
        after, left = after_label(m, v, np.ones(len(m)))
        mean = mean + spread * ((after - m) / v)[:, None]
        cov = cov - spread[:, :, None] * (spread * ((v - left) / v**2)[:, None])[:, None, :]
    return total


def _follow(
    scenario: Scenario,
    size: Size,
    items: Items,
    users: Users,
    log: Exposures,
    known: dict[Stage | Dwell, Array],
    sees: Sees,
) -> Moments:
    """Goes through the log in the order in which things became known."""
    beliefs = Beliefs(
        users.means[users.segment],
        spreads(scenario),
        scenario.intent_spread,
        scenario.drift,
        len(items.main),
        scenario.quality_spread,
    )
    mean, cov = np.zeros((len(log), 3)), np.zeros((len(log), 3, 3))
    signals = _signals(scenario)
    liked = items.topics[log.item]
    slot, told = -1, list[tuple[Array, Array, Array]]()
    for acts in _acts(scenario, size, users.bot, log):
        if acts.slot != slot and told:
            if sees.ids:
                beliefs.tell_items(*(np.concatenate(column) for column in zip(*told, strict=True)))
            told = []
        slot = acts.slot
        beliefs.pass_days(np.unique(log.user[acts.rows]), slot * HOUR // DAY)
        for kind, rows in acts.by_kind():
            user, item = log.user[rows], log.item[rows]
            if kind == _SCORE:
                visitors, first = np.unique(user, return_index=True)
                beliefs.open_sessions(visitors, log.session[rows[first]])
                mean[rows], cov[rows] = _moments(beliefs, user, item, liked[rows])
                continue
            signal = signals[kind]
            current = beliefs.session[user] == log.session[rows]
            old = np.where(current, 0.0, scenario.intent_spread * signal.loads.taste) ** 2 * (liked[rows] ** 2).sum(1)
            ones = np.ones(len(rows))
            w = beliefs.direction(signal.loads.activity * ones, signal.loads.taste * ones, liked[rows], current)
            quality = signal.loads.quality * ones
            update = _update(signal, log, rows)
            changes = beliefs.learn(user, item, w, quality, known[signal][rows], old, update, not sees.history)
            told.append((item, *changes))
    return Moments(mean, cov)


def _moments(beliefs: Beliefs, user: Array, item: Array, topics: Array) -> tuple[Array, Array]:
    one, none = np.ones(len(user)), np.zeros(len(user))
    here = np.ones(len(user), bool)
    w = np.stack([beliefs.direction(one, none, topics, here), beliefs.direction(none, one, topics, here)], axis=1)
    mean, cov = np.zeros((len(user), 3)), np.zeros((len(user), 3, 3))
    mean[:, :2] = (w @ beliefs.mean[user][:, :, None])[:, :, 0]
    mean[:, 2] = beliefs.item_mean[item]
    cov[:, :2, :2] = w @ beliefs.cov[user] @ w.transpose(0, 2, 1)
    cov[:, 2, 2] = beliefs.item_variance[item]
    return mean, cov


def _update(signal: Stage | Dwell, log: Exposures, rows: Array) -> Callable[[Array, Array], tuple[Array, Array]]:
    if isinstance(signal, Stage):
        return partial(after_label, label=log.labels[signal.name][rows])
    return partial(after_number, number=np.log(log.dwell[rows]), noise=np.full(len(rows), signal.noise))


@dataclass(frozen=True)
class _Acts:
    """Things that happen to different users in one hour and can be done at once: showing a request, or one signal."""

    slot: int
    kinds: Array
    """Place among the signals, or `_SCORE`"""
    rows: Array

    def by_kind(self) -> Iterator[tuple[int, Array]]:
        for kind in np.unique(self.kinds).tolist():
            yield kind, self.rows[self.kinds == kind]


def _acts(scenario: Scenario, size: Size, bot: Array, log: Exposures) -> Iterator[_Acts]:
    """By hour, and in it each user's first acts, then each user's second ones, and so on.

    What becomes known at the time of a request comes after it: a row knows what was known strictly before.
    """
    time, kind, row = [log.time], [np.full(len(log), _SCORE)], [np.arange(len(log))]
    for place, signal in enumerate(_signals(scenario)):
        rows, when = _known(scenario, signal, bot, log)
        time.append(when)
        kind.append(np.full(len(rows), place))
        row.append(rows)
    times, kinds, rows = np.concatenate(time), np.concatenate(kind), np.concatenate(row)
    slots = (times - size.start) // HOUR
    user = log.user[rows]
    request = np.where(kinds == _SCORE, log.request[rows], -1)
    order = np.lexsort((rows, kinds, request < 0, times, user, slots))
    slots, user, kinds, rows, request = slots[order], user[order], kinds[order], rows[order], request[order]
    newcomer = (np.diff(slots, prepend=-1) != 0) | (np.diff(user, prepend=-1) != 0)
    act = newcomer | (np.diff(request, prepend=-2) != 0) | (request < 0)
    number = np.cumsum(act)
    number -= number[newcomer][np.cumsum(newcomer) - 1]
    order = np.lexsort((number, slots))
    edges = np.flatnonzero((np.diff(slots[order]) != 0) | (np.diff(number[order]) != 0)) + 1
    for group in np.split(order, edges):
        yield _Acts(int(slots[group[0]]), kinds[group], rows[group])


def _known(scenario: Scenario, signal: Stage | Dwell, bot: Array, log: Exposures) -> tuple[Array, Array]:
    """Rows for which the log shows the signal, and when; only what can be 1, of people, before the log ends."""
    if isinstance(signal, Stage):
        happened = log.labels[signal.parent] == 1 if signal.parent is not None else np.ones(len(log), bool)
        told, when = ~np.isnan(log.labels[signal.name]) & happened, log.known[signal.name]
    else:
        told, when = ~np.isnan(log.dwell), log.time + signal.window
    rows = np.flatnonzero(told & ~bot[log.user] & (when < log.time[-1]))
    return rows, when[rows]
