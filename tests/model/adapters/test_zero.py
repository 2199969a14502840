"""Every kind through DeepSpeed on two ranks, at every ZeRO stage, against the plain engine: all in one process pair.

At stage 3 every weight is split, however small, or tiny models would be whole on all ranks and prove nothing.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.engine import deepspeed
from mtrec_ray.engine.base import Engine, build_engine
from mtrec_ray.model.adapters import trained_parts
from mtrec_ray.model.adapters.buffers import added_buffers
from mtrec_ray.model.backbone import Backbone, load_model
from mtrec_ray.model.probe import choose_mode
from mtrec_ray.model.recommender import Recommender, frozen_dtype
from mtrec_ray.train.building import adapt
from tests.batches import make_manifest, make_run, make_steps
from tests.training import CPU, backward, distance, make_engine, make_objective, run_ranks, small_backbone, small_model

pytestmark = pytest.mark.distributed

KINDS = {
    "lora": (),
    "dora": ("adapter.dropout=0.2",),
    "adalora": (),
    "ia3": (),
    "prefix": (),
    "bottleneck": ("adapter.dropout=0.2",),
    "full": ("adapter.top_layers=1",),
}
STAGES = {kind: (0,) if kind == "adalora" else (0, 1, 2, 3) for kind in KINDS}
CASES = [(kind, stage) for kind, stages in STAGES.items() for stage in stages]
LOADED = [kind for kind, stages in STAGES.items() if 3 in stages]
SGD = (
    "train.learning_rate={adapters: 0.3, towers: 0.1, tables: 0.5}",
    "train.clip_norm=null",
    "engine.optimizer=sgd",
    "engine.zero_stage=0",
)
STEPS = 2
Found = tuple[list[dict[str, Tensor]], dict[str, Tensor]]


class WithExtras:
    """An objective with the extra losses of parts of the model, as the training loop adds them: a share in each of the
    micro-steps of all ranks."""

    def __init__(self, objective: Any, engine: Engine, micro_steps: int) -> None:
        self._objective, self._parts = objective, trained_parts(engine.model)
        self._share = 1 / (engine.world_size * micro_steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def loss(self, sums: Tensor, scales: Tensor) -> Tensor:
        loss = self._objective.loss(sums, scales)
        for part in self._parts:
            loss = loss + self._share * part.extra_loss()
        return loss


def take_steps(engine: Engine, **data: Any) -> Found:
    """Gradients of each step, and all that a checkpoint holds after the last."""
    gradients = []
    parts = trained_parts(engine.model)
    objective = WithExtras(make_objective(make_run()), engine, data.get("micro_steps", 1))
    for number, step in enumerate(make_steps(STEPS, tokens=True, **data), 1):
        backward(engine, step.batches, objective, step.plan)
        gradients.append(engine.gradients())
        for part in parts:
            part.before_step()
        engine.step(1.0)
        for part in parts:
            part.after_step(number, STEPS)
    held = engine.parameters() | {name: value.clone() for name, value in added_buffers(engine.model).items()}
    engine.close()
    return gradients, held


def trained(kind: str, *overrides: str, **data: Any) -> Found:
    run = make_run(*SGD, f"adapter.kind={kind}", *KINDS[kind], *overrides)
    return take_steps(make_engine(run, with_backbone=True), **data)


def loaded(kind: str, folder: str, *overrides: str, **data: Any) -> tuple[Found, str]:
    """With a backbone from a file, which at stage 3 is split while it is loaded, and probed before the first step."""
    run = make_run(*SGD, f"adapter.kind={kind}", *KINDS[kind], *overrides, f"backbone.name={folder}")
    engine: Any = build_engine(
        run, lambda: Recommender(small_backbone(run, load_model(folder)), make_manifest(), run), CPU
    )
    mode = choose_mode(engine.model.backbone, "require").mode
    return take_steps(engine, **data), mode


def mixed(folder: str, *overrides: str, **data: Any) -> tuple[Found, dict[str, set[str]]]:
    """The top layer trained in float32 on frozen ones in bfloat16; and the types, by whether they are trained."""
    run = make_run(*SGD, "adapter.kind=full", "adapter.top_layers=1", "engine.precision=bf16", *overrides)

    def build() -> Recommender:
        backbone = Backbone(load_model(folder, frozen_dtype(run)))
        adapt(backbone, run)
        return Recommender(backbone, make_manifest(), run)

    engine: Any = build_engine(run, build, CPU)
    types: dict[str, set[str]] = {"trained": set(), "frozen": set()}
    for parameter in engine.model.backbone.parameters():
        stored = {str(parameter.dtype), str(getattr(parameter, "ds_tensor", parameter).dtype)}
        types["trained" if parameter.requires_grad else "frozen"] |= stored
    return take_steps(engine, **data), types


def split_everything(config: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def split(run: Any) -> dict[str, Any]:
        found = config(run)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return found

    return split


def on_rank(folder: str) -> dict[Any, Any]:
    deepspeed.deepspeed_config = split_everything(deepspeed.deepspeed_config)
    share = {"ranks": 2, "rank": torch.distributed.get_rank(), "micro_steps": 2}
    zero = ("engine.name=deepspeed", "engine.zero_stage={}")
    found: dict[Any, Any] = {}
    for kind, stage in CASES:
        found[kind, stage] = trained(kind, zero[0], zero[1].format(stage), **share)
    for kind in LOADED:
        found[kind, "loaded"], found[kind, "mode"] = loaded(kind, folder, zero[0], zero[1].format(3), **share)
    found["adalora", "plain"] = trained("adalora", **share)
    found["mixed", "plain"], _ = mixed(folder, **share)
    for stage in (2, 3):
        engine = zero[0], zero[1].format(stage), f"backbone.name={folder}"
        found["mixed", stage], found["types", stage] = mixed(folder, *engine, **share)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder: str) -> dict[Any, Any]:
    """What rank 0 saw; rank 1 must have seen the same."""
    first, second = run_ranks(on_rank, 2, folder)
    for case in first.keys() - {(kind, "mode") for kind in LOADED} - {("types", 2), ("types", 3)}:
        assert distance(first[case][1], second[case][1]) == 0, f"{case}: the ranks have drifted apart"
    return first


@pytest.fixture(scope="module")
def reference() -> dict[str, Found]:
    """The plain engine on one rank, the whole step in one micro-step."""
    return {kind: trained(kind) for kind in KINDS}


def same(found: Found, expected: Found) -> bool:
    gradients = max(distance(*pair) for pair in zip(found[0], expected[0], strict=True))
    return gradients < 1e-5 and distance(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_zero_stages_equal_the_plain_engine(found, reference, kind, stage) -> None:
    assert same(found[kind, stage], reference[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained(reference, kind) -> None:
    for name, gradient in reference[kind][0][0].items():
        assert not name.startswith("backbone.") or gradient.any(), name


@pytest.mark.parametrize("kind", LOADED)
def test_a_backbone_that_is_split_while_it_is_loaded(found, folder, kind) -> None:
    expected, mode = loaded(kind, folder)
    assert found[kind, "mode"] == mode == "packed"
    assert same(found[kind, "loaded"], expected)


def test_ranks_are_allocated_alike_on_any_number_of_ranks(found, reference) -> None:
    names = [name for name in reference["adalora"][1] if name.endswith("lora_importance.kept")]
    expected = torch.cat([reference["adalora"][1][name] for name in names])
    assert 0 < expected.sum() < len(expected)
    for case in ("plain", 0):
        assert torch.equal(torch.cat([found["adalora", case][1][name] for name in names]), expected)
    assert same(found["adalora", "plain"], reference["adalora"])


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_layers_in_bfloat16_below_trained_ones_in_float32(found, stage: int) -> None:
    (gradients, held), (expected, after) = found["mixed", stage], found["mixed", "plain"]
    assert found["types", stage] == {"trained": {"torch.float32"}, "frozen": {"torch.bfloat16"}}
    assert distance(held, after) < 1e-5
    for one, other in zip(gradients, expected, strict=True):
        assert distance(one, other) < 1e-4
