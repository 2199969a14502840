"""The door: what `adapter` in the config asks for is done to a backbone."""

from collections.abc import Callable

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters.adalora import add_adalora
from mtrec_ray.model.adapters.bottleneck import add_bottleneck
from mtrec_ray.model.adapters.dora import add_dora
from mtrec_ray.model.adapters.full import train_layers
from mtrec_ray.model.adapters.ia3 import add_ia3
from mtrec_ray.model.adapters.lora import add_lora
from mtrec_ray.model.adapters.prefix import add_prefix
from mtrec_ray.model.backbone import Backbone

_ADD: dict[str, Callable[[Backbone, Adapter, int], None]] = {
    "lora": add_lora,
    "dora": add_dora,
    "adalora": add_adalora,
    "ia3": add_ia3,
    "prefix": add_prefix,
    "bottleneck": add_bottleneck,
    "full": train_layers,
}


def add_adapter(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """Makes trainable what `adapter` says, in place; all else of the backbone is frozen.

    The first weights depend on `seed` alone, so every worker has the same, and are float32 whatever the precision of
    the frozen ones. Names of what is added are known to `model.backbone.is_added`.

    Raises:
        ConfigError: the backbone has not what the adapter needs.
    """
    backbone.model.requires_grad_(False)
    if adapter.kind != "frozen":
        _ADD[adapter.kind](backbone, adapter, seed)
