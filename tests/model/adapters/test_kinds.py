"""What holds of every kind: what is trained, where it starts, and that packing and checkpointing change nothing."""

import pytest
import torch

from mtrec_ray.config import ADAPTER_FIELDS, Adapter
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.backbone import Backbone, is_added, weights_checksum
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.model.probe import choose_mode
from tests.model.adapters.kinds import ADDED, SMALL, WITH_DROPOUT
from tests.model.models import (
    largest_difference,
    largest_parameter_difference,
    make_model,
    outputs_and_gradients,
    relative,
    shared_end,
    staircase,
    tiny,
    token_ids,
    true_float64,
    with_adapter,
)

LINEAR = {"q_proj": 64, "k_proj": 48, "v_proj": 48, "o_proj": 64, "gate_proj": 128, "up_proj": 128, "down_proj": 128}
"""Inputs and outputs together, of the linear modules of a layer of the tests' `nano`."""
OUTPUTS = 32 + 16 + 16 + 32 + 96 + 96 + 32
COUNTS = {
    "lora": 2 * 4 * sum(LINEAR.values()),
    "dora": 2 * (4 * sum(LINEAR.values()) + OUTPUTS),
    "adalora": 2 * 6 * (sum(LINEAR.values()) + len(LINEAR)),
    "ia3": 2 * (16 + 16 + 96),
    "prefix": 2 * 2 * 2 * 3 * 8,
    "bottleneck": 2 * (32 * 5 + 5 + 5 * 32 + 32),
    "frozen": 0,
}
ENDINGS = {
    "lora": {"lora_A.default.weight", "lora_B.default.weight"},
    "dora": {"lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"},
    "adalora": {"lora_A.default", "lora_B.default", "lora_E.default"},
    "ia3": {"ia3_l.default"},
    "prefix": {"adapter_prefix.key", "adapter_prefix.value"},
    "bottleneck": {f"adapter_bottleneck.{part}.{of}" for part in ("down", "up") for of in ("weight", "bias")},
    "frozen": set(),
}
LAYERS = ["nano", "bert"]


def trained(backbone: Backbone) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in backbone.named_parameters() if p.requires_grad}


def outputs(backbone: Backbone) -> torch.Tensor:
    layout = shared_end(backbone.causal)
    with torch.no_grad():
        return backbone(token_ids(layout), layout)


def uids_of(layout: RequestLayout) -> torch.Tensor:
    return 1000 * layout.token_requests() + layout.request_offsets()


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_trained_of_each_kind(kind, dtype):
    backbone = with_adapter(make_model("nano").to(dtype), kind, **SMALL.get(kind, {}))
    found = trained(backbone)
    assert sum(p.numel() for p in found.values()) == COUNTS[kind]
    assert {ending for name in found for ending in ENDINGS[kind] if name.endswith(f".{ending}")} == ENDINGS[kind]
    assert all(name.startswith("model.layers.") and is_added(name) for name in found)
    assert all(any(name.endswith(f".{ending}") for ending in ENDINGS[kind]) for name in found)
    assert {p.dtype for p in found.values()} <= {torch.float32}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("model", LAYERS)
def test_top_layers_keeps_the_last_ones(model, kind):
    whole, top = (with_adapter(make_model(model), kind, **SMALL[kind], top_layers=n) for n in (None, 1))
    layer = {"nano": ".layers.1.", "bert": ".layer.1."}[model]
    last = {name for name in trained(whole) if layer in name}
    after = {name for name in trained(top) if layer not in name}
    assert last
    assert trained(top).keys() - after == last
    assert after == ({"model.norm.weight"} if (model, kind) == ("nano", "full") else set())


@pytest.mark.parametrize("kind", [*SMALL, "frozen"])
@pytest.mark.parametrize("model", LAYERS)
def test_it_starts_as_the_frozen_backbone(model, kind):
    frozen, backbone = Backbone(make_model(model)), Backbone(make_model(model))
    add_adapter(backbone, Adapter(kind=kind, **SMALL.get(kind, {})), seed=0)
    if kind == "prefix":  # no finite key leaves attention as it is; see test_prefix
        assert relative(outputs(backbone), outputs(frozen)) > 1e-2
    else:
        assert torch.equal(outputs(backbone), outputs(frozen))


@pytest.mark.parametrize("kind", [kind for kind in ADDED if kind != "prefix"])
def test_it_starts_as_the_frozen_backbone_in_bfloat16(kind):
    frozen, backbone = (Backbone(make_model("nano").to(torch.bfloat16)) for _ in range(2))
    add_adapter(backbone, Adapter(kind=kind, **SMALL[kind]), seed=0)
    assert torch.equal(outputs(backbone), outputs(frozen))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(outputs(backbone), outputs(frozen))


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("model", "layout"), [("nano", "end"), ("nano", "stairs"), ("bert", "end")])
def test_packed_equals_separate(model, layout, kind):
    backbone = with_adapter(make_model(model), kind, **SMALL[kind])
    row = staircase() if layout == "stairs" else shared_end(backbone.causal)
    packed = outputs_and_gradients(backbone, row, "packed")
    assert largest_difference(packed, outputs_and_gradients(backbone, row, "separate")) < 1e-5
    if kind != "full":
        assert relative(packed[0], Backbone(make_model(model))(token_ids(row), row)) > 1e-3, "the adapters do nothing"


@pytest.mark.parametrize("kind", ADDED)
def test_packed_equals_separate_in_true_float64(kind):
    with true_float64():
        backbone = with_adapter(make_model("nano").double(), kind, **SMALL[kind])
        packed, separate = (outputs_and_gradients(backbone, staircase(), mode) for mode in ("packed", "separate"))
    assert packed[0].dtype == torch.float64
    assert {gradient.dtype for gradient in packed[1].values()} == {torch.float64}
    assert largest_difference(packed, separate) < 1e-12
    assert largest_parameter_difference(packed, separate) < 1e-10


@pytest.mark.parametrize("kind", ADDED)
def test_the_start_up_probe_packs_it(kind):
    assert choose_mode(with_adapter(make_model("nano"), kind, **SMALL[kind]), "require").mode == "packed"


@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize("model", LAYERS)
def test_every_trained_weight_gets_a_gradient(model, kind):
    backbone = with_adapter(make_model(model), kind, **SMALL[kind])
    _, gradients = outputs_and_gradients(backbone, shared_end(backbone.causal), "packed")
    assert gradients.keys() == trained(backbone).keys()
    assert min(float(gradient.norm()) for gradient in gradients.values()) > 0


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("mode", ["packed", "separate"])
@pytest.mark.parametrize("model", LAYERS)
def test_a_row_without_candidates_gives_zero_gradients(model, mode, kind):
    backbone = with_adapter(make_model(model), kind, **SMALL[kind])
    backbone.mode = mode
    layout = RequestLayout.from_lengths([3, 2], [[], []], [[], []], backbone.causal)
    backbone(token_ids(layout), layout, key=DropoutKey(0, 0), token_uids=token_ids(layout)).sum().backward()
    found = trained(backbone).values()
    assert found
    assert all(p.grad is not None and not p.grad.any() for p in found)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("model", "mode"), [("nano", "packed"), ("nano", "separate"), ("bert", "packed")])
def test_checkpointing_changes_no_result(model, mode, kind):
    dropout = {"dropout": 0.3} if kind in WITH_DROPOUT else {}
    plain, checkpointed = (with_adapter(make_model(model), kind, **SMALL[kind], **dropout) for _ in range(2))
    checkpointed.enable_checkpointing()
    layout = shared_end(plain.causal)
    named = {"key": DropoutKey(1, 7), "token_uids": uids_of(layout)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        expected = outputs_and_gradients(plain, layout, mode, **named)
        without, saved[:] = sum(saved), []
        found = outputs_and_gradients(checkpointed, layout, mode, **named)
    assert sum(saved) < without, "nothing was checkpointed"
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize("kind", WITH_DROPOUT)
@pytest.mark.parametrize("model", LAYERS)
def test_dropout_is_a_function_of_the_key_and_the_token(model, kind):
    backbone = with_adapter(make_model(model), kind, **SMALL[kind], dropout=0.3)
    layout = shared_end(backbone.causal)

    def run(step: int, mode: str = "packed"):
        return outputs_and_gradients(backbone, layout, mode, key=DropoutKey(1, step), token_uids=uids_of(layout))

    first = run(7)
    assert largest_difference(run(7), first) == 0
    assert largest_difference(run(7, "separate"), first) < 1e-5
    assert relative(run(8)[0], first[0]) > 1e-4
    with pytest.raises(ValueError, match="needs a DropoutKey"):
        backbone(token_ids(layout), layout)
    still = with_adapter(make_model(model), kind, **SMALL[kind])
    assert torch.equal(outputs(backbone.eval()), outputs(still.eval()))


@pytest.mark.parametrize("kind", ADDED)
def test_autocast_runs_packed_as_separate_with_weights_in_float32(kind):
    backbone = with_adapter(make_model("nano").to(torch.bfloat16), kind, **SMALL[kind])
    exact = with_adapter(make_model("nano"), kind, **SMALL[kind])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed, separate = (outputs_and_gradients(backbone, staircase(), mode) for mode in ("packed", "separate"))
    assert {gradient.dtype for gradient in packed[1].values()} == {torch.float32}
    assert largest_difference(packed, separate) < 5e-2
    assert relative(packed[0].float(), outputs_and_gradients(exact, staircase(), "packed")[0]) < 3e-2


@pytest.mark.parametrize("kind", ADDED)
def test_no_adapter_changes_the_checksum(kind):
    backbone = with_adapter(make_model("nano"), kind, **SMALL[kind])
    checksum = Backbone(make_model("nano")).checksum()
    assert backbone.checksum() == weights_checksum(backbone.model) == checksum
    with torch.no_grad():
        backbone.model.norm.weight[0] += 1e-6
    assert weights_checksum(backbone.model) != checksum


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora", "prefix", "bottleneck"])
def test_first_weights_depend_on_the_seed_alone(kind):
    found = []
    for seed in (0, 0, 1):
        backbone = Backbone(make_model("nano"))
        state = torch.random.get_rng_state()
        add_adapter(backbone, Adapter(kind=kind, **SMALL[kind]), seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(len(found) + 1)
        found.append(torch.cat([p.detach().flatten() for p in trained(backbone).values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


CHANGED = {"rank": 3, "alpha": 3.0, "dropout": 0.4, "targets": ["down_proj"], "top_layers": 1, "prefix_tokens": 2}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in SMALL for field in sorted(ADAPTER_FIELDS[kind]) if field != "orthogonality"],
)
def test_each_setting_changes_the_function_or_its_gradients(kind, field):
    """For `orthogonality` see test_adalora."""
    changed = {**CHANGED, "bottleneck_width": 2}[field]
    first, other = ({**SMALL[kind], **more} for more in ({}, {field: changed}))
    layout = shared_end()
    named = {"key": DropoutKey(1, 7), "token_uids": uids_of(layout)}
    found = [outputs_and_gradients(with_adapter(make_model("nano"), kind, **s), layout, "packed", **named)
             for s in (first, other)]  # fmt: skip
    shapes = [{name: gradient.shape for name, gradient in gradients.items()} for _, gradients in found]
    assert shapes[0] != shapes[1] or largest_parameter_difference(*found) > 1e-3
    assert relative(found[0][0], found[1][0]) > 1e-4 or kind == "full"


@pytest.mark.parametrize("kind", SMALL)
def test_more_layers_than_there_are(kind):
    with pytest.raises(ConfigError, match=r"adapter.top_layers is 3, but the backbone has only 2 layers"):
        with_adapter(make_model("nano"), kind, top_layers=3)


@pytest.mark.parametrize("kind", ADDED)
def test_models_with_transposed_linear_weights(kind):
    sizes = {"max_position_embeddings": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    others = {"bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": None}
    backbone = with_adapter(tiny("GPT2Config", **sizes, **others), kind, **SMALL[kind])
    packed, separate = (outputs_and_gradients(backbone, staircase(), mode) for mode in ("packed", "separate"))
    assert largest_difference(packed, separate) < 1e-5
    assert min(float(gradient.norm()) for gradient in packed[1].values()) > 0
