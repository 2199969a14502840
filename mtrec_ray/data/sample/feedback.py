"""What users do with what they are shown: chains of signals with delays, dwell time, labels that nobody sees."""

from collections.abc import Mapping

import numpy as np
from scipy.special import expit, ndtr, ndtri

from mtrec_ray.data.sample.population import Array, Items, Users
from mtrec_ray.data.sample.scenario import Dwell, Loads, Scenario, Stage

BOT_CLICKS = 0.5
"""Probability of a bot's label of 1 in a stage without parent; in the others it is 0."""
_PAIR_TOPICS = 1.5
"""How much sharing the seed's topics counts in m(i, seed); being its neighbour in the item graph counts 1."""


def given(scenario: Scenario, items: Items, rows: Mapping[str, Array], signal: Stage | Dwell) -> Array:
    """float [N]: the part of the signal's sum that neither the user's state nor the item's id has a share in.

    Args:
        rows: `item`, `position`, `domain`, `seed`, `age`, as in `Exposures`.
    """
    loads: Loads = signal.loads
    item = rows["item"]
    total = loads.style * items.effect[item] - loads.price * items.price[item] - loads.age * np.log1p(rows["age"])
    if loads.pair:
        total += loads.pair * _match(items, item, rows["seed"])
    if isinstance(signal, Dwell):
        return total + signal.mean
    if signal.parent is None:
        bias, factor = (np.array([getattr(d, name) for d in scenario.domains]) for name in ("bias", "position"))
        total += bias[rows["domain"]] - signal.position * factor[rows["domain"]] * np.log1p(rows["position"])
    return total + signal.bias


def _match(items: Items, item: Array, seed: Array) -> Array:
    """m(i, seed): topics in common, and whether the item graph has an edge from the seed to the item."""
    match = _PAIR_TOPICS * (items.topics[item] * items.topics[seed]).sum(1)
    if items.neighbours is not None:
        match += (items.neighbours[seed] == item[:, None]).any(1)
    return match


def react(
    rng: np.random.Generator,
    scenario: Scenario,
    items: Items,
    users: Users,
    rows: Mapping[str, Array],
    latent: tuple[Array, Array, Array],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Array]:
    """Labels, times at which they are known, true probabilities, all by stage [N], and dwell time [N].

    Args:
        rows: as of `given`, with `user` and `time`.
        latent: the user's activity, the liking of the item's topics and the item's quality, float [N] each.
    """
    user, time = rows["user"], rows["time"]
    bot = users.bot[user]
    truth: dict[str, Array] = {}
    done: dict[str, Array] = {}
    came: dict[str, Array] = {}
    labels, known = {}, {}
    for stage in scenario.stages:
        root = stage.parent is None
        given_parent = expit(given(scenario, items, rows, stage) + _weighed(stage.loads, latent))
        given_parent = np.where(bot, BOT_CLICKS if root else 0.0, given_parent)
        truth[stage.name] = given_parent if stage.parent is None else given_parent * truth[stage.parent]
        happens = rng.random(len(user)) < given_parent
        if stage.parent is None:
            done[stage.name], came[stage.name] = happens, time + stage.window
        else:
            done[stage.name] = happens & done[stage.parent]
            left = time + stage.window - came[stage.parent]
            came[stage.name] = came[stage.parent] + _delays(rng, stage, left)
        observed = ~users.untracked[stage.name][user]
        if stage.surveyed < 1 and stage.parent is not None:
            observed &= ~done[stage.parent] | (rng.random(len(user)) < stage.surveyed)
        labels[stage.name] = np.where(observed, done[stage.name], np.nan)
        known[stage.name] = np.where(done[stage.name], came[stage.name], time + stage.window)
    dwell = np.full(len(user), np.nan)
    if scenario.dwell is not None:
        spent = scenario.dwell
        mean = given(scenario, items, rows, spent) + _weighed(spent.loads, latent)
        seconds = np.exp(mean + rng.normal(0, spent.noise, len(user)))
        dwell = np.where(done[scenario.root.name], np.where(bot, 1.0, np.maximum(np.round(seconds, 1), 0.1)), np.nan)
    return labels, known, truth, dwell


def _weighed(loads: Loads, latent: tuple[Array, Array, Array]) -> Array:
    activity, liking, quality = latent
    return loads.activity * activity + loads.taste * liking + loads.quality * quality


def _delays(rng: np.random.Generator, stage: Stage, left: Array) -> Array:
    """int [N] seconds from the parent's feedback, lognormal, cut at what is `left` of the window."""
    most = ndtr(np.log(left / stage.delay) / stage.delay_spread)
    normal = ndtri(rng.random(len(left)) * most)
    return np.clip(np.ceil(stage.delay * np.exp(stage.delay_spread * normal)), 1, left).astype(np.int64)
