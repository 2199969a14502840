"""(IA)^3: trained scales of keys, values and feed-forward activations (Liu et al. 2022, arXiv 2205.05638), by PEFT."""

from typing import Any

from peft import IA3Config
from peft.tuners.ia3 import IA3Layer
from torch import Tensor, nn

from mtrec_ray.config import Adapter
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters.injection import inject
from mtrec_ray.model.adapters.targets import (
    AUTO,
    feed_forward_outputs,
    find_targets,
    keys_and_values,
)
from mtrec_ray.model.backbone import Backbone


def add_ia3(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """softmax(Q (l_k K)^T) (l_v V) and (l_ff f(W_1 x)) W_2, section 3.3; the scales start at 1, so `seed` is not used.

    A module that projects back from a feed-forward has its input scaled, any other its output. `auto` finds the modules
    in any architecture, by what they do (`targets.keys_and_values`, `targets.feed_forward_outputs`): PEFT's own table
    knows some, and in several of them it scales queries in the place of keys, in BERT two outputs of a layer. Where
    one module gives queries, keys and values together, the queries are scaled too.
    """
    model = backbone.model
    feed_forward = feed_forward_outputs(model, adapter.top_layers)
    if adapter.targets == AUTO:
        projections = keys_and_values(model, adapter.top_layers)
        if not projections or not feed_forward:
            lacking = "no feed-forward is" if projections else "no keys and values are"
            raise ConfigError(
                f"adapter.targets is auto, but {lacking} found in a {type(model).__name__}; name the linear modules "
                "that adapter.kind ia3 should scale, or take adapter.kind: lora"
            )
        targets = [*projections, *feed_forward]
    else:
        targets = find_targets(model, adapter.targets, adapter.top_layers)
    config = IA3Config(feedforward_modules=[name for name in feed_forward if name in targets])
    inject(model, config, targets, seed)
    for module in model.modules():
        if isinstance(module, IA3Layer):
            module.ia3_l = Scales(module.ia3_l)


class Scales(nn.ParameterDict):
    """PEFT's dictionary of scales. It reads them outside of any module's forward pass, where at ZeRO-3 they are not."""

    __call__ = nn.Module.__call__
    """Which torch forbids for dictionaries; it is what DeepSpeed gathers weights for."""

    def __getitem__(self, key: str) -> Any:
        return self(key)

    def forward(self, key: str) -> Tensor:
        scale: Tensor = super().__getitem__(key)
        return scale.clone()
