"""Prefix tuning: trained keys and values in each layer, which every token sees (Li & Liang 2021, arXiv 2101.00190).

The definition, for packed rows and for separate sequences alike: in layer l a token attends to the P trained keys and
values of the layer, and to whatever it would attend to without them, under one softmax. History and candidate tokens
do so alike, in decoders and encoders; no prefix attends to anything. A prefix has no position: its keys are trained as
attention compares them, without a rotary embedding, no window cuts them off, and the positions of tokens stay as they
are. So a candidate's output still depends on its own history and tokens alone.

Attention itself is in `model.attention`; PEFT's prefixes go through a key-value cache, which packed rows do not have.
Li & Liang train through a reparametrisation, a network that is thrown away afterwards; here the keys and values
themselves are the weights, as in PEFT's default.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtrec_ray.config import Adapter
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters.injection import trained_dtype
from mtrec_ray.model.adapters.targets import layer_names
from mtrec_ray.model.attention import UnsupportedAttentionError
from mtrec_ray.model.backbone import Backbone

NAME = "adapter_prefix"


def add_prefix(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """Makes the prefix a part of each layer, and a hook that hands it to the layer's attention.

    Raises:
        ConfigError: a layer without attention, or attention that takes no prefix.
    """
    model = backbone.model
    names = layer_names(model, adapter.top_layers)
    _check_layers(model, len(names))
    try:
        backbone.attend_to_prefixes()
    except UnsupportedAttentionError as error:
        raise ConfigError(_refusal(model, str(error))) from error
    heads, width = _key_shape(model.config.get_text_config())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            layer: Any = model.get_submodule(name)
            device = next(layer.parameters()).device
            layer.add_module(NAME, Prefix(heads, adapter.prefix_tokens, width).to(device, trained_dtype(model)))
            layer.register_forward_pre_hook(_hand_over, with_kwargs=True)


class Prefix(nn.Module):
    """Keys and values [heads, tokens, width] of one layer.

    The values start at 0 and the keys at random, so that tokens can become different ones. No finite key leaves
    attention as it is: at the start the prefix takes a share of each token's attention, and gives nothing for it.
    """

    def __init__(self, heads: int, tokens: int, width: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.randn(heads, tokens, width))
        self.value = nn.Parameter(torch.zeros(heads, tokens, width))

    def forward(self) -> Tensor:
        """[2, heads, tokens, width]; a copy, for at ZeRO-3 the weights are here only while this runs."""
        return torch.stack([self.key, self.value])


def _hand_over(layer: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return inputs, keywords | {"request_prefix": getattr(layer, NAME)()}


def _check_layers(model: PreTrainedModel, count: int) -> None:
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    without = [kind for kind in kinds[-count:] if kind == "linear_attention" or not kind.endswith("attention")]
    if without:
        raise ConfigError(_refusal(model, f"it has layers of type {without[0]}"))


def _refusal(model: PreTrainedModel, reason: str) -> str:
    return (
        f"adapter.kind is prefix, but a {type(model).__name__} takes no prefix: {reason}. Take adapter.kind: lora or "
        "bottleneck."
    )


def _key_shape(config: Any) -> tuple[int, int]:
    """Heads of keys and values, and features of each."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
