import math

import pytest
from ray import cloudpickle
from ray.tune.search import Searcher

from mtrec_ray.errors import ConfigError
from mtrec_ray.search.objectives import Objective
from mtrec_ray.search.records import TrialRecord
from mtrec_ray.search.space import Space
from mtrec_ray.search.suggest import chosen, count_trials, make_searcher, population
from tests.search.spaces import LR, planted, planted_run, run_of

AUC, LOSS = Objective("a/auc", 1), Objective("a/logloss", -1)


def searcher_of(run, objectives=(AUC,), past=()):
    return make_searcher(run, Space.parse(run), objectives, past)


def values_of(config):
    return config["trial"]["values"]


class Told:
    """A source that remembers what it is told."""

    def __init__(self):
        self.told = {}

    def ask(self, number):
        return {LR: float(number)}

    def tell(self, number, result):
        self.told[number] = result


def watched(*objectives):
    searcher = searcher_of(planted_run(searcher="random"), objectives)
    searcher._source = Told()
    for trial in "xyz":
        searcher.suggest(trial)
    return searcher, searcher._source.told


def test_trials_are_numbered_and_end():
    searcher = searcher_of(planted_run(trials=3))
    assert [searcher.suggest(trial)["trial"]["number"] for trial in "abc"] == [0, 1, 2]
    assert searcher.suggest("d") == Searcher.FINISHED


def test_a_trial_counts_with_its_best_report_not_its_last():
    searcher, told = watched(LOSS, AUC)
    for loss, auc in ((0.7, 0.5), (0.4, 0.6), (0.6, 0.9)):
        searcher.on_trial_result("x", {"a/logloss": loss, "a/auc": auc, "evaluation": 1})
    searcher.on_trial_complete("x", {"a/logloss": 0.6, "a/auc": 0.9})
    assert told == {0: [-0.4, 0.6]}


def test_the_report_at_which_a_trial_is_stopped_counts_too():
    searcher, told = watched(AUC)
    searcher.on_trial_complete("y", {"a/auc": 0.7})
    assert told == {1: [0.7]}


def test_a_trial_stopped_while_paused_counts_with_what_it_reported():
    searcher, told = watched(AUC)
    searcher.on_trial_result("y", {"a/auc": 0.7})
    searcher.on_trial_complete("y")
    assert told == {1: [0.7]}


@pytest.mark.parametrize(("reports", "error"), [([0.7], True), ([math.nan], False), ([None], False), ([], False)])
def test_a_trial_that_failed_or_measured_nothing_is_told_as_failed(reports, error):
    searcher, told = watched(AUC)
    for auc in reports:
        searcher.on_trial_result("x", {"a/auc": auc})
    searcher.on_trial_complete("x", error=error)
    assert told == {0: None}


def test_a_trial_is_told_once():
    searcher, told = watched(AUC)
    searcher.on_trial_complete("x", {"a/auc": 0.7})
    told.clear()
    searcher.on_trial_complete("x", {"a/auc": 0.8})
    searcher.on_trial_complete("never suggested", {"a/auc": 0.8})
    assert told == {}


@pytest.mark.parametrize("name", ["random", "grid", "tpe", "nsga2"])
def test_a_saved_searcher_goes_on_as_if_never_stopped(name, tmp_path):
    space = {LR: {"loguniform": [1e-5, 1e-1], "points": 20}, "tasks.a.weight": [0.5, 2.0]}
    run = run_of(space, tune={"searcher": name})
    searcher, other = searcher_of(run), searcher_of(run)
    searcher.suggest("open")
    for number in range(14):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), {"a/auc": number / 14})
    searcher.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    for one in (searcher, other):
        one.on_trial_complete("open", {"a/auc": 0.9})
    assert [searcher.suggest(trial) for trial in "abc"] == [other.suggest(trial) for trial in "abc"]
    cloudpickle.loads(cloudpickle.dumps(other))


def past_of(run):
    """Trials 0 to 4: finished, stopped, failed, under way, ended without a value."""
    space, searcher = Space.parse(run), searcher_of(run)
    values = [values_of(searcher.suggest(str(number))) for number in range(5)]
    reports = [({"a/auc": 0.5, "evaluation": 1},), ({"a/auc": 0.6, "evaluation": 1},), (), (), ({"a/auc": None},)]
    status = ["finished", "stopped", "failed", "running", "finished"]
    return space, [
        TrialRecord(number, f"id{number}", values[number], status=status[number], reports=reports[number])
        for number in range(5)
    ]


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_a_search_goes_on_from_its_records(name):
    run = planted_run(searcher=name, trials=8)
    _, past = past_of(run)
    searcher = searcher_of(run, past=past)
    again = searcher.suggest("again")
    assert again["trial"] == {"number": 3, "values": past[3].values}
    more = [searcher.suggest(trial)["trial"]["number"] for trial in "abc"]
    assert more == [5, 6, 7]
    assert searcher.suggest("d") == Searcher.FINISHED
    searcher.on_trial_complete("again", {"a/auc": 0.5})


def test_records_are_told_with_their_best_report():
    run = planted_run(searcher="tpe", trials=8)
    _, past = past_of(run)
    study = searcher_of(run, past=past)._source._study
    # Trial 0, the config's own weights of 1, is no point of the simplex, so Optuna is not told of it.
    assert [trial.values for trial in study.trials if trial.state.name == "COMPLETE"] == [[0.6]]
    assert sum(trial.state.name == "FAIL" for trial in study.trials) == 2
    assert sum(trial.state.name == "RUNNING" for trial in study.trials) == 1


def test_a_grid_says_how_many_trials_it_has():
    run = run_of({"adapter.rank": [2, 4], "towers.dropout": [0.0, 0.2]}, tune={"searcher": "grid", "trials": 3})
    assert count_trials(run, Space.parse(run)) == 5
    searcher = searcher_of(run)
    found = [values_of(searcher.suggest(str(number))) for number in range(5)]
    assert found[0] == {"adapter.rank": 8, "towers.dropout": 0.1}
    assert len({tuple(values.items()) for values in found}) == 5
    assert searcher.suggest("end") == Searcher.FINISHED
    assert count_trials(planted_run(trials=7), Space.parse(planted_run())) == 7


def test_the_automatic_searcher():
    assert chosen(planted_run()) == "tpe"
    assert chosen(planted_run(objectives=["a/auc", "b/auc"])) == "tpe"
    assert chosen(planted_run(searcher="random")) == "random"


@pytest.mark.parametrize(
    ("tune", "objectives", "message"),
    [
        ({"searcher": "tpee"}, [AUC], "tune.searcher 'tpee' is unknown. Did you mean 'tpe'?"),
        ({"searcher": "hyperopt"}, [AUC, LOSS], "hyperopt takes one objective, tune.objectives has 2"),
    ],
)
def test_searchers_that_cannot_do_it_are_refused(tune, objectives, message):
    with pytest.raises(ConfigError) as error:
        searcher_of(planted_run(**tune), objectives)
    assert message in str(error.value)


def test_a_searcher_that_is_not_installed_names_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bayesopt needs a package that is not installed: `pip install bayesian-opt"):
        searcher_of(planted_run(searcher="bayesopt"))


class Halves(Searcher):
    """One of Ray's searchers, as far as `RaySource` can tell: proposes 0.5 and the first choice."""

    def __init__(self, metric=None, mode=None, random_state_seed=None):
        super().__init__(metric, mode)
        self.seed, self.told = random_state_seed, {}

    def set_search_properties(self, metric, mode, config, **spec):
        self.metric_name, self.space = metric, config
        return True

    def suggest(self, trial_id):
        if len(self.told) == 2:
            return Searcher.FINISHED
        return {name: 0.5 if type(domain).__name__ == "Float" else 0 for name, domain in self.space.items()}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told[trial_id] = None if error else result[self.metric_name]


def test_rays_searchers_see_shares_of_ranges(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("mtrec_ray.search.tune_searchers.SEARCH_ALG_IMPORT", {"hyperopt": lambda: Halves})
    space = {LR: {"loguniform": [1e-4, 1e-2]}, "adapter.rank": {"randint": [2, 4]}, "towers.hidden": [[64], [32, 32]]}
    searcher = searcher_of(run_of(space, seed=7, tune={"searcher": "hyperopt"}))
    assert values_of(searcher.suggest("own")) == {LR: 1e-3, "adapter.rank": 8, "towers.hidden": [64]}
    found = values_of(searcher.suggest("x"))
    assert found == {LR: pytest.approx(1e-3), "adapter.rank": 3, "towers.hidden": [64]}
    searcher.suggest("y")
    searcher.on_trial_complete("own", {"a/auc": 0.9})
    searcher.on_trial_complete("x", {"a/auc": 0.7})
    searcher.on_trial_complete("y", error=True)
    inner = searcher._source._searcher
    assert inner.told == {"1": 0.7, "2": None}
    assert inner.seed == 7
    assert searcher.suggest("z") == Searcher.FINISHED


def test_rays_searchers_refuse_conditions(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    space = {"adapter.kind": ["lora", "full"], "adapter.rank": {"choice": [2, 4], "when": {"adapter.kind": "lora"}}}
    with pytest.raises(ConfigError, match="hyperopt knows no conditions"):
        searcher_of(run_of(space, tune={"searcher": "hyperopt"}))


def test_a_population_starts_with_the_configs_own_values_and_random_ones():
    run = planted_run(scheduler="pbt", trials=4)
    space = Space.parse(run)
    trials = population(run, space)["trial"]["grid_search"]
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert trials[0]["values"] == space.default(run)
    assert len({planted(trial["values"]) for trial in trials}) == 4
    past = [TrialRecord(0, "a", {}, status="finished"), TrialRecord(2, "b", {LR: 0.5})]
    again = population(run, space, past)["trial"]["grid_search"]
    assert [trial["number"] for trial in again] == [1, 2, 3]
    assert again[1]["values"] == {LR: 0.5}
