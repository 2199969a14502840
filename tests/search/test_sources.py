import numpy as np
import pytest

from mtrec_ray.search.pareto import non_dominated
from mtrec_ray.search.sources import GridSource, OptunaSource, RandomSource, nsga2, tpe
from mtrec_ray.search.space import Space
from tests.search.spaces import BEST_LR, BEST_WEIGHTS, LR, planted, planted_run, run_of

TRIALS = 32
SEEDS = range(8)


def source_of(name, run, objectives=1):
    space = Space.parse(run)
    if name == "random":
        return RandomSource(run, space)
    return OptunaSource(run, space, {"tpe": tpe, "nsga2": nsga2}[name](run.seed, TRIALS), objectives)


def searched(name, seed):
    """The values and results of a search of the planted problem; the config's own trial is left out."""
    source, results = source_of(name, planted_run(seed)), []
    for number in range(TRIALS + 1):
        values = source.ask(number)
        source.tell(number, [planted(values)])
        results.append((planted(values), values))
    return results[1:]


@pytest.fixture(scope="module")
def tpe_searches():
    return [searched("tpe", seed) for seed in SEEDS]


def test_tpe_finds_the_planted_weights_and_rate(tpe_searches):
    best = [max(results, key=lambda result: result[0])[1] for results in tpe_searches]
    weights = np.array([[values[f"tasks.{name}.weight"] for name in BEST_WEIGHTS] for values in best])
    off = np.abs(weights - list(BEST_WEIGHTS.values())).max(axis=1)
    assert np.median(off) < 0.1
    assert np.median([abs(np.log10(values[LR] / BEST_LR)) for values in best]) < 0.5


def test_tpe_beats_random_on_equal_budget(tpe_searches):
    of_tpe = [max(value for value, _ in results) for results in tpe_searches]
    of_random = [max(value for value, _ in searched("random", seed)) for seed in SEEDS]
    assert np.median(of_tpe) > np.median(of_random)
    assert np.mean(np.array(of_tpe) > of_random) > 0.5


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_what_is_proposed_depends_on_the_seed_and_the_results(name):
    first, again, other = (searched(name, seed)[:12] for seed in (3, 3, 4))
    assert first == again != other


def test_random_values_of_a_number_do_not_depend_on_the_others():
    forward, backward = source_of("random", planted_run()), source_of("random", planted_run())
    assert [forward.ask(n) for n in range(5)] == [backward.ask(n) for n in reversed(range(5))][::-1]


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_the_first_trial_has_the_configs_own_values(name):
    run = run_of({LR: {"loguniform": [1e-4, 1e-2]}})
    assert source_of(name, run).ask(0) == {LR: 1e-3}
    outside = run_of({LR: {"loguniform": [1e-6, 1e-5]}})
    source = source_of(name, outside)
    assert source.ask(0) == {LR: 1e-3}
    source.tell(0, [0.5])
    assert 1e-6 <= source.ask(1)[LR] <= 1e-5


def test_a_grid_comes_after_the_configs_own_values_and_does_not_repeat_them():
    run = run_of({"adapter.rank": [4, 8], "towers.dropout": [0.0, 0.1]})
    points = GridSource(run, Space.parse(run)).points
    assert points[0] == {"adapter.rank": 8, "towers.dropout": 0.1}
    assert len(points) == 4
    outside = run_of({"adapter.rank": [2, 4]})
    assert [point["adapter.rank"] for point in GridSource(outside, Space.parse(outside)).points] == [8, 2, 4]


def test_tpe_goes_on_from_trials_of_an_earlier_start():
    def proposals(past, seed):
        source = source_of("tpe", planted_run(seed))
        for number, (result, values) in enumerate(past, start=1):
            source.learn(number, values, [result])
        return np.mean([planted(source.ask(number)) for number in range(len(past) + 1, len(past) + 9)])

    of_past = [proposals(searched("random", seed), seed) for seed in SEEDS]
    anew = [proposals([], seed) for seed in SEEDS]
    assert np.mean(np.array(of_past) > anew) > 0.8


def test_failed_trials_do_not_stop_a_source():
    for name in ("tpe", "nsga2"):
        source = source_of(name, planted_run())
        for number in range(14):
            source.ask(number)
            source.tell(number, None if number % 2 else [float(number)])
        source.tell(99, [1.0])  # not one of its own


def torn(values):
    """Two objectives that pull the weights apart, and a rate that both share."""
    off = 0.3 * np.log10(values[LR] / BEST_LR) ** 2
    a, b, c = (values[f"tasks.{task}.weight"] for task in "abc")
    return [-((a - 1) ** 2) - c - off, -((b - 1) ** 2) - c - off]


def front(name, seed, trials=48):
    """What the trials came to, without the config's own."""
    source = source_of(name, planted_run(seed), objectives=2)
    told = []
    for number in range(trials):
        told.append(torn(source.ask(number)))
        source.tell(number, told[-1])
    return np.array(told[1:])


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_several_objectives_give_a_better_front_than_random(name):
    """By the mean of the scalarised best."""

    def best(name, seed):
        return np.mean([(front(name, seed) @ [w, 1 - w]).max() for w in (0.2, 0.5, 0.8)])

    assert np.median([best(name, s) for s in SEEDS]) > np.median([best("random", s) for s in SEEDS])


def test_the_front_dominates_the_grid_over_one_weight():
    """As many trainings over the weight of one task, all else as the config has it, find nothing that is as good."""
    own = {LR: 1e-3, "tasks.c.weight": 1 / 3}
    shares = np.linspace(0, 2 / 3, TRIALS)
    grid = np.array([torn({**own, "tasks.a.weight": a, "tasks.b.weight": 2 / 3 - a}) for a in shares])
    shares_of_grid_dominated = []
    for seed in SEEDS:
        found = front("tpe", seed, TRIALS + 1)
        better = (found[:, None] >= grid).all(2) & (found[:, None] > grid).any(2)
        worse = (grid[:, None] >= found).all(2) & (grid[:, None] > found).any(2)
        assert not worse[:, non_dominated(found, np.ones(2))].any()
        shares_of_grid_dominated.append(better.any(0).mean())
    assert np.median(shares_of_grid_dominated) == 1


def test_conditions_with_tpe():
    run = run_of(
        {"adapter.kind": ["lora", "frozen"], "adapter.rank": {"randint": [1, 8], "when": {"adapter.kind": "lora"}}}
    )
    source = source_of("tpe", run)
    for number in range(24):
        values = source.ask(number)
        assert ("adapter.rank" in values) == (values["adapter.kind"] == "lora")
        source.tell(number, [values.get("adapter.rank", 0) / 8])
    last = [source.ask(number) for number in range(24, 34)]
    assert np.median([values.get("adapter.rank", 0) for values in last]) >= 6
