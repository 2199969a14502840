import math
import sys
from pathlib import Path

import pytest
import torch

from mtrec_ray.data.manifest import TaskEntry
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import import_plugins
from mtrec_ray.tasks import KINDS
from tests.batches import TASKS, make_manifest, make_run, make_steps
from tests.training import make_engine, make_objective, take_steps

LIKE, STARS, KIND = TASKS
PLUGIN = """
from torch import exp
from mtrec_ray.tasks import KINDS

@KINDS.register("poisson")
class Poisson:
    metrics = {"rmse": -1}

    @staticmethod
    def outputs(task):
        return 1

    @staticmethod
    def loss(logits, labels, task):
        return exp(logits[:, 0]) - labels * logits[:, 0]

    @staticmethod
    def score(logits, task):
        return exp(logits[:, 0])

    @staticmethod
    def initial_bias(task):
        return [0.0]
"""


def entry(**values: object) -> TaskEntry:
    return TaskEntry.model_validate({"name": "t", "observed": {}, "positives": {}, "mean": 0, "std": 0, **values})


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_initial_bias_predicts_the_base_rate(task: TaskEntry) -> None:
    kind = KINDS[task.kind]
    bias = torch.tensor([kind.initial_bias(task)])
    assert bias.shape == (1, kind.outputs(task))
    score = kind.score(bias, task)
    expected = torch.tensor([task.frequencies]) if task.kind == "multiclass" else torch.tensor([task.mean])
    torch.testing.assert_close(score, expected)


def test_a_task_without_positives_starts_at_a_finite_logit() -> None:
    (bias,) = KINDS["binary"].initial_bias(entry(kind="binary", mean=0.0))
    assert math.isfinite(bias)
    assert bias < -5


def test_regression_is_standardised_and_scored_in_the_labels_unit() -> None:
    kind, labels = KINDS["regression"], torch.tensor([3.5, 4.7, 1.1])
    logits = torch.tensor([[0.0], [1.0], [-2.0]])
    torch.testing.assert_close(kind.loss(logits, labels, STARS), torch.zeros(3))
    torch.testing.assert_close(kind.score(logits, STARS), labels)


def test_labels_that_are_all_the_same_do_not_divide_by_zero() -> None:
    loss = KINDS["regression"].loss(torch.zeros(1, 1), torch.tensor([2.0]), entry(kind="regression", mean=1.0))
    assert loss.item() == 0.5


def test_losses_equal_their_definition() -> None:
    p = torch.sigmoid(torch.tensor(0.7)).item()
    binary = KINDS["binary"].loss(torch.tensor([[0.7], [0.7]]), torch.tensor([1.0, 0.0]), LIKE)
    torch.testing.assert_close(binary, torch.tensor([-math.log(p), -math.log(1 - p)]))
    logits = torch.tensor([[0.1, 0.5, -0.3]])
    loss = KINDS["multiclass"].loss(logits, torch.tensor([2.0]), KIND)
    torch.testing.assert_close(loss, -torch.log(KINDS["multiclass"].score(logits, KIND)[:, 2]))


def test_a_kind_from_a_plugin_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "poisson_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import_plugins(["poisson_plugin"])
        tasks = [LIKE, STARS.model_copy(update={"kind": "poisson"}), KIND]
        engine = make_engine(make_run(), manifest=make_manifest(tasks))
        before = engine.parameters()["towers.1.out.weight"]
        take_steps(engine, make_steps(2), make_objective(make_run(), make_manifest(tasks)))
        assert not torch.equal(engine.parameters()["towers.1.out.weight"], before)
    finally:
        sys.modules.pop("poisson_plugin", None)
        KINDS._parts.pop("poisson", None)


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'regression'"):
        KINDS["regresion"]
