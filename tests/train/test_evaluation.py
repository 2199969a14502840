import numpy as np
import pytest
import torch

from mtrec_ray.config_file import dump, parse
from mtrec_ray.errors import ConfigError
from mtrec_ray.train.evaluation import ChosenMetric, Scores, chosen_metric, score, task_metrics
from mtrec_ray.train.guards import Guard, chosen_guards, guarded_values, largest_miss
from tests.batches import TASKS, make_manifest, make_run, make_steps
from tests.training import facts_of, kinds_of_tasks, make_engine

WEIGHTS = {"like": 1.0, "stars": 1.0, "kind": 1.0}


@pytest.fixture
def scores() -> Scores:
    found = score(make_engine(make_run(), with_backbone=True), make_steps(3, tokens=True), kinds_of_tasks())
    assert found is not None
    return found


def test_every_row_once_in_the_labels_unit(scores: Scores) -> None:
    steps = make_steps(3)
    row_ids = torch.cat([batch.row_ids for step in steps for batch in step.batches])
    assert scores.row_ids.tolist() == sorted(row_ids.tolist())
    assert ((scores.scores["like"] > 0) & (scores.scores["like"] < 1)).all()
    assert scores.scores["stars"].mean() == pytest.approx(3.5, abs=0.2)
    np.testing.assert_allclose(scores.scores["kind"].sum(1), 1, rtol=1e-5)


def test_batching_does_not_change_scores(scores: Scores) -> None:
    run = make_run()
    other = score(make_engine(run, with_backbone=True), make_steps(3, micro_steps=3, tokens=True), kinds_of_tasks())
    assert other is not None
    assert np.array_equal(other.row_ids, scores.row_ids)
    assert np.array_equal(other.labels, scores.labels, equal_nan=True)
    np.testing.assert_allclose(other.scores["stars"], scores.scores["stars"], rtol=1e-5)


def test_scoring_has_no_dropout_and_no_gradients() -> None:
    engine = make_engine(make_run("features.dropout=0.9"))
    engine.model.train()
    first, again = (score(engine, make_steps(2), kinds_of_tasks()) for _ in range(2))
    assert first is not None
    assert again is not None
    assert np.array_equal(first.scores["like"], again.scores["like"])
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_metrics_of_all_tasks(scores: Scores) -> None:
    found = task_metrics(scores, kinds_of_tasks(), facts_of)
    assert 0 <= found["like"]["auc"] <= 1
    assert found["like"]["users"] > 1
    assert found["stars"]["rmse"] > 0
    assert found["kind"]["accuracy"] is not None
    assert found["like"]["n"] == int((~np.isnan(scores.labels[:, 0])).sum())


METRICS = {
    "like": {"auc": 0.8, "gauc": 0.7, "logloss": 0.4, "undefined": {}},
    "stars": {"rmse": 1.5, "mae": 1.0, "undefined": {}},
    "kind": {"accuracy": 0.6, "logloss": 1.0, "undefined": {}},
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", 0.8), ("like/gauc", 0.7), ("like/logloss", -0.4), ("stars/rmse", -1.5), ("kind/accuracy", 0.6)],
)
def test_higher_is_better(name: str, expected: float) -> None:
    assert ChosenMetric(name, TASKS, WEIGHTS).value(METRICS) == expected


def test_auto_without_binary_tasks() -> None:
    assert ChosenMetric("auto", TASKS[1:], WEIGHTS).value(METRICS) == -1.5
    assert ChosenMetric("auto", TASKS[2:], WEIGHTS).value(METRICS) == 0.6
    assert ChosenMetric("auto", TASKS, WEIGHTS | {"like": 0.0}).value(METRICS) == -1.5


@pytest.mark.parametrize("name", ["like/ac", "lik/auc", "auc", "stars/auc"])
def test_an_unknown_metric_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.metric '{name}' is unknown.*like/auc"):
        ChosenMetric(name, TASKS, WEIGHTS)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["like/auc", "stars/rmse"], (0.8 - 1.5) / 2),
        ({"like/auc": 1, "stars/rmse": 0.5}, 0.8 - 0.75),
        ({"like/auc": 2, "kind/accuracy": 3, "like/logloss": 1}, 1.6 + 1.8 - 0.4),
        (["stars/mae"], -1.0),
    ],
)
def test_several_metrics_with_their_signs_and_weights(chosen, expected: float) -> None:
    assert ChosenMetric(chosen, TASKS, WEIGHTS).value(METRICS) == pytest.approx(expected)


@pytest.mark.parametrize("chosen", [["like/auc", "stars/rmsee"], {"like/auc": 1, "stars/rmsee": 2}])
def test_an_unknown_one_among_several_is_refused(chosen) -> None:
    with pytest.raises(ConfigError, match=r"train\.metric 'stars/rmsee' is unknown\. Did you mean 'stars/rmse'\?"):
        ChosenMetric(chosen, TASKS, WEIGHTS)
    with pytest.raises(ConfigError, match=r"train\.metric 'auto' is unknown"):
        ChosenMetric(["like/auc", "auto"], TASKS, WEIGHTS)


def test_each_of_several_named_metrics_must_have_a_value_but_not_each_of_auto() -> None:
    metrics = {**METRICS, "like": {"auc": None, "undefined": {"auc": "one class"}}}
    with pytest.raises(ConfigError, match=r"'0\.5 like/auc \+ 0\.5 stars/rmse' has no value .*\(like/auc: one class\)"):
        ChosenMetric(["like/auc", "stars/rmse"], TASKS, WEIGHTS).value(metrics)
    two = [TASKS[0], TASKS[0].model_copy(update={"name": "share"})]
    mean = ChosenMetric("auto", two, {"like": 1.0, "share": 1.0})
    assert mean.value({**METRICS, "share": {"auc": 0.6}}) == pytest.approx(0.7)
    assert mean.value({**metrics, "share": {"auc": 0.6}}) == 0.6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.metric=3", "train.metric: 3 is neither task/metric, nor a list of these, nor a mapping"),
        ("train.metric=[]", r"train.metric: \[\] is neither"),
        ("train.metric={}", r"train.metric: {} is neither"),
        ("train.metric=[like/auc, like/auc]", "train.metric: 'like/auc' is there twice; for weights write a mapping"),
        ("train.metric={like/auc: 0}", "train.metric: .* has a weight that is no number above 0"),
        ("train.metric={like/auc: -1}", "no number above 0"),
        ("train.metric={like/auc: high}", "no number above 0"),
        ("train.metric={like/auc: .inf}", "no number above 0"),
        ("train.guards={like/auc: {}}", "train.guards.like/auc: a guard needs `loses_at_most`"),
        ("train.guards={like/auc: {loses_at_most: -1}}", "train.guards.like/auc.loses_at_most"),
        ("train.guards={like/auc: {no_worse: 1}}", "unknown key .*no_worse'. Did you mean 'no_worse_than'"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_run(override)
    assert "\n" not in str(error.value)


def test_a_choice_of_several_is_written_and_read_back() -> None:
    run = make_run("train.metric={like/auc: 1, stars/rmse: 0.5}", "train.guards={kind/accuracy: {no_worse_than: 0.5}}")
    assert parse(dump(run)) == run
    metric = chosen_metric(run, make_manifest())
    assert metric.value(METRICS) == pytest.approx(0.05)


def test_guards_have_the_signs_of_their_metrics() -> None:
    guards = "train.guards={like/auc: {no_worse_than: 0.8}, stars/rmse: {loses_at_most: 0.1, no_worse_than: 2}}"
    found = chosen_guards(make_run(guards), make_manifest())
    assert found == (Guard("like/auc", 1, None, 0.8), Guard("stars/rmse", -1, 0.1, 2.0))
    assert guarded_values(found, METRICS) == {"like/auc": 0.8, "stars/rmse": 1.5}
    assert largest_miss(found, {"like/auc": 0.8, "stars/rmse": 1.5}, {"like/auc": 0.8, "stars/rmse": 1.4}) == 0
    missed = largest_miss(found, {"like/auc": 0.8, "stars/rmse": 1.8}, {"like/auc": 0.8, "stars/rmse": 1.4})
    assert missed == pytest.approx(0.3 / 1.5)


def test_guards_that_cannot_be_kept_an_eye_on_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.guards 'like/acu' is unknown\. Did you mean 'like/auc'\?"):
        chosen_guards(make_run("train.guards={like/acu: {no_worse_than: 0.8}}"), make_manifest())
    no_likes = TASKS[0].model_copy(update={"positives": {"valid": 0}})
    manifest = make_manifest().model_copy(update={"tasks": [no_likes, *TASKS[1:]]})
    run = make_run("train.guards={like/auc: {no_worse_than: 0.8}}", "train.metric=stars/rmse")
    with pytest.raises(ConfigError, match=r"train\.guards 'like/auc' has no value .*\(all 40 observed labels are 0\)"):
        chosen_guards(run, manifest)
    (guard,) = chosen_guards(run, make_manifest())
    with pytest.raises(ConfigError, match=r"train\.guards 'like/auc' has no value .*\(one class\)"):
        guarded_values([guard], {"like": {"auc": None, "undefined": {"auc": "one class"}}})


def test_a_metric_without_a_value_says_why() -> None:
    undefined = {"like": {"auc": None, "undefined": {"auc": "labels of one class only"}}}
    with pytest.raises(ConfigError, match=r"like/auc: labels of one class only.*split\.valid"):
        ChosenMetric("auto", TASKS[:1], WEIGHTS).value(undefined)


@pytest.mark.parametrize(
    ("metric", "observed", "positives", "reason"),
    [
        ("auto", 0, 0, "like/auc: no observed label"),
        ("like/gauc", 5, 5, "like/gauc: all 5 observed labels are 1"),
        ("auto", 5, 0, "like/auc: all 5 observed labels are 0"),
    ],
)
def test_a_metric_that_will_have_no_value_is_refused_at_once(metric, observed, positives, reason) -> None:
    counts = {"observed": {"valid": observed}, "positives": {"valid": positives}}
    manifest = make_manifest().model_copy(update={"tasks": [TASKS[0].model_copy(update=counts), *TASKS[1:]]})
    with pytest.raises(ConfigError, match=rf"validation split \({reason}\)"):
        chosen_metric(make_run(f"train.metric={metric}"), manifest)
    assert chosen_metric(make_run("train.metric=stars/rmse"), manifest).name == "stars/rmse"
