import pytest
import torch
from torch import nn

from mtrec_ray.config import Adapter
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.adapters.injection import ADAPTER
from mtrec_ray.model.backbone import Backbone
from tests.model.models import make_model, relative, with_adapter


def scaled(backbone: Backbone) -> set[str]:
    return {name.partition(".ia3_l")[0] for name, p in backbone.named_parameters() if p.requires_grad}


def test_keys_and_values_are_scaled_behind_and_the_feed_forward_before():
    """Section 3.3 of the paper, module by module."""
    backbone, frozen = with_adapter(make_model("nano"), "ia3"), make_model("nano")
    for name, inputs in (("self_attn.k_proj", 32), ("self_attn.v_proj", 32), ("mlp.down_proj", 96)):
        layer, weight = (m.get_submodule(f"layers.1.{name}") for m in (backbone.model, frozen))
        scale = layer.ia3_l[ADAPTER].flatten()
        x = torch.randn(5, inputs, generator=torch.Generator().manual_seed(0))
        expected = weight(scale * x) if name == "mlp.down_proj" else scale * weight(x)
        assert relative(layer(x), expected) < 1e-6
        assert relative(layer(x), weight(x)) > 1e-2


def test_in_bert_the_output_of_attention_is_not_scaled():
    names = {"attention.self.key", "attention.self.value", "output.dense"}
    assert scaled(with_adapter(make_model("bert"), "ia3")) == {
        f"model.encoder.layer.{layer}.{name}" for layer in (0, 1) for name in names
    }


def test_targets_that_are_given():
    backbone = with_adapter(make_model("nano"), "ia3", targets=["q_proj", "down_proj"], top_layers=1)
    assert scaled(backbone) == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"}
    assert backbone.model.layers[1].mlp.down_proj.is_feedforward
    assert not backbone.model.layers[1].self_attn.q_proj.is_feedforward
    assert len(scaled(with_adapter(make_model("nano"), "ia3", targets="all-linear"))) == 14


def test_an_architecture_without_telling_names_needs_targets():
    model = make_model("nano")
    for layer in model.layers:
        layer.self_attn.first, layer.self_attn.second = nn.Linear(32, 16), nn.Linear(32, 16)
        del layer.self_attn.k_proj, layer.self_attn.v_proj
    with pytest.raises(ConfigError, match=r"targets is auto, but no keys and values are found in a LlamaModel; name"):
        add_adapter(Backbone(model), Adapter(kind="ia3"), seed=0)
    add_adapter(Backbone(model), Adapter(kind="ia3", targets=["first", "second", "down_proj"]), seed=0)
    assert model.layers[0].self_attn.second.ia3_l[ADAPTER].shape == (16, 1)


def test_a_layer_without_a_feed_forward_needs_targets():
    model = make_model("nano")
    for layer in model.layers:
        layer.mlp = nn.Linear(32, 32)
    with pytest.raises(ConfigError, match=r"no feed-forward is found"):
        add_adapter(Backbone(model), Adapter(kind="ia3"), seed=0)
