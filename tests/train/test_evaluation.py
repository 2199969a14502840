import numpy as np
import pytest
import torch

from mtrec_ray.errors import ConfigError
from mtrec_ray.train.evaluation import ChosenMetric, Scores, chosen_metric, score, task_metrics
from tests.batches import TASKS, make_manifest, make_run, make_steps
from tests.training import make_engine

WEIGHTS = {"like": 1.0, "stars": 1.0, "kind": 1.0}


@pytest.fixture
def scores() -> Scores:
    found = score(make_engine(make_run(), with_backbone=True), make_steps(3, tokens=True), TASKS)
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
    other = score(make_engine(run, with_backbone=True), make_steps(3, micro_steps=3, tokens=True), TASKS)
    assert other is not None
    assert np.array_equal(other.row_ids, scores.row_ids)
    assert np.array_equal(other.labels, scores.labels, equal_nan=True)
    np.testing.assert_allclose(other.scores["stars"], scores.scores["stars"], rtol=1e-5)


def test_scoring_has_no_dropout_and_no_gradients() -> None:
    engine = make_engine(make_run("features.dropout=0.9"))
    engine.model.train()
    first, again = (score(engine, make_steps(2), TASKS) for _ in range(2))
    assert first is not None
    assert again is not None
    assert np.array_equal(first.scores["like"], again.scores["like"])
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_metrics_of_all_tasks(scores: Scores) -> None:
    found = task_metrics(scores, TASKS, lambda row_ids: row_ids // 300)
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
