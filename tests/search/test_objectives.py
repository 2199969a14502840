import math

import pytest

from mtrec_ray.errors import ConfigError
from mtrec_ray.search.applied import trial_run
from mtrec_ray.search.objectives import Objective, best_report, check_comparable, parse, told
from mtrec_ray.search.space import Space
from tests.search.spaces import LR, manifest_with, run_of

TASKS = manifest_with(("a", "binary"), ("b", "binary"), ("c", "regression"))
RATES = {LR: {"loguniform": [1e-4, 1e-2]}}


def objectives(*names, manifest=TASKS, **parts):
    return parse(run_of(RATES, tune={"objectives": list(names)}, **parts), manifest)


def test_signs_and_places_in_a_report():
    auto, loss, error = objectives("auto", "a/logloss", "c/rmse")
    assert (auto.key, auto.mode) == ("metric", "max")
    assert (loss.key, loss.mode) == ("a/logloss", "min")
    report = {"metric": 0.8, "a/logloss": 0.5, "c/rmse": 0.9}
    assert told([auto, loss, error], report) == [0.8, -0.5, -0.9]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/auk"], "'a/auk' is no metric of the tasks"),
        (["d/auc"], "a: auc, gauc, logloss; b: auc, gauc, logloss; c: rmse, mae"),
        (["c/auc"], "no metric of the tasks, so no trial would report it"),
        (["a/auc", "a/auc"], "'a/auc' is there twice"),
        (["auto", "auto"], "'auto' is there twice"),
    ],
)
def test_objectives_that_no_trial_reports_are_refused(names, message):
    with pytest.raises(ConfigError) as error:
        objectives(*names)
    assert str(error.value).startswith("tune.objectives: ")
    assert message in str(error.value)


def test_the_runs_own_metric_is_auto_under_its_name():
    assert objectives("a/auc", train={"metric": "a/auc"}) == [Objective("auto", 1)]
    with pytest.raises(ConfigError, match="twice"):
        objectives("auto", "a/auc", train={"metric": "a/auc"})


def test_a_metric_without_a_value_on_the_validation_split_is_refused():
    with pytest.raises(ConfigError, match=r"tune.objectives: 'a/auc' has no value on the validation split"):
        objectives("a/auc", manifest=manifest_with(("a", "binary"), positives=0))


def test_a_trial_counts_with_its_best_report_by_the_first_objective():
    found = [Objective("a/logloss", -1), Objective("b/auc", 1)]
    reports = [
        {"evaluation": 1, "a/logloss": 0.7, "b/auc": 0.9},
        {"evaluation": 2, "a/logloss": 0.5, "b/auc": 0.6},
        {"evaluation": 3, "a/logloss": 0.5, "b/auc": 0.8},
        {"evaluation": 4, "a/logloss": 0.6, "b/auc": 0.8},
    ]
    assert best_report(found, reports)["evaluation"] == 2


def test_with_guards_a_trial_counts_with_the_last_report_whose_weights_were_kept():
    found = [Objective("a/logloss", -1)]
    reports = [
        {"evaluation": 1, "a/logloss": 0.6, "kept": True},
        {"evaluation": 2, "a/logloss": 0.7, "kept": True},
        {"evaluation": 3, "a/logloss": 0.5, "kept": False},
    ]
    assert best_report(found, reports)["evaluation"] == 2
    assert best_report(found, reports[2:]) is None


def test_guards_of_the_config_are_checked_before_the_first_trial():
    with pytest.raises(ConfigError, match=r"train\.guards 'a/acu' is unknown\. Did you mean 'a/auc'"):
        objectives("auto", train={"guards": {"a/acu": {"no_worse_than": 0.8}}})


def test_an_objective_takes_the_place_of_several_metrics_in_its_trials():
    run = run_of(RATES, tune={"objectives": ["c/rmse", "auto"]}, train={"metric": ["a/auc", "b/auc"]})
    assert parse(run, TASKS) == [Objective("c/rmse", -1), Objective("auto", 1)]
    assert trial_run(run, {}, "t").train.metric == "c/rmse"
    own = run_of(RATES, train={"metric": {"a/auc": 1, "c/rmse": 0.5}, "guards": {"b/auc": {"loses_at_most": 0.01}}})
    trial = trial_run(own, {}, "t").train
    assert (trial.metric, trial.guards) == (own.train.metric, own.train.guards)


@pytest.mark.parametrize("hole", [None, math.nan, math.inf, "absent"])
def test_reports_without_a_finite_value_do_not_count(hole):
    found = [Objective("a/auc", 1), Objective("b/auc", 1)]
    broken = {"a/auc": 0.9} if hole == "absent" else {"a/auc": 0.9, "b/auc": hole}
    assert told(found, broken) is None
    assert best_report(found, [broken]) is None
    whole = {"a/auc": 0.1, "b/auc": 0.1}
    assert best_report(found, [broken, whole]) is whole


def test_a_weight_of_zero_would_change_what_auto_means():
    run = run_of({"tasks.b.weight": [0, 1]})
    with pytest.raises(
        ConfigError, match=r"tune.space.tasks.b.weight: with a weight of 0 'b' is not part of the metric"
    ):
        check_comparable(parse(run, TASKS), run, Space.parse(run))
    named = run_of({"tasks.b.weight": [0, 1]}, tune={"objectives": ["a/auc"]})
    check_comparable(parse(named, TASKS), named, Space.parse(named))
    positive = run_of({"tasks.b.weight": {"loguniform": [0.1, 10]}})
    check_comparable(parse(positive, TASKS), positive, Space.parse(positive))
