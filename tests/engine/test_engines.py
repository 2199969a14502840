"""DeepSpeed at every ZeRO stage, on two ranks, against the plain engine: all in one group of processes."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.engine.base import Engine, build_engine
from mtrec_ray.errors import BackboneError
from mtrec_ray.model.backbone import load_model
from mtrec_ray.model.probe import choose_mode
from mtrec_ray.model.recommender import Recommender, frozen_dtype
from tests.batches import make_batch, make_manifest, make_run, make_steps
from tests.training import (
    CPU,
    distance,
    make_engine,
    make_objective,
    run_ranks,
    small_backbone,
    small_model,
    take_steps,
)

pytestmark = pytest.mark.distributed

STAGES = (0, 1, 2, 3)
STEPS = 5
RATES = "train.learning_rate={adapters: 0.3, towers: 0.1, tables: 0.5}"
DECAYS = "train.weight_decay={adapters: 0.0, towers: 0.1, tables: 0.05}"
SGD = (RATES, DECAYS, "train.clip_norm=null", "engine.optimizer=sgd")
ADAM = ("train.clip_norm=0.5", DECAYS)
FINE = ("train.lora_plus=4", "train.layer_decay=0.5")
"""Four groups of adapters in place of one."""
MOMENTUM = (*SGD, *FINE, "train.momentum=0.9", "train.clip_norm=0.5")
ADAFACTOR = (*ADAM, *FINE, "engine.optimizer=adafactor")
PLAIN = ("engine.name=plain",)


def zero(stage: int, *more: str) -> tuple[str, ...]:
    return "engine.name=deepspeed", f"engine.zero_stage={stage}", *more


def trained(*overrides: str, steps: int = STEPS, **data: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Gradients of each step, and the parameters after the last."""
    run = make_run(*overrides)
    engine = make_engine(run, with_backbone=True)
    gradients = take_steps(engine, make_steps(steps, tokens=True, **data), make_objective(run))
    parameters = engine.parameters()
    engine.close()
    return gradients, parameters


def on_rank(model_folder: str) -> dict[str, Any]:
    """Everything that needs two ranks; the tests below look at what it gives."""
    rank = torch.distributed.get_rank()
    share = {"ranks": 2, "rank": rank, "micro_steps": 2}
    found: dict[str, Any] = {"plain": trained(*SGD, **share)}
    for stage in STAGES:
        found[f"sgd {stage}"] = trained(*zero(stage), *SGD, **share)
        found[f"bf16 {stage}"] = trained(*zero(stage), *SGD, "engine.precision=bf16", steps=2, **share)
    found["bf16 plain"] = trained(*SGD, "engine.precision=bf16", steps=2, **share)
    found["bf16 full"] = trained(*zero(2), *SGD, "engine.precision=bf16", "adapter.kind=full", steps=2, **share)
    found["adam 1"] = trained(*zero(1), *ADAM, steps=3, **share)
    for stage in (2, 3):
        found[f"offload {stage}"] = trained(*zero(stage), *ADAM, "engine.offload=cpu", steps=3, **share)
    checkpointing = ("engine.activation_checkpointing=true", "adapter.dropout=0.2")
    found["dropout"] = trained(*SGD, "adapter.dropout=0.2", steps=1, **share)
    found["checkpointing"] = trained(*zero(3), *SGD, *checkpointing, steps=1, **share)
    found["empty"] = [empty_micro_step(engine, rank) for engine in (("engine.name=plain",), zero(3))]
    for stage in STAGES:
        found[f"momentum {stage}"] = trained(*zero(stage), *MOMENTUM, steps=2, **share)
    found["adafactor 0"] = trained(*zero(0), *ADAFACTOR, steps=3, **share)
    found["moved"] = moved_between_engines(rank, [zero(2), zero(3), PLAIN, zero(1), zero(0)], (*ADAM, *FINE))
    found["moved momentum"] = moved_between_engines(rank, [zero(2), zero(0), zero(3), zero(1)], MOMENTUM)
    found["moved adafactor"] = moved_between_engines(rank, [zero(0), PLAIN, zero(0)], ADAFACTOR)
    found["tiny"] = {stage: tiny_groups(rank, zero(stage)) for stage in (1, 2, 3)}
    for stage in (None, *STAGES):
        engine = PLAIN if stage is None else zero(stage)
        for dense in (False, True):
            found[f"tables {stage} {dense}"] = clipped_tables(engine, dense, **share)
    found["sharded"] = load_sharded(model_folder)
    return found


def clipped_tables(
    engine_settings: tuple[str, ...], dense: bool, clip_norm: float | None = 1e-4, **data: Any
) -> dict[str, Tensor]:
    """Weights after three steps in which the row tables are all that is trained, or else one bias beside them: so most
    of the norm that gradients are clipped by is theirs."""
    without_decay = "train.weight_decay={adapters: 0, towers: 0, tables: 0}"
    clip = f"train.clip_norm={json.dumps(clip_norm)}"
    run = make_run(*engine_settings, *SGD, without_decay, clip, "train.momentum=0.9")

    def build() -> Recommender:
        model = Recommender(None, make_manifest(), run)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(dense and name == "side.network.0.bias")
        return model

    engine = build_engine(run, build, CPU)
    steps = make_steps(3, **data)
    take_steps(engine, steps[:2], make_objective(run))
    before, engine = engine, build_engine(run, build, CPU)
    engine.load_parameters(before.parameters())
    engine.load_optimizer_state(before.optimizer_state())
    before.close()
    take_steps(engine, steps[2:], make_objective(run))
    parameters = engine.parameters()
    engine.close()
    return parameters


def empty_micro_step(overrides: tuple[str, ...], rank: int) -> dict[str, Tensor]:
    """Rank 1 has nothing to do in the first micro-step, and nothing at all in the second."""
    run = make_run(*overrides, *SGD)
    engine = make_engine(run, with_backbone=True)
    data = make_steps(2, ranks=2, rank=rank, micro_steps=2, tokens=True)
    nothing = make_batch([], tokens=True)
    if rank == 1:
        data[0].batches[0] = nothing
        data[1].batches[:] = [nothing, nothing]
    gradients = take_steps(engine, data, make_objective(run))[-1]
    engine.close()
    return gradients


def moved_between_engines(rank: int, engines: list[tuple[str, ...]], settings: tuple[str, ...]) -> dict[str, Tensor]:
    """One step in each of several engines, with weights and optimizer state handed on from one to the next."""
    parameters: dict[str, Tensor] = {}
    state: dict[str, dict[str, Tensor]] = {}
    for overrides, data in zip(engines, make_steps(len(engines), ranks=2, rank=rank, tokens=True), strict=True):
        engine = make_engine(make_run(*settings, *overrides), with_backbone=True)
        if parameters:
            engine.load_parameters(parameters)
            engine.load_optimizer_state(state)
            assert distance(engine.parameters(), parameters) == 0
        take_steps(engine, [data], make_objective(make_run()))
        parameters, state = engine.parameters(), engine.optimizer_state()
        engine.close()
    return parameters


class Tiny(torch.nn.Module):
    """Three groups, one of two numbers and one of one number, of which ZeRO 1 and 2 give nothing to rank 1."""

    backbone = None
    learnable = frozenset({"weight", "pair", "one"})

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 33))
        self.pair = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
        self.one = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, batch: Any, key: Any = None, point: Any = None) -> Tensor:
        return (self.weight * batch).sum() * self.one[0] + (self.pair**2).sum()

    def parameter_groups(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        return {"adapters": {"pair": self.pair}, "towers": {"weight": self.weight}, "tables": {"one": self.one}}


def tiny_groups(rank: int, overrides: tuple[str, ...]) -> dict[str, Tensor]:
    """Two steps, the state handed on to an engine of the same kind, and a third; parameters and state after it."""
    run = make_run(*ADAM, *overrides)
    engine: Any = build_engine(run, Tiny, CPU)
    for step in range(3):
        if step == 2:
            before, engine = engine, build_engine(run, Tiny, CPU)
            engine.load_parameters(before.parameters())
            engine.load_optimizer_state(before.optimizer_state())
            before.close()
        engine.backward(engine.forward(torch.linspace(0, 1, 33) + rank + step), last=True)
        engine.step(1.0)
    found = parameters_and_state(engine)
    engine.close()
    return found


def parameters_and_state(engine: Engine) -> dict[str, Tensor]:
    state = engine.optimizer_state()
    return engine.parameters() | {f"{p}.{key}": value for p, of in state.items() for key, value in of.items()}


def load_sharded(folder: str) -> dict[str, Any]:
    """A saved backbone, loaded under ZeRO-3 and probed there."""
    run = make_run(*zero(3), f"backbone.name={folder}", "engine.precision=bf16")

    def build() -> Recommender:
        return Recommender(small_backbone(run, load_model(folder, frozen_dtype(run))), make_manifest(), run)

    engine: Any = build_engine(run, build, CPU)
    backbone = engine.model.backbone
    weight = backbone.model.layers[0].mlp.up_proj.base_layer.weight
    found = {
        "checksum": backbone.checksum(),
        "here": weight.ds_tensor.numel(),
        "whole": weight.ds_numel,
        "dtype": weight.dtype,
        "mode": choose_mode(backbone, "require").mode,
    }
    gradients = take_steps(engine, make_steps(2, 2, torch.distributed.get_rank(), tokens=True), make_objective(run))
    engine.close()
    return found | {"gradients": gradients[-1]}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(model_folder: str) -> dict[str, Any]:
    """What rank 0 saw; rank 1 must have seen the same."""
    first, second = run_ranks(on_rank, 2, model_folder)
    for name in ("plain", *(f"sgd {stage}" for stage in STAGES)):
        assert distance(first[name][1], second[name][1]) == 0, f"{name}: the ranks have drifted apart"
    return first


@pytest.fixture(scope="module")
def reference() -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The plain engine on one rank, the whole step in one micro-step."""
    return trained(*SGD)


def test_ranks_and_accumulation_do_not_change_the_plain_engine(found, reference) -> None:
    accumulated = trained(*SGD, micro_steps=4)
    for (gradients, parameters), name in ((found["plain"], "2 ranks x 2"), (accumulated, "4 micro-steps")):
        assert max(distance(*pair) for pair in zip(gradients, reference[0], strict=True)) < 1e-5, name
        assert distance(parameters, reference[1]) < 1e-5, name


@pytest.mark.parametrize("stage", STAGES)
def test_zero_stages_equal_the_plain_engine(found, reference, stage: int) -> None:
    gradients, parameters = found[f"sgd {stage}"]
    assert max(distance(*pair) for pair in zip(gradients, reference[0], strict=True)) < 1e-5
    assert distance(parameters, reference[1]) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_zero_stages_equal_the_plain_engine_in_bf16(found, stage: int) -> None:
    # Stage 3 rounds elsewhere: outputs and the gradient that enters the last layer are bit-equal, the one that leaves
    # it differs by half a bfloat16 unit; both are equally far from float32, where the stages agree to 1e-7.
    expected, got = found["bf16 plain"], found[f"bf16 {stage}"]
    assert distance(got[0][0], expected[0][0]) < (1e-3 if stage == 3 else 1e-5)
    assert distance(got[1], expected[1]) < 1e-3


def test_bf16_is_bf16_and_keeps_trained_weights_in_float32(found, reference) -> None:
    for name in ("bf16 plain", "bf16 3", "bf16 full"):
        assert {value.dtype for value in found[name][1].values()} == {torch.float32}
    assert 1e-4 < distance(found["bf16 plain"][0][0], reference[0][0]) < 0.1


def test_full_fine_tuning_trains_the_backbone_in_bf16_with_float32_weights(found) -> None:
    gradients, _ = found["bf16 full"]
    assert any("embed_tokens" in name for name in gradients[0])
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0].values())


@pytest.mark.parametrize("name", ["adam 1", "offload 2", "offload 3"])
def test_adamw_with_clipping_and_decay_equals_the_plain_engine(found, name: str) -> None:
    assert distance(found[name][1], trained(*ADAM, steps=3)[1]) < 1e-5


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("stage", [None, *STAGES])
def test_clipping_counts_row_tables_at_every_stage(found, stage: int | None, dense: bool) -> None:
    alone, unclipped = clipped_tables(PLAIN, dense), clipped_tables(PLAIN, dense, clip_norm=None)
    start = make_engine(make_run(*SGD)).parameters()
    moved = [
        {name: weights[name] - start[name] for name in start}
        for weights in (found[f"tables {stage} {dense}"], alone, unclipped)
    ]
    assert distance(moved[0], moved[1]) < 1e-3  # of weights about 1e4 times as large
    assert distance(moved[1], moved[2]) > 0.5


def test_activation_checkpointing_changes_nothing(found) -> None:
    assert distance(found["checkpointing"][0][0], found["dropout"][0][0]) < 1e-5


def test_a_rank_without_candidates_takes_part(found) -> None:
    plain, sharded = found["empty"]
    assert distance(sharded, plain) < 1e-5


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("moved", (*ADAM, *FINE), 5),
        ("moved momentum", MOMENTUM, 4),
        ("moved adafactor", ADAFACTOR, 3),
    ],
)
def test_state_moves_between_engines_and_stages(found, name: str, settings: tuple[str, ...], steps: int) -> None:
    assert distance(found[name], trained(*settings, steps=steps)[1]) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_momentum_and_rates_for_each_layer_equal_the_plain_engine(found, stage: int) -> None:
    expected = trained(*MOMENTUM, steps=2)[1]
    assert distance(found[f"momentum {stage}"][1], expected) < 1e-5
    assert distance(expected, trained(*SGD, "train.clip_norm=0.5", steps=2)[1]) > 1e-3


def test_adafactor_equals_the_plain_engine_where_it_sees_whole_matrices(found) -> None:
    assert distance(found["adafactor 0"][1], trained(*ADAFACTOR, steps=3)[1]) < 1e-5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_group_of_which_a_rank_has_nothing(found, stage: int) -> None:
    """Gradients of both ranks are summed, so one rank takes the step with the sum of both rows."""
    engine: Any = build_engine(make_run(*ADAM, *PLAIN), Tiny, CPU)
    for step in range(3):
        for rank in (0, 1):
            engine.backward(engine.forward(torch.linspace(0, 1, 33) + rank + step), last=rank == 1)
        engine.step(1.0)
    assert distance(found["tiny"][stage], parameters_and_state(engine)) < 1e-6


def test_zero_3_splits_a_backbone_while_loading_it(found, model_folder: str) -> None:
    sharded = found["sharded"]
    run = make_run("engine.precision=bf16")
    whole = small_backbone(run, load_model(model_folder, frozen_dtype(run)))
    assert sharded["here"] == sharded["whole"] // 2
    assert sharded["dtype"] == torch.bfloat16
    assert sharded["checksum"] == whole.checksum()
    assert sharded["mode"] == "packed"
    assert any("lora_A" in name for name in sharded["gradients"])


def test_weights_that_were_not_loaded_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtrec_ray.engine import deepspeed

    checksums = iter(["filefilefile", "halfhalfhalf"])
    backbone = SimpleNamespace(checksum=lambda: next(checksums))
    monkeypatch.setattr(deepspeed, "_sharded_loading", lambda run: torch.no_grad())
    with pytest.raises(
        BackboneError, match=r"have checksum halfhalfhalf, those of the file filefilefile.*zero_stage: 2"
    ):
        deepspeed._load_sharded(make_run(), lambda: SimpleNamespace(backbone=backbone), world_rank=0)  # type: ignore[arg-type,return-value]


def test_only_adapters_towers_and_features_are_trained(reference) -> None:
    gradients, _ = reference
    assert all("lora_" in name for name in gradients[0] if name.startswith("backbone."))
    assert any(name.startswith("backbone.") for name in gradients[0])
    for name in gradients[0]:
        assert any(step[name].abs().sum() > 0 for step in gradients), f"{name} never gets a gradient"


def test_engine_protocol_is_met() -> None:
    engine: Engine = make_engine(make_run())
    assert engine.world_size == 1
    assert engine.world_rank == 0
