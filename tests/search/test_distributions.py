import numpy as np
import optuna
import pytest

from mtrec_ray.errors import ConfigError
from mtrec_ray.search.distributions import Choice, Real, Simplex, Steps, Whole
from mtrec_ray.search.reading import read_distribution

ALL = [
    Real(-1.0, 2.0),
    Real(1e-4, 1e-1, log=True),
    Whole(2, 9),
    Whole(1, 64, log=True),
    Steps(0.1, 0.1, 4),
    Choice((4, [64, 32], None, "linear")),
    Simplex(("a", "b", "c")),
]
SAMPLERS = (optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0))
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("distribution", ALL, ids=lambda one: type(one).__name__)
def test_what_a_trial_answers_is_found_again_from_the_value(distribution):
    study = optuna.create_study(sampler=SAMPLERS[0])
    for _ in range(20):
        trial = study.ask()
        value = distribution.suggest(trial, "x")
        assert distribution.parameters("x", value) == pytest.approx(trial.params, rel=1e-9)


@pytest.mark.parametrize("distribution", ALL, ids=lambda one: type(one).__name__)
def test_perturbed_values_stay_inside_and_move(distribution):
    rng = np.random.default_rng(0)
    value = start = distribution.probes()[-1]
    seen = []
    for _ in range(50):
        value = distribution.perturb(value, rng)
        assert distribution.parameters("x", value) is not None
        seen.append(value)
    assert any(value != start for value in seen)


def test_a_small_whole_number_is_perturbed_too():
    assert Whole(1, 8).perturb(1, np.random.default_rng(1)) in (1, 2)
    assert {Whole(1, 8).perturb(2, np.random.default_rng(seed)) for seed in range(8)} == {1, 3}


def test_a_simplex_is_uniform_over_all_weights():
    class Uniform:
        rng = np.random.default_rng(0)

        def suggest_float(self, name, low, high, *, log=False):
            return self.rng.uniform(low, high)

    weights = np.array([Simplex(("a", "b", "c")).suggest(Uniform(), "w") for _ in range(4000)])
    assert weights.min() > 0
    assert weights.sum(axis=1) == pytest.approx(1)
    # Dirichlet(1, 1, 1): every weight has mean 1/3 and variance 1/18; 4 standard errors of 4000 draws
    assert weights.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.015)
    assert weights.var(axis=0) == pytest.approx([1 / 18] * 3, abs=0.005)


@pytest.mark.parametrize(
    ("distribution", "outside"),
    [
        (Real(0.0, 1.0), 1.5),
        (Real(0.0, 1.0), None),
        (Real(0.0, 1.0), True),
        (Whole(1, 4), 2.5),
        (Whole(1, 4), 5),
        (Steps(0.0, 0.25, 4), 0.3),
        (Steps(0.0, 0.25, 4), 1.25),
        (Choice((4, 8)), 6),
        (Simplex(("a", "b")), (0.5, 0.6)),
        (Simplex(("a", "b")), (0.0, 1.0)),
    ],
)
def test_values_outside_are_known(distribution, outside):
    assert distribution.parameters("x", outside) is None


@pytest.mark.parametrize(
    ("written", "grid"),
    [
        ({"uniform": [0, 1], "points": 3}, [0, 0.5, 1]),
        ({"loguniform": [1e-4, 1e-2], "points": 3}, [1e-4, 1e-3, 1e-2]),
        ({"quniform": [0, 0.3, 0.1]}, [0, 0.1, 0.2, 0.3]),
        ({"quniform": [0, 0.35, 0.1]}, [0, 0.1, 0.2, 0.3]),
        ({"quniform": [0, 1, 0.1], "points": 2}, [0, 1]),
        ({"randint": [2, 5]}, [2, 3, 4, 5]),
        ({"lograndint": [1, 16], "points": 5}, [1, 2, 4, 8, 16]),
        ({"uniform": [0, 1]}, None),
    ],
)
def test_grids(written, grid):
    found = read_distribution("x", written).grid()
    assert found == (grid if grid is None else pytest.approx(grid))


def test_the_grid_of_a_simplex_has_positive_multiples():
    grid = read_distribution("x", {"simplex": ["a", "b"], "points": 4}).grid()
    assert grid == [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]


def test_a_list_is_short_for_a_choice():
    assert read_distribution("x", [4, 8]) == read_distribution("x", {"choice": [4, 8]}) == Choice((4, 8))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (3, "found 3, expected a distribution, as {loguniform"),
        ({}, "found none, expected one distribution"),
        ({"uniform": [0, 1], "choice": [1, 2]}, "found uniform, choice, expected one"),
        ({"logunifrom": [0, 1]}, "unknown distribution 'logunifrom'. Did you mean 'loguniform'?"),
        ({"uniform": [0, 1, 2]}, "x.uniform is [0, 1, 2]: expected 2 numbers, [low, high]"),
        ({"uniform": [0, float("nan")]}, "expected 2 numbers"),
        ({"uniform": [False, True]}, "expected 2 numbers"),
        ({"uniform": ["0", "1"]}, "expected 2 numbers"),
        ({"uniform": [1, 1]}, "x.uniform is [1, 1]: an empty range"),
        ({"randint": [4, 2]}, "an empty range"),
        ({"loguniform": [0, 1]}, "a logarithm needs a low end above 0"),
        ({"lograndint": [0, 4]}, "a logarithm needs a low end of at least 1"),
        ({"randint": [1, 2.5]}, "expected whole numbers"),
        ({"quniform": [0, 1, 0]}, "the step must be above 0 and at most 1"),
        ({"quniform": [0, 1, 2]}, "the step must be above 0 and at most 1"),
        ({"uniform": [0, 1], "points": 1}, "x.points is 1: expected a whole number of at least 2"),
        ({"choice": []}, "expected a list of values"),
        ({"choice": "ab"}, "expected a list of values"),
        ([4], "one value leaves nothing to search"),
        ([4, 8, 4.0], "has 4.0 twice"),
        ({"choice": [4, 8], "points": 2}, "`points` is for ranges"),
        ({"simplex": ["a"]}, "expected at least two different names"),
        ({"simplex": ["a", "a"]}, "expected at least two different names"),
        ({"simplex": ["a", "b", "c"], "points": 2}, "2 points are too few for 3"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(written, message):
    with pytest.raises(ConfigError) as error:
        read_distribution("x", written)
    assert message in str(error.value)
    assert str(error.value).startswith("x")
    assert "\n" not in str(error.value)
