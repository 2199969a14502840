"""Full fine-tuning: the backbone's own weights are trained, all of them or those of the last layers."""

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
