import numpy as np
import pytest
from scipy.stats import chi2

from mtrec_ray.data.sample.policy import Shelf, draw_slates
from mtrec_ray.data.sample.population import TOPIC_COUNT

ITEMS = 24
MAIN = np.arange(ITEMS) % (TOPIC_COUNT - 1)
"""The last topic has no item."""
REQUESTS = 60_000


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(3)
    weights = np.exp(rng.normal(size=ITEMS))
    wish = rng.normal(size=TOPIC_COUNT)
    slates = draw_slates(
        rng,
        Shelf.of(np.arange(ITEMS), MAIN, weights),
        np.tile(wish, (REQUESTS, 1)),
        np.full(REQUESTS, 3),
    )
    mass = weights * np.exp(wish[MAIN])
    return slates, mass / mass.sum()


def fits(counts, expected) -> bool:
    return ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, len(counts) - 1)


def test_propensities_are_the_frequencies_of_what_is_shown(drawn):
    (_, position, item, propensity), shares = drawn
    first = position == 0
    np.testing.assert_allclose(propensity[first], shares[item[first]])
    assert fits(np.bincount(item[first], minlength=ITEMS), shares * REQUESTS)
    top = int(shares.argmax())
    after = np.flatnonzero(first & (item == top)) + 1
    others = np.arange(ITEMS) != top
    given_top = shares[others] / shares[others].sum()
    np.testing.assert_allclose(propensity[after], shares[item[after]] / (1 - shares[top]))
    assert fits(np.bincount(item[after], minlength=ITEMS)[others], given_top * len(after))


def test_weighing_by_propensity_undoes_the_policy_at_every_place(drawn):
    """E[1 / propensity] over what is shown is the number of items that could have been."""
    (_, position, _, propensity), _ = drawn
    for place in range(3):
        inverse = 1 / propensity[position == place]
        error = inverse.std() / np.sqrt(len(inverse))
        assert inverse.mean() == pytest.approx(ITEMS - place, abs=4 * error)
        assert error < 1


def test_a_page_shows_nothing_twice_and_as_many_as_asked():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 500)
    shelf = Shelf.of(np.arange(9), MAIN[:9], np.ones(9))
    request, position, item, propensity = draw_slates(rng, shelf, np.zeros((500, TOPIC_COUNT)), lengths)
    np.testing.assert_array_equal(np.bincount(request), lengths)
    assert len(np.unique(request * 9 + item)) == len(item)
    np.testing.assert_allclose(propensity, 1 / (9 - position))
