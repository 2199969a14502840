"""Which modules of a backbone get adapters: by names the user gives, by the layer they are in, or by what they do."""

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mtrec_ray.errors import ConfigError
from mtrec_ray.model.layers import layer_stack

AUTO, ALL_LINEAR = "auto", "all-linear"

_KEYS_OR_VALUES = re.compile(r"(^|_)(k|v|key|value|w?q?kv|c_attn)(_|$)", re.IGNORECASE)
"""Within the last part of a name: k_proj, v_lin, key, value; fused: qkv_proj, Wqkv, query_key_value, GPT-2's c_attn."""


def find_targets(
    model: PreTrainedModel, targets: str | Sequence[str] = ALL_LINEAR, top_layers: int | None = None
) -> list[str]:
    """Full names of the linear modules that `targets` and `top_layers` choose, in the model's order.

    `targets`: `auto` or `all-linear` (every linear projection of every layer), a list of module names or of their
    endings, or one regular expression over whole names. Raises `ConfigError` if nothing is chosen.
    """
    linear = list(_linear_modules(model))
    if targets in (AUTO, ALL_LINEAR):
        chosen = _inside(linear, layer_names(model))
    elif isinstance(targets, str):
        chosen = [name for name in linear if re.fullmatch(targets, name)]
    else:
        chosen = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in targets)]
    if top_layers is not None:
        chosen = _inside(chosen, layer_names(model, top_layers))
    if not chosen:
        raise ConfigError(
            f"adapter.targets {targets!r} matches no linear module of the backbone; {_linear_names(model)}"
        )
    return chosen


def layer_names(model: PreTrainedModel, top_layers: int | None = None) -> list[str]:
    """Full names of the layers, or of the last n of them, from the lowest up. Raises `ConfigError`."""
    stack = layer_stack(model)
    layers = len(model.get_submodule(stack))  # type: ignore[arg-type]
    if top_layers is not None and top_layers > layers:
        raise ConfigError(f"adapter.top_layers is {top_layers}, but the backbone has only {layers} layers")
    first = 0 if top_layers is None else layers - top_layers
    return [f"{stack}.{number}" for number in range(first, layers)]


def keys_and_values(model: PreTrainedModel, top_layers: int | None = None) -> list[str]:
    """The linear modules that project to keys and values, together or apart; they are told by their names alone."""
    linear = _inside(_linear_modules(model), layer_names(model, top_layers))
    return [name for name in linear if _KEYS_OR_VALUES.search(name.rpartition(".")[2])]


def feed_forward_outputs(model: PreTrainedModel, top_layers: int | None = None) -> list[str]:
    """The linear modules that project a layer's feed-forward activations back to the hidden size.

    They are told by their shapes, whatever they are called: of a layer's modules with outputs of the hidden size those
    with the widest input, if it is wider than that. A layer with several experts has several, one without has none.
    """
    hidden = model.config.get_text_config().hidden_size
    linear = _linear_modules(model)
    found = []
    for layer in layer_names(model, top_layers):
        inputs = {name: linear[name][0] for name in _inside(linear, [layer]) if linear[name][1] == hidden}
        widest = max(inputs.values(), default=0)
        found += [name for name, width in inputs.items() if width == widest > hidden]
    return found


def _linear_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Numbers of input and output features by name; the weights' own shapes are not there at ZeRO-3."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            found[name] = module.nx, module.nf
    return found


def _inside(names: Sequence[str] | dict[str, tuple[int, int]], parents: Sequence[str]) -> list[str]:
    prefixes = tuple(f"{parent}." for parent in parents)
    return [name for name in names if name.startswith(prefixes)]


def _linear_names(model: nn.Module) -> str:
    linear = list(_linear_modules(model))
    endings = sorted({name.rpartition(".")[2] for name in linear})
    return f"its linear modules end in {', '.join(endings)}, as in {linear[0] if linear else 'none'}"
