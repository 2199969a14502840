import pytest
import torch
from torch import nn

from mtrec_ray.config import Adapter
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.dropout import DropoutKey
from tests.model.models import make_model, relative, tiny, with_adapter


@pytest.mark.parametrize(("model", "place"), [("nano", "layers.0.mlp"), ("bert", "encoder.layer.0.output.dense")])
def test_it_adds_to_the_output_of_the_feed_forward(model, place):
    """Before the residual connection, and in BERT before the norm: section 2.1 of Houlsby et al."""
    backbone, frozen = with_adapter(make_model(model), "bottleneck", bottleneck_width=5), make_model(model)
    module, plain = (m.get_submodule(place) for m in (backbone.model, frozen))
    part = next(child for name, child in module.named_modules() if name.endswith("adapter_bottleneck"))
    x = torch.randn(6, 32 if model == "nano" else 64, generator=torch.Generator().manual_seed(0))
    hidden = plain(x)
    inner = torch.nn.functional.gelu(hidden @ part.down.weight.T + part.down.bias)
    assert relative(module(x), hidden + inner @ part.up.weight.T + part.up.bias) < 1e-6
    assert relative(module(x), hidden) > 1e-2


def test_its_dropout_is_of_what_it_reads():
    backbone = with_adapter(make_model("nano"), "bottleneck", dropout=0.5)
    part = backbone.model.layers[0].mlp.down_proj.adapter_bottleneck
    hidden = torch.randn(4, 32)
    with backbone.dropout.use(DropoutKey(0, 0), torch.arange(4)):
        dropped, found = part.dropout(hidden), part(hidden)
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    expected = hidden + part.up(torch.nn.functional.gelu(part.down(dropped)))
    assert torch.equal(found, expected)


def test_dropouts_of_two_layers_differ():
    backbone = with_adapter(make_model("nano"), "bottleneck", dropout=0.5)
    first, second = (layer.mlp.down_proj.adapter_bottleneck for layer in backbone.model.layers)
    with backbone.dropout.use(DropoutKey(0, 0), torch.arange(4)):
        assert not torch.equal(first.dropout(torch.ones(4, 32)), second.dropout(torch.ones(4, 32)))


def test_a_layer_with_experts_is_refused():
    model = make_model("nano")
    model.layers[1].mlp.experts = nn.ModuleList(nn.Linear(96, 32) for _ in range(2))
    with pytest.raises(ConfigError, match=r"has 4 linear modules that project back from a feed-forward in 2 layers"):
        add_adapter(Backbone(model), Adapter(kind="bottleneck"), seed=0)


def test_a_model_of_experts_is_refused():
    model = tiny("Qwen3MoeConfig", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)
    with pytest.raises(ConfigError, match=r"where one in each is needed; take adapter.kind: lora"):
        add_adapter(Backbone(model), Adapter(kind="bottleneck"), seed=0)
