"""LoRA and DoRA: that they are what PEFT computes, and that they can be merged into the frozen weights."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.adapters.injection import ADAPTER, low_rank_layers
from mtrec_ray.model.adapters.lora import merge, unmerge
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.dropout import DropoutKey
from tests.model.models import (
    largest_difference,
    make_model,
    outputs_and_gradients,
    relative,
    shared_end,
    tiny,
    token_ids,
    with_adapter,
)

GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": None
}  # fmt: skip


def model_of(name: str) -> nn.Module:
    return tiny("GPT2Config", **GPT2) if name == "gpt2" else make_model(name)


def outputs(backbone: Backbone) -> torch.Tensor:
    layout = shared_end(backbone.causal)
    with torch.no_grad():
        return backbone(token_ids(layout), layout)


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("name", ["nano", "gpt2"])
def test_merged_equals_unmerged(name, kind):
    backbone = with_adapter(model_of(name), kind, rank=4).eval()
    apart = outputs(backbone)
    merge(backbone.model)
    assert relative(outputs(backbone), apart) < 1e-5
    unmerge(backbone.model)
    assert relative(outputs(backbone), apart) < 1e-5
    assert relative(apart, outputs(Backbone(model_of(name)))) > 1e-2, "the adapters did nothing"


def test_the_scale_need_not_be_whole():
    backbone = with_adapter(make_model("nano"), "lora", rank=4, alpha=5.0)
    assert {layer.scaling[ADAPTER] for _, layer in low_rank_layers(backbone)} == {1.25}


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", ["nano", "bert", "gpt2"])
def test_it_is_what_peft_computes(name, kind):
    """With PEFT's own forward pass, which DoRA's is not here; `bert` and `gpt2` have biases."""
    ours = with_adapter(model_of(name), kind, rank=4, alpha=6.0)
    theirs = Backbone(model_of(name))
    targets = [module for module, _ in low_rank_layers(ours.model)]
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_dora=kind == "dora", fan_in_fan_out=name == "gpt2"
    )
    inject_adapter_in_model(config, theirs.model, ADAPTER)
    values = dict(ours.named_parameters())
    with torch.no_grad():
        for parameter, value in theirs.named_parameters():
            value.copy_(values[parameter])
    layout = shared_end(ours.causal)
    expected = outputs_and_gradients(theirs.train(), layout, "packed")
    assert largest_difference(outputs_and_gradients(ours, layout, "packed"), expected) < 1e-5


def one_linear(**settings) -> tuple[Backbone, nn.Module, torch.Tensor, torch.Tensor]:
    """A backbone, its one linear module under DoRA with rank 2, and that module's frozen weight and bias."""
    backbone = Backbone(make_model("bert"))
    name = "encoder.layer.1.output.dense"
    frozen = copy.deepcopy(backbone.model.get_submodule(name))
    add_adapter(backbone, Adapter(kind="dora", rank=2, alpha=3.0, targets=[name], **settings), seed=0)
    layer = backbone.model.get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in layer.parameters() if p.requires_grad):
            parameter += torch.rand(parameter.shape, generator=generator)
    return backbone, layer, frozen.weight.detach(), frozen.bias.detach()


def test_dora_is_equation_5_of_the_paper():
    _, layer, weight, bias = one_linear()
    down, up = (part[ADAPTER].weight for part in (layer.lora_A, layer.lora_B))
    length = layer.lora_magnitude_vector[ADAPTER].weight
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    whole = weight + 1.5 * up @ down
    expected = x @ (length[:, None] * whole / whole.norm(dim=1, keepdim=True).detach()).T + bias
    found = layer(x)
    assert relative(found, expected) < 1e-6
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    parameters = [down, up, length]
    gradients, reference = (torch.autograd.grad((out * direction).sum(), parameters) for out in (found, expected))
    assert max(relative(*pair) for pair in zip(gradients, reference, strict=True)) < 1e-5


def test_doras_dropout_is_of_what_the_update_reads_alone():
    backbone, layer, weight, bias = one_linear(dropout=0.5)
    down, up = (part[ADAPTER].weight for part in (layer.lora_A, layer.lora_B))
    length = layer.lora_magnitude_vector[ADAPTER].weight
    whole = weight + 1.5 * up @ down
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    layer.train()
    with backbone.dropout.use(DropoutKey(0, 0), torch.arange(7)):
        dropped, found = layer.lora_dropout[ADAPTER](x), layer(x)
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    update = x @ weight.T + 1.5 * dropped @ down.T @ up.T
    assert relative(found, update * (length / whole.norm(dim=1)) + bias) < 1e-6
