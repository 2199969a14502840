from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from mtrec_ray.errors import ConfigError
from mtrec_ray.search.objectives import Objective
from mtrec_ray.search.population import Population, mutate
from mtrec_ray.search.records import TrialRecord
from mtrec_ray.search.schedulers import make_scheduler, replay
from mtrec_ray.search.space import Space
from tests.search.spaces import LR, planted_run, run_of

AUC, LOSS = Objective("a/auc", 1), Objective("a/logloss", -1)


@dataclass(eq=False)
class Trial:
    """What a scheduler looks at of one of Ray's trials."""

    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def scheduler_of(name, evaluations=9, objectives=(AUC,), space=None, **tune):
    run = run_of(space, tune={"scheduler": name, **tune}) if space else planted_run(scheduler=name, **tune)
    return make_scheduler(run, Space.parse(run), objectives, evaluations)


def decisions(scheduler, curves, key="a/auc", first=1):
    """Which evaluation each trial is stopped at, or None; one trial after the other, numbered from `first`."""
    found = []
    for number, curve in enumerate(curves, start=first):
        trial = Trial(f"t{number}", {"trial": {"number": number}})
        scheduler.on_trial_add(None, trial)
        actions = []
        for evaluation, value in enumerate(curve, start=1):
            report = {"evaluation": evaluation, key: value, "training_iteration": 1}
            actions.append(scheduler.on_trial_result(None, trial, report))
            assert actions[-1] in (TrialScheduler.CONTINUE, TrialScheduler.STOP)
            if actions[-1] == TrialScheduler.STOP:
                break
        found.append(len(actions) if actions[-1] == TrialScheduler.STOP else None)
    return found


GOOD, POOR = [0.8] * 9, [0.6] * 9


def test_asha_stops_poor_trials_at_their_first_rung():
    assert decisions(scheduler_of("asha"), [GOOD, POOR, GOOD]) == [None, 1, None]
    assert decisions(scheduler_of("asha", grace=2), [GOOD, POOR]) == [None, 2]


def test_asha_has_rungs_at_powers_of_the_reduction_but_none_at_the_end():
    late = [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert decisions(scheduler_of("asha"), [GOOD, late]) == [None, 3]
    assert decisions(scheduler_of("asha", reduction=2), [GOOD, [0.9, 0.1] + [0.1] * 7]) == [None, 2]
    at_the_end = [0.9] * 8 + [0.1]
    assert decisions(scheduler_of("asha"), [GOOD, at_the_end]) == [None, None]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_the_configs_own_trial_is_never_stopped_but_counts(name):
    scheduler = scheduler_of(name)
    assert decisions(scheduler, [GOOD, GOOD, GOOD]) == [None, None, None]
    assert decisions(scheduler, [POOR], first=0) == [None]
    assert decisions(scheduler, [POOR], first=4) == [1]
    own_is_good = scheduler_of(name)
    assert decisions(own_is_good, [GOOD], first=0) == [None]
    assert decisions(own_is_good, [POOR]) == [1 if name == "asha" else None]  # median wants three to compare with


def test_the_first_objective_decides_with_its_sign():
    scheduler = scheduler_of("asha", objectives=(LOSS, AUC))
    assert decisions(scheduler, [[0.3] * 9, [0.7] * 9], key="a/logloss") == [None, 1]


def test_a_report_without_a_value_stops_nothing():
    assert decisions(scheduler_of("asha"), [GOOD, [float("nan")] * 9]) == [None, None]


def test_median_stops_what_is_below_the_others_and_never_pauses():
    assert decisions(scheduler_of("median"), [GOOD, GOOD, GOOD, POOR]) == [None, None, None, 1]
    assert decisions(scheduler_of("median", grace=3), [GOOD, GOOD, GOOD, POOR]) == [None, None, None, 3]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_search_that_goes_on_judges_by_the_trials_of_its_earlier_start(name):
    def past(number, status, curve):
        reports = tuple({"evaluation": e, "a/auc": value} for e, value in enumerate(curve, start=1))
        return TrialRecord(number, f"p{number}", {}, status=status, reports=reports)

    good = [past(number, "finished", GOOD) for number in range(3)]
    fresh, resumed, under_way = scheduler_of(name), scheduler_of(name), scheduler_of(name)
    replay(resumed, [*good, past(3, "failed", [None, 0.7])])
    replay(under_way, [past(0, "running", GOOD)])
    assert decisions(fresh, [POOR]) == [None]
    assert decisions(resumed, [POOR]) == [1]
    assert decisions(under_way, [POOR]) == [None]


def test_the_others_are_what_they_are_called():
    assert type(scheduler_of("none", evaluations=1)) is FIFOScheduler
    assert isinstance(scheduler_of("median"), MedianStoppingRule)
    hyperband = scheduler_of("hyperband", objectives=(LOSS,))
    assert isinstance(hyperband, HyperBandScheduler)
    assert hyperband.metric == "a/logloss"
    for number in range(30):
        hyperband.on_trial_add(None, Trial(f"t{number}"))
    replay(hyperband, [TrialRecord(0, "p", {}, status="finished")])
    assert hyperband.state()["num_stopped"] == 0


@pytest.mark.parametrize(
    ("name", "evaluations", "tune", "message"),
    [
        ("asha", 1, {}, "asha decides nothing: a trial has 1 evaluation, and tune.grace is 1"),
        ("median", 3, {"grace": 3}, "median decides nothing: a trial has 3 evaluations, and tune.grace is 3"),
        ("pbt", 2, {"grace": 2}, "pbt decides nothing"),
        ("hyperband", 2, {}, "hyperband decides nothing: a trial has 2 evaluations, fewer than tune.reduction, 3"),
        ("hyperband", 9, {"grace": 2}, "tune.grace is 2, but hyperband sets its own rungs"),
        ("pbt", 9, {"searcher": "tpe"}, "tune.searcher: tpe would be ignored"),
        ("pbt", 9, {"trials": 1}, "pbt needs a population"),
    ],
)
def test_settings_that_a_scheduler_cannot_follow_are_refused(name, evaluations, tune, message):
    with pytest.raises(ConfigError) as error:
        scheduler_of(name, evaluations, **tune)
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["adapter.rank", "towers.z_dim", "train.batch_requests", "train.warmup"])
def test_pbt_refuses_what_cannot_change_in_the_middle_of_a_run(path):
    values = {"uniform": [0, 0.1]} if path == "train.warmup" else [4, 8]
    with pytest.raises(ConfigError, match=f"tune.space.{path}: pbt cannot change it in the middle of a run"):
        scheduler_of("pbt", space={path: values})


def test_pbt_refuses_conditions():
    space = {"train.clip_norm": [1.0, None], LR: {"uniform": [0, 1], "when": {"train.clip_norm": 1.0}}}
    with pytest.raises(ConfigError, match="pbt knows no conditions"):
        scheduler_of("pbt", space=space)


def test_a_clone_has_its_donors_values_a_little_changed_and_its_own_number():
    scheduler = scheduler_of("pbt", space={LR: {"loguniform": [1e-5, 1e-1]}, "train.clip_norm": [0.5, 1.0, None]})
    assert isinstance(scheduler, Population)
    own = {"trial": {"number": 1, "values": {LR: 1e-5, "train.clip_norm": 0.5}}}
    donor = {"trial": {"number": 4, "values": {LR: 1e-3, "train.clip_norm": 1.0}}}
    config, _ = scheduler._get_new_config(Trial("mine", own), Trial("donor", donor))
    assert config["trial"]["number"] == 1
    assert config["trial"]["values"].keys() == donor["trial"]["values"].keys()
    assert config["trial"]["values"] != donor["trial"]["values"]
    assert donor["trial"]["values"] == {LR: 1e-3, "train.clip_norm": 1.0}


def test_mutated_values_are_near_and_inside():
    run = planted_run()
    space = Space.parse(run)
    rng = np.random.default_rng(0)
    start = space.sample(rng)
    found = [mutate(space, start, rng) for _ in range(200)]
    assert all(space.parameters(values) is not None for values in found)
    moved = [values[LR] / start[LR] for values in found]
    perturbed = np.mean([min(abs(ratio - 0.8), abs(ratio - 1.2)) < 1e-9 for ratio in moved])
    assert 0.65 < perturbed < 0.85  # a quarter is drawn afresh


def test_values_outside_the_space_are_drawn_afresh():
    space = Space.parse(planted_run())
    own = space.default(planted_run())  # weights of 1 are no simplex
    weights = [mutate(space, own, np.random.default_rng(seed))["tasks.a.weight"] for seed in range(20)]
    assert len(set(weights)) == 20
    assert max(weights) < 1


def test_replayed_reports_are_on_their_rungs_whatever_the_order_of_the_trials():
    scheduler = scheduler_of("asha")
    curves = [GOOD, POOR, [0.7] * 4]
    replay(
        scheduler,
        [
            TrialRecord(
                n, f"p{n}", {}, "finished", None, tuple({"evaluation": e, "a/auc": v} for e, v in enumerate(c, 1))
            )
            for n, c in enumerate(curves)
        ],
    )
    rungs = {milestone: set(recorded) for milestone, recorded in scheduler._brackets[0]._rungs}
    assert rungs == {1: {"p0", "p1", "p2"}, 3: {"p0", "p1", "p2"}}
