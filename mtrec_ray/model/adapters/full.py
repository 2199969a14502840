"""Full fine-tuning: the backbone's own weights are trained, all of them or those of the last layers."""

from typing import Any

import torch

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters.targets import layer_names
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.layers import layers_above


def train_layers(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """With `top_layers` k the last k layers and what follows them, as a decoder's last norm. `seed` is not used."""
    model, top = backbone.model, adapter.top_layers
    if top is None:
        model.requires_grad_(True)
        return
    layer_names(model, top)  # raises if there are not so many
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layers_above(model, name) < top)


def store_frozen_in_bfloat16(backbone: Backbone) -> None:
    """In place, after `train_layers`: half the memory of what is not trained.

    Under autocast a linear layer computes the same with it to the last bit, for it would cast its weight to bfloat16
    anyhow. What goes from layer to layer is bfloat16 then, as with adapters, whose models are loaded so. Weights that
    the architecture keeps in float32 stay so. ZeRO-3 has split the weights while they were loaded; then it is each
    rank's part (`ds_tensor`) that is stored.
    """
    model: Any = backbone.model
    kept = set(model._keep_in_fp32_modules_strict or ())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not kept.isdisjoint(name.split(".")):
            continue
        parameter.data = parameter.data.to(torch.bfloat16)
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data = parameter.ds_tensor.data.to(torch.bfloat16)
