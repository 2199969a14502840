"""What is believed of users and items: normal distributions, updated by one piece of feedback after the other.

Assumed-density filtering (Opper 1998, "A Bayesian approach to on-line learning"; Minka 2001, arXiv 1301.2294, section
3.2): after each label the exact posterior along the one direction that the label depends on is replaced by the normal
distribution of the same mean and variance. With z ~ N(m, v) before the label, E and V its mean and variance after it,

    state <- state + P w (E - m) / v,    P <- P - P w (P w)' (v - V) / v^2

The integrals have one dimension and are taken by Gauss-Hermite quadrature. As in AdPredictor (Graepel et al. 2010, with
a probit in place of the logistic function) users and items are independent under the approximation.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit

from mtrec_ray.data.sample.population import Array

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_CHUNK = 100_000


def expected_logistic(mean: Array, variance: Array) -> Array:
    """E of the logistic function of N(mean, variance), [N]."""
    found = np.empty(len(mean))
    for first in range(0, len(mean), _CHUNK):
        rows = slice(first, first + _CHUNK)
        found[rows] = expit(mean[rows, None] + np.sqrt(variance[rows, None]) * _NODES) @ _WEIGHTS
    return found


def after_label(mean: Array, variance: Array, label: Array) -> tuple[Array, Array]:
    """Mean and variance [N] of z ~ N(mean, variance) given that a coin of log-odds z showed `label`."""
    z = mean[:, None] + np.sqrt(variance[:, None]) * _NODES
    weight = expit(np.where(label[:, None] > 0, z, -z)) * _WEIGHTS
    weight /= weight.sum(1, keepdims=True)
    after = (weight * z).sum(1)
    return after, (weight * (z - after[:, None]) ** 2).sum(1)


def after_number(mean: Array, variance: Array, number: Array, noise: Array) -> tuple[Array, Array]:
    """The same given that z plus normal noise (standard deviation) was `number`."""
    gain = variance / (variance + noise**2)
    return mean + gain * (number - mean), variance * (1 - gain)


class Beliefs:
    """Of U users a state of activity, K tastes and K intents of the session; of N items the quality.

    Args:
        means: [U, 1 + K]. spreads: [1 + K]. drift: share of that variance that is renewed every day.
        quality: standard deviation.
    """

    def __init__(self, means: Array, spreads: Array, intent: float, drift: float, items: int, quality: float) -> None:
        self.own, self.tastes = means.shape[1], means.shape[1] - 1
        self.means, self.prior, self.drift = means, np.diag(spreads**2), drift
        self.intent = intent**2
        size = self.own + self.tastes
        self.mean = np.concatenate([means, np.zeros((len(means), self.tastes))], axis=1)
        self.cov = np.zeros((len(means), size, size))
        self.cov[:, : self.own, : self.own] = self.prior
        self._forget_intents(np.arange(len(means)))
        self.day = np.zeros(len(means), np.int64)
        self.session = np.full(len(means), -1)
        self.item_mean, self.item_variance = np.zeros(items), np.full(items, quality**2)

    def _forget_intents(self, users: Array) -> None:
        own = self.own
        self.mean[users, own:] = 0
        self.cov[users, own:] = 0
        self.cov[users, :, own:] = 0
        self.cov[users[:, None], np.arange(own, own + self.tastes), np.arange(own, own + self.tastes)] = self.intent

    def pass_days(self, users: Array, day: int) -> None:
        """Drift, for these users (each once), until `day`."""
        late = users[self.day[users] < day]
        if len(late) == 0:
            return
        kept = np.sqrt(1 - self.drift) ** (day - self.day[late])[:, None]
        own = self.own
        self.mean[late, :own] = self.means[late] + kept * (self.mean[late, :own] - self.means[late])
        self.cov[late, :own] *= kept[:, :, None]
        self.cov[late, :, :own] *= kept[:, :, None]
        self.cov[late, :own, :own] += (1 - kept[:, :, None] ** 2) * self.prior
        self.day[late] = day

    def open_sessions(self, users: Array, sessions: Array) -> None:
        """New intents for those of the users (each once) that are in another session than before."""
        new = self.session[users] != sessions
        self._forget_intents(users[new])
        self.session[users] = sessions

    def direction(self, activity: Array, taste: Array, topics: Array, current: Array) -> Array:
        """w [N, 1 + K + K] of a signal with these loads [N] on items with these topics [N, K]; the intent counts where
        the session is still `current`."""
        liked = taste[:, None] * topics
        return np.concatenate([activity[:, None], liked, np.where(current[:, None], liked, 0)], axis=1)

    def learn(
        self,
        users: Array,
        items: Array,
        w: Array,
        quality: Array,
        offset: Array,
        old_intent: Array,
        update: Callable[[Array, Array], tuple[Array, Array]],
        frozen: bool,
    ) -> tuple[Array, Array]:
        """Updates the users (each once) by one signal each, and gives what it says of each item: the change of
        precision, and of precision times mean, [N].

        Args:
            w: as of `direction`. quality: load [N] of the item's quality. offset: [N] known part of z.
            old_intent: [N] variance of z by intents of sessions that are over.
            update: mean and variance of z before -> after.
            frozen: leave the users as they are.
        """
        spread = np.matmul(self.cov[users], w[:, :, None])[:, :, 0]
        mean = offset + (self.mean[users] * w).sum(1) + quality * self.item_mean[items]
        variance = (spread * w).sum(1) + quality**2 * self.item_variance[items] + old_intent
        after, left = update(mean, variance)
        step, shrink = (after - mean) / variance, (variance - left) / variance**2
        if not frozen:
            self.mean[users] += spread * step[:, None]
            self.cov[users] -= spread[:, :, None] * (spread * shrink[:, None])[:, None, :]
        before = self.item_variance[items]
        now = before - (quality * before) ** 2 * shrink
        precision = 1 / now - 1 / before
        return precision, (self.item_mean[items] + quality * before * step) / now - self.item_mean[items] / before

    def tell_items(self, items: Array, precision: Array, moment: Array) -> None:
        """Adds what was learned of items; the same item may come several times."""
        total = 1 / self.item_variance
        moments = self.item_mean * total
        np.add.at(total, items, precision)
        np.add.at(moments, items, moment)
        self.item_variance, self.item_mean = 1 / total, moments / total
