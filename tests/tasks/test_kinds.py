import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrec_ray.config import Task
from mtrec_ray.data.manifest import CategoryEntry, Manifest, NumberEntry
from mtrec_ray.errors import ConfigError
from mtrec_ray.labels import BUILT_IN, FITTED_PARAMS
from mtrec_ray.multitask.losses import Objective
from mtrec_ray.registry import import_plugins
from mtrec_ray.tasks.columns import FeatureColumns
from mtrec_ray.tasks.kinds import KINDS, build_kinds, check_tasks
from mtrec_ray.tasks.labels import labels_of
from tests.fixtures import manifest_of
from tests.tasks.made import NAN, candidates, entry

PLUGIN = """
from torch import exp

from mtrec_ray.tasks.kind import KINDS, PointwiseKind


@KINDS.register("poisson")
class Poisson(PointwiseKind):
    labels = "number"
    metrics = {"rmse": -1}
    reported = ("rmse",)

    def initial_bias(self):
        return [0.0]

    def loss(self, logits, labels):
        return exp(logits[:, 0]) - labels * logits[:, 0]

    def predict(self, logits):
        return exp(logits[:, 0])
"""


def made_manifest(**parts: Any) -> Manifest:
    return manifest_of(**{"categories": [], "numbers": [], "num_users": 1, "num_items": 1, **parts})


def tasks(**given: dict[str, Any]) -> dict[str, Task]:
    return {name: Task(label=name, **settings) for name, settings in given.items()}


def conversion(parent: str | None) -> dict[str, Any]:
    return {"kind": "conversion", "parent": parent}


@pytest.fixture
def poisson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "poisson_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "poisson_plugin"
    sys.modules.pop("poisson_plugin", None)
    KINDS._parts.pop("poisson", None)


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) & set(KINDS.names())))
def test_what_is_known_of_a_kind_without_torch_is_what_its_class_says(name: str) -> None:
    assert KINDS[name].labels == BUILT_IN[name]
    assert set(FITTED_PARAMS.get(name, ())) <= set(KINDS[name].Params.model_fields)


def test_kinds_come_in_the_manifests_order_with_their_parents_and_columns() -> None:
    manifest = made_manifest(
        tasks=[
            entry("conversion", "buy", mean=0.01),
            entry("binary", "click", mean=0.2),
            entry("conversion", "cart", mean=0.1),
        ],
        categories=[CategoryEntry(name="genre", offset=1, width=2, size=9)],
        numbers=[NumberEntry(name="length", index=4, kind="number", mean=0, std=1, quantiles=[])],
    )
    config = tasks(click={}, cart=conversion("click"), buy=conversion("cart"))
    kinds = build_kinds(manifest, config)
    assert [kind.task.name for kind in kinds] == ["buy", "click", "cart"]
    assert [kind.index for kind in kinds] == [0, 1, 2]
    assert kinds[0].parent is kinds[2]
    assert kinds[2].parent is kinds[1]
    assert kinds[1].parent is None
    assert kinds[0].columns.category("genre", "here") == slice(1, 3)
    assert kinds[0].columns.number("length", "here") == 4


def test_columns_are_found_by_the_names_that_the_config_declares() -> None:
    numbers = [
        NumberEntry(name="price", index=0, kind="number", mean=0, std=1, quantiles=[]),
        NumberEntry(name="time.gap", index=1, kind="time", mean=0, std=1, quantiles=[]),
    ]
    columns = FeatureColumns.of([], numbers, train_rows=7)
    with pytest.raises(ConfigError, match=r"^tasks.t.params.x: no number is called 'prize'; .* Did you mean 'price'\?"):
        columns.number("prize", "tasks.t.params.x")
    with pytest.raises(ConfigError, match=r"no number is called 'time.gap'"):
        columns.number("time.gap", "tasks.t.params.x")
    with pytest.raises(ConfigError, match=r"no category is called 'genre'; declare it in .*data.items.categories.$"):
        columns.category("genre", "tasks.t.params.x")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tasks(t={"kind": "regresion"}), "tasks.t.kind: 'regresion' is unknown. Did you mean 'regression'"),
        (tasks(t={"params": {"gama": 1}}), "unknown key 'tasks.t.params.gama'. Did you mean 'gamma'"),
        (tasks(click={}, buy=conversion(None)), "tasks.buy.parent: kind 'conversion' is a step after.*Known: click"),
        (tasks(click={}, buy=conversion("clik")), "tasks.buy.parent: there is no other task 'clik'. Did you mean 'cli"),
        (tasks(click={}, buy=conversion("buy")), "tasks.buy.parent: there is no other task 'buy'"),
        (
            tasks(stars={"kind": "regression"}, buy=conversion("stars")),
            "tasks.buy.parent: 'stars' is of kind 'regression'; a parent happens or does not",
        ),
        (
            tasks(a=conversion("c"), b=conversion("a"), c=conversion("b")),
            "tasks.a.parent: the tasks a -> c -> b -> a are in a circle",
        ),
        (tasks(a={"parent": "b"}, b=conversion("c"), c=conversion("b")), "the tasks a -> b -> c -> b are in a circle"),
        (tasks(a={"weight": 0}, b={"weight": 0}), "tasks: all weights are 0"),
    ],
)
def test_tasks_that_do_not_fit_together_are_refused(config: dict[str, Task], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_tasks(config)


def test_a_step_needs_a_parent_whose_score_is_a_probability(poisson: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_plugins([poisson])
    monkeypatch.setattr(KINDS["poisson"], "labels", "binary")
    config = tasks(shown={"kind": "poisson"}, buy=conversion("shown"))
    with pytest.raises(ConfigError, match=r"tasks.buy.parent: the scores of 'shown', of kind 'poisson', are no prob"):
        check_tasks(config)
    check_tasks(tasks(shown={"kind": "poisson"}, buy={"parent": "shown"}))  # which is no step: it needs no product


def test_a_guests_kind_learns(poisson: str) -> None:
    assert labels_of("poisson", [poisson]) == "number"
    fitted = [entry("binary", "like", mean=0.5), entry("poisson", "plays")]
    manifest = made_manifest(tasks=fitted)
    kinds = build_kinds(manifest, tasks(like={}, plays={"kind": "poisson"}))
    objective = Objective(kinds, {"like": 1.0, "plays": 1.0})
    shown = candidates([[1.0, 3.0], [0.0, NAN], [1.0, 1.0]])
    bias = torch.tensor(kinds[1].initial_bias(), requires_grad=True)
    for _ in range(200):
        logits = {"like": torch.zeros(3, 1), "plays": bias.expand(3, 1)}
        loss = objective.loss(objective.loss_sums([logits], shown), objective.scales(objective.counts(shown)))
        loss.backward()
        with torch.no_grad():
            bias -= 0.2 * bias.grad
        bias.grad = None
    assert kinds[1].score(logits, shown)[0].item() == pytest.approx(2.0, rel=1e-3)  # the mean of 3 and 1
