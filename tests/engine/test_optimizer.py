"""One step and three, worked by hand, on the plain engine: of parameters; of tables see `test_tables`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.config_file import dump, parse
from mtrec_ray.engine.base import Engine
from mtrec_ray.engine.optimizer import idle_settings, ignored, rate_groups
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.row_table import row_tables
from mtrec_ray.search.searchable import idle
from tests.batches import make_run, make_steps
from tests.training import distance, make_engine, make_objective, take_steps

RATES = {"adapters": 0.3, "towers": 0.1, "tables": 0.5}
SGD = (
    "backbone=nano",
    "engine.optimizer=sgd",
    "train.clip_norm=null",
    "train.weight_decay={adapters: 0.0, towers: 0.0, tables: 0.0}",
    "train.learning_rate={adapters: 0.3, towers: 0.1, tables: 0.5}",
)


def trace(*overrides: str, steps: int = 1) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Parameters before, gradients of each step, and parameters after; without row tables."""
    run = make_run(*SGD, *overrides)
    engine = make_engine(run, with_backbone=True)
    before = without_tables(engine, engine.parameters())
    gradients = take_steps(engine, make_steps(steps, tokens=True), make_objective(run))
    return before, gradients, without_tables(engine, engine.parameters())


def without_tables(engine: Engine, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name not in row_tables(engine.model)}


def group_of(name: str) -> str:
    return "adapters" if name.startswith("backbone.") else "towers"


def rates(*overrides: str) -> dict[str, float]:
    """{parameter: learning rate}"""
    run = make_run(*SGD, *overrides)
    model = make_engine(run, with_backbone=True).model
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in rate_groups(model, run) for p in group["params"]}


def multiple(name: str, lora_plus: float, decay: float, layers: int = 2) -> float:
    """Of a model of two layers: one above layer 0, none above layer 1 and the last norm, two above the embeddings."""
    if not name.startswith("backbone."):
        return 1.0
    above = {"layers.0": 1, "layers.1": 0, "norm": 0, "embed_tokens": 2}
    (found,) = [count for part, count in above.items() if name.startswith(f"backbone.model.{part}.")]
    return (lora_plus if "lora_B" in name else 1.0) * decay**found


def test_without_settings_there_is_a_group_for_each_rate_of_the_config() -> None:
    run = make_run("backbone=nano", "train.weight_decay={adapters: 0.1, towers: 0.2, tables: 0.3}")
    model = make_engine(run, with_backbone=True).model
    groups = rate_groups(model, run)
    found = [(g["name"], g["lr"], g["initial_lr"], g["weight_decay"]) for g in groups]
    assert found == [("adapters", 1e-3, 1e-3, 0.1), ("towers", 1e-3, 1e-3, 0.2)]
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "lora_plus", "decay", "groups"),
    [
        (("train.lora_plus=16",), 16.0, 1.0, 2),
        (("train.layer_decay=0.5",), 1.0, 0.5, 2),
        (("train.lora_plus=16", "train.layer_decay=0.5"), 16.0, 0.5, 4),
        (("adapter.kind=full", "train.layer_decay=0.5"), 1.0, 0.5, 3),
        (("adapter.kind=dora", "train.lora_plus=16"), 16.0, 1.0, 2),
    ],
)
def test_one_step_of_sgd_moves_each_weight_by_its_own_rate(overrides, lora_plus, decay, groups) -> None:
    before, (gradient,), after = trace(*overrides)
    plain = rates(*(o for o in overrides if o.startswith("adapter")))
    moved = rates(*overrides)
    for name, weight in before.items():
        rate = plain[name] * multiple(name, lora_plus, decay)
        assert torch.equal(after[name], weight.add(gradient[name], alpha=-rate)), name
        assert moved[name] / plain[name] == multiple(name, lora_plus, decay), name
    assert any(gradient[name].any() for name in before if name.startswith("backbone."))
    assert len({rate for name, rate in moved.items() if name.startswith("backbone.")}) == groups


def test_every_layer_of_any_adapter_has_its_rate() -> None:
    for kind in ("adalora", "ia3", "prefix", "bottleneck"):
        found = rates(f"adapter={{kind: {kind}}}", "train.layer_decay=0.5")
        assert {found[name] for name in found if name.startswith("backbone.model.layers.0.")} == {0.15}, kind
        assert {found[name] for name in found if name.startswith("backbone.model.layers.1.")} == {0.3}, kind


def test_momentum_is_that_of_sgd() -> None:
    before, gradients, after = trace("train.momentum=0.9", "train.lora_plus=4", steps=3)
    rate = rates("train.lora_plus=4")
    for name, weight in before.items():
        velocity = torch.zeros_like(weight)
        for gradient in gradients:
            velocity = 0.9 * velocity + gradient[name]
            weight = weight - rate[name] * velocity
        torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-6)
    assert distance(after, trace("train.lora_plus=4", steps=3)[2]) > 1e-2


def test_adafactor_is_that_of_its_paper() -> None:
    """Algorithms 4 and 5 of Shazeer & Stern (2018), with beta_2 = 1 - t^-0.8, d = 1 and rho = min(rate, t^-0.5)."""
    decay = "train.weight_decay={adapters: 0.0, towers: 0.1, tables: 0.0}"
    before, gradients, after = trace("engine.optimizer=adafactor", decay, "train.lora_plus=4", steps=3)
    rate = rates("train.lora_plus=4")
    assert {value.ndim for value in before.values()} == {1, 2, 3}
    for name, weight in before.items():
        weight = weight.double()
        matrix = weight.ndim > 1  # of three dimensions: several of them
        rows, columns, squares = 0.0, 0.0, 0.0
        for t, gradient in enumerate((g[name].double() for g in gradients), 1):
            beta = 1 - t**-0.8
            squared = gradient**2
            if matrix:
                rows = beta * rows + (1 - beta) * squared.mean(-1, keepdim=True)
                columns = beta * columns + (1 - beta) * squared.mean(-2, keepdim=True)
                estimate = rows * columns / rows.mean(-2, keepdim=True)
            else:
                estimate = squares = beta * squares + (1 - beta) * squared
            update = torch.where(estimate > 0, gradient / estimate.sqrt(), 0.0)
            update = update / max(1.0, rms(update))
            step = max(1e-3, rms(weight)) * min(rate[name], t**-0.5)
            weight = weight * (1 - rate[name] * (0.1 if group_of(name) == "towers" else 0.0)) - step * update
        torch.testing.assert_close(
            after[name].double(), weight, rtol=2e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_adafactor_keeps_a_row_and_a_column_of_each_matrix() -> None:
    run = make_run("backbone=nano", "engine.optimizer=adafactor")
    engine = make_engine(run, with_backbone=True)
    take_steps(engine, make_steps(1, tokens=True), make_objective(run))
    state = engine.optimizer_state()
    for name, weight in without_tables(engine, engine.parameters()).items():
        found = {key: tuple(value.shape) for key, value in state[name].items()}
        if weight.ndim == 1:
            assert found == {"step": (), "variance": tuple(weight.shape)}
        else:
            *first, rows, columns = weight.shape
            assert found == {"step": (), "row_var": (*first, rows, 1), "col_var": (*first, 1, columns)}


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine.optimizer=adafactor", "train.lora_plus=4"),
        ("train.momentum=0.9", "train.layer_decay=0.5"),
        ("engine.optimizer=adamw", "train.lora_plus=4", "train.layer_decay=0.5"),
    ],
)
def test_a_step_after_the_state_was_loaded_is_the_step_that_would_have_been(overrides: tuple[str, ...]) -> None:
    run, data = make_run(*SGD, *overrides), make_steps(3, tokens=True)
    going_on, resumed = (make_engine(run, with_backbone=True) for _ in range(2))
    take_steps(going_on, data[:2], make_objective(run))
    resumed.load_parameters(going_on.parameters())
    forgetful = make_engine(run, with_backbone=True)
    forgetful.load_parameters(going_on.parameters())
    resumed.load_optimizer_state(going_on.optimizer_state())
    for engine in (going_on, resumed, forgetful):
        take_steps(engine, data[2:], make_objective(run))
    assert distance(resumed.parameters(), going_on.parameters()) == 0
    assert distance(forgetful.parameters(), going_on.parameters()) > 1e-4


def test_adafactor_is_refused_where_it_would_get_flat_parts() -> None:
    for stage in (1, 2, 3):
        with pytest.raises(ConfigError) as error:
            make_run("engine={optimizer: adafactor, name: deepspeed}", f"engine.zero_stage={stage}")
        assert f"engine.zero_stage is {stage}" in str(error.value)
        assert "set engine.zero_stage: 0 or engine.name: plain" in str(error.value)
        assert "\n" not in str(error.value)
    run = make_run("engine={optimizer: adafactor, name: deepspeed, zero_stage: 0}")
    assert parse(dump(run)) == run
    assert make_run("engine={optimizer: adafactor, name: plain, zero_stage: 3}").engine.optimizer == "adafactor"


@pytest.mark.parametrize(
    "override",
    ["train.momentum=1", "train.momentum=-0.1", "train.lora_plus=0.5", "train.layer_decay=0", "train.layer_decay=1.1"],
)
def test_values_out_of_range_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        make_run(override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("backbone=nano",), {"train.momentum": "engine.optimizer is adamw"}),
        (("backbone=nano", "engine.optimizer=sgd"), {}),
        (
            ("backbone=nano", "engine.optimizer=sgd", "adapter.kind=frozen"),
            {"train.lora_plus": "adapter.kind is frozen", "train.layer_decay": "adapter.kind is frozen"},
        ),
        (("backbone=nano", "engine.optimizer=sgd", "adapter.kind=full"), {"train.lora_plus": "adapter.kind is full"}),
        (
            ("backbone=nano", "engine.optimizer=sgd", "adapter.kind=adalora"),
            {"train.lora_plus": "adapter.kind is adalora"},
        ),
        (
            ("backbone=none", "engine.optimizer=sgd"),
            {"train.lora_plus": "backbone.name is none", "train.layer_decay": "backbone.name is none"},
        ),
    ],
)
def test_settings_without_effect_are_known_to_the_search_and_told(overrides, expected: dict[str, str]) -> None:
    given: Any = ("train.momentum=0.9", "train.lora_plus=16", "train.layer_decay=0.5")
    run = make_run(*overrides, *given)
    assert idle_settings(run) == expected
    for path in ("train.momentum", "train.lora_plus", "train.layer_decay"):
        assert idle(path, [run]) == expected.get(path)
    assert len(ignored(run)) == len(expected)
    assert ignored(make_run(*overrides)) == []


def test_what_is_told() -> None:
    run = make_run("train.momentum=0.9", "train.lora_plus=16")
    assert ignored(run) == [
        "train.momentum 0.9 changes nothing: engine.optimizer is adamw",
        "train.lora_plus 16 changes nothing: backbone.name is none",
    ]
