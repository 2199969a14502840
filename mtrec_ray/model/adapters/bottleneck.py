"""Bottleneck adapters: small networks behind each feed-forward (Houlsby et al. 2019, arXiv 1902.00751).

PEFT has none. As in the paper an adapter reads the output of a sub-layer, after the projection back to the hidden size
and before the residual connection around the sub-layer, and adds to it. There is one to a layer, behind the
feed-forward, as Pfeiffer et al. (2020, arXiv 2005.00247) found to be enough; the paper has one behind attention too.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mtrec_ray.config import Adapter
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters.injection import trained_dtype
from mtrec_ray.model.adapters.targets import feed_forward_outputs, layer_names
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.dropout import StatelessDropout

NAME = "adapter_bottleneck"


def add_bottleneck(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """Makes the adapter a part of the module that projects back from the feed-forward, and a hook on it."""
    model = backbone.model
    places, layers = feed_forward_outputs(model, adapter.top_layers), layer_names(model, adapter.top_layers)
    if [name for name in layers for place in places if place.startswith(f"{name}.")] != layers:
        raise ConfigError(
            f"adapter.kind is bottleneck, but a {type(model).__name__} has {len(places)} linear modules that project "
            f"back from a feed-forward in {len(layers)} layers, where one in each is needed; take adapter.kind: lora"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for place in places:
            module: Any = model.get_submodule(place)
            dropout = StatelessDropout(adapter.dropout, f"{place}.{NAME}", backbone.dropout)
            part = Bottleneck(backbone.hidden_size, adapter.bottleneck_width, dropout, trained_dtype(model))
            module.add_module(NAME, part.to(module.weight.device))
            module.register_forward_hook(_adapt)


class Bottleneck(nn.Module):
    """h + W_up gelu(W_down dropout(h) + b_down) + b_up, with W_up and b_up 0 at the start: then it changes nothing."""

    def __init__(self, hidden_size: int, width: int, dropout: StatelessDropout, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.dropout = dropout
        self.down = nn.Linear(hidden_size, width, dtype=dtype)
        self.up = nn.Linear(width, hidden_size, dtype=dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] -> the same, in the precision of `hidden`."""
        inner = nn.functional.gelu(self.down(self.dropout(hidden.to(self._dtype))))
        update: Tensor = self.up(inner)
        return hidden + update.to(hidden.dtype)


def _adapt(module: Any, inputs: Any, output: Tensor) -> Tensor:
    adapted: Tensor = getattr(module, NAME)(output)
    return adapted
