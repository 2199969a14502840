import pytest
import torch

from mtrec_ray.errors import BackboneError, ConfigError
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.lora import (
    adapter_state,
    add_lora,
    find_targets,
    freeze,
    load_adapter_state,
    merge,
    unfreeze,
    unmerge,
)
from tests.model.models import make_model, relative, staircase, tiny, token_ids, with_lora

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def outputs(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone(token_ids(staircase()), staircase())


def test_at_its_start_a_backbone_with_adapters_is_the_backbone():
    backbone = Backbone(make_model("nano"))
    before = outputs(backbone)
    add_lora(backbone.model, rank=4, alpha=8.0)
    assert torch.equal(outputs(backbone), before)


def test_only_adapters_are_trained():
    backbone = with_lora(make_model("nano"))
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in backbone.named_parameters() if "lora_" in name}
    assert len(trained) == 2 * len(LLAMA) * 2


def test_merged_equals_unmerged():
    backbone = with_lora(make_model("nano")).eval()
    apart = outputs(backbone)
    merge(backbone.model)
    assert relative(outputs(backbone), apart) < 1e-5
    unmerge(backbone.model)
    assert relative(outputs(backbone), apart) < 1e-6
    assert relative(apart, outputs(Backbone(make_model("nano")))) > 1e-2, "the adapters did nothing"


def test_adapters_are_saved_and_loaded_by_name():
    trained, fresh = with_lora(make_model("nano")), Backbone(make_model("nano"))
    add_lora(fresh.model, rank=4, alpha=8.0)
    load_adapter_state(fresh, adapter_state(trained))
    assert torch.equal(outputs(fresh), outputs(trained))


def test_an_adapter_of_another_shape_is_refused():
    trained, other = with_lora(make_model("nano")), with_lora(make_model("nano"), rank=2)
    with pytest.raises(BackboneError, match=r"28 differences.*lora_A.default.weight is \(4, 32\), not \(2, 32\)"):
        load_adapter_state(other, adapter_state(trained))
    state = adapter_state(trained)
    state.pop(next(iter(state)))
    with pytest.raises(BackboneError, match="is missing"):
        load_adapter_state(trained, state)


def test_first_weights_depend_on_the_seed_alone():
    states = []
    for seed in (0, 0, 1):
        backbone = Backbone(make_model("nano"))
        torch.rand(len(states))
        add_lora(backbone.model, rank=4, alpha=8.0, seed=seed)
        states.append(adapter_state(backbone))
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_targets_by_default_are_all_linear_projections():
    names = find_targets(make_model("nano"))
    assert {name.rsplit(".", 1)[-1] for name in names} == LLAMA
    assert len(names) == 2 * len(LLAMA)
    bert = find_targets(tiny("BertConfig"))
    assert all(name.startswith("encoder.layer.") for name in bert), "the pooler gets no gradient"
    assert len(bert) == 12


def test_targets_by_name_by_expression_and_by_layer():
    model = make_model("nano")
    assert find_targets(model, ["q_proj", "v_proj"], top_layers=1) == [
        "layers.1.self_attn.q_proj",
        "layers.1.self_attn.v_proj",
    ]
    assert find_targets(model, r"layers\.0\..*_proj") == [n for n in find_targets(model) if n.startswith("layers.0.")]


def test_gpt2_keeps_its_linear_weights_transposed():
    backbone = with_lora(tiny("GPT2Config", max_position_embeddings=128, n_embd=32, n_layer=2, n_head=4)).eval()
    apart = outputs(backbone)
    merge(backbone.model)
    assert relative(outputs(backbone), apart) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["query"]}, r"adapter.targets \['query'\] matches no linear module.*end in down_proj, gate_proj"),
        ({"targets": "q_proj"}, "adapter.targets 'q_proj' matches no linear module"),
        ({"top_layers": 3}, "adapter.top_layers is 3, but the backbone has only 2 layers"),
    ],
)
def test_targets_that_do_not_exist(settings, message):
    with pytest.raises(ConfigError, match=message):
        add_lora(make_model("nano"), rank=4, alpha=8.0, **settings)


def test_frozen_full_and_rank_zero():
    model = make_model("nano")
    assert add_lora(model, rank=0, alpha=8.0) == []
    assert adapter_state(model) == {}
    unfreeze(model)
    assert len(adapter_state(model)) == len(list(model.parameters()))
    freeze(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_scaling_need_not_be_whole():
    backbone = with_lora(make_model("nano"), rank=4, alpha=5.0)
    assert {layer.scaling["default"] for layer in backbone.modules() if hasattr(layer, "lora_A")} == {1.25}
