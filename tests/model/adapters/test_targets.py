import pytest
import torch
from torch import nn

from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters.targets import feed_forward_outputs, find_targets, keys_and_values, layer_names
from tests.model.models import make_model, tiny

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
SMALL_BERT = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
ENCODER = {"num_key_value_heads": None, "head_dim": None}
ARCHITECTURES = {
    "LlamaConfig": ({}, ["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]),
    "Qwen3Config": ({}, ["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]),
    "Phi3Config": ({"pad_token_id": 0}, ["self_attn.qkv_proj"], ["mlp.down_proj"]),
    "GPTNeoXConfig": (ENCODER, ["attention.query_key_value"], ["mlp.dense_4h_to_h"]),
    "BertConfig": ({}, ["attention.self.key", "attention.self.value"], ["output.dense"]),
    "DistilBertConfig": (SMALL_BERT, ["attention.k_lin", "attention.v_lin"], ["ffn.lin2"]),
    "ModernBertConfig": ({"pad_token_id": 0}, ["attn.Wqkv"], ["mlp.Wo"]),
}


def test_targets_by_default_are_all_linear_projections():
    names = find_targets(make_model("nano"))
    assert {name.rsplit(".", 1)[-1] for name in names} == LLAMA
    assert len(names) == 2 * len(LLAMA)
    assert find_targets(make_model("nano"), "auto") == names
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_values_and_feed_forwards_are_found_in_any_architecture(architecture):
    settings, projections, feed_forward = ARCHITECTURES[architecture]
    model = tiny(architecture, **settings)
    for top, layers in ((None, layer_names(model)), (1, layer_names(model)[-1:])):
        assert keys_and_values(model, top) == [f"{layer}.{name}" for layer in layers for name in projections]
        assert feed_forward_outputs(model, top) == [f"{layer}.{name}" for layer in layers for name in feed_forward]


def test_each_expert_has_a_feed_forward():
    model = make_model("nano")
    for layer in model.layers:
        layer.mlp.experts = nn.ModuleList(nn.Linear(96, 32) for _ in range(2))
    assert feed_forward_outputs(model, 1) == [
        "layers.1.mlp.down_proj",
        "layers.1.mlp.experts.0",
        "layers.1.mlp.experts.1",
    ]


def test_a_projection_of_the_hidden_size_is_no_feed_forward():
    model = make_model("nano")
    for layer in model.layers:
        layer.mlp.down_proj = nn.Linear(32, 32, dtype=torch.float32)
    assert feed_forward_outputs(model) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["query"]}, r"adapter.targets \['query'\] matches no linear module.*end in down_proj, gate_proj"),
        ({"targets": "q_proj"}, "adapter.targets 'q_proj' matches no linear module"),
        ({"top_layers": 3}, "adapter.top_layers is 3, but the backbone has only 2 layers"),
        ({"targets": r"layers\.0\..*_proj", "top_layers": 1}, "matches no linear module"),
    ],
)
def test_targets_that_do_not_exist(settings, message):
    with pytest.raises(ConfigError, match=message):
        find_targets(make_model("nano"), **settings)
