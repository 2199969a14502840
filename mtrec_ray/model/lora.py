"""Which weights of the backbone are trained: LoRA adapters (Hu et al. 2021, by PEFT), all, or none.

Adapters are injected into the model instead of wrapping it, so the model keeps its own interface. Their weights are
float32 whatever the backbone's, and their dropout is the stateless one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mtrec_ray.errors import BackboneError, ConfigError
from mtrec_ray.model.dropout import DropoutContext, StatelessDropout

ADAPTER = "default"
ALL_LINEAR = "all-linear"


def freeze(model: nn.Module) -> None:
    """Nothing is trained."""
    model.requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Everything is trained, in the precision the model was loaded in."""
    model.requires_grad_(True)


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str | Sequence[str] = ALL_LINEAR,
    top_layers: int | None = None,
    context: DropoutContext | None = None,
    seed: int = 0,
) -> list[str]:
    """Freezes `model` and adds trainable adapters to it in place; gives the names of the adapted modules.

    `targets`: `all-linear` (every linear projection of every layer), a list of module names or of their endings, or one
    regular expression over whole names. `top_layers` keeps the last n layers only. Rank 0 adds nothing. The first
    weights depend on `seed` alone, so every worker has the same. Raises `ConfigError`.
    """
    freeze(model)
    if rank == 0:
        return []
    names = find_targets(model, targets, top_layers)
    config = LoraConfig(r=rank, target_modules=names, lora_dropout=0.0, bias="none")
    config.lora_alpha = alpha  # type: ignore[assignment]  # PEFT divides it by the rank, so it need not be whole
    config.fan_in_fan_out = isinstance(model.get_submodule(names[0]), Conv1D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, layer in lora_layers(model):
        _set_precision(layer)
        if dropout:
            layer.lora_dropout[ADAPTER] = StatelessDropout(dropout, name, context or DropoutContext())
    return names


def find_targets(
    model: PreTrainedModel, targets: str | Sequence[str] = ALL_LINEAR, top_layers: int | None = None
) -> list[str]:
    """Full names of the linear modules that `targets` and `top_layers` choose, in the model's order."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    stack = layer_stack(model)
    if targets in (ALL_LINEAR, "auto"):
        chosen = [name for name in linear if name.startswith(f"{stack}.")]
    elif isinstance(targets, str):
        chosen = [name for name in linear if re.fullmatch(targets, name)]
    else:
        chosen = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in targets)]
    if top_layers is not None:
        layers = len(model.get_submodule(stack))  # type: ignore[arg-type]
        if top_layers > layers:
            raise ConfigError(f"adapter.top_layers is {top_layers}, but the backbone has only {layers} layers")
        kept = tuple(f"{stack}.{i}." for i in range(layers - top_layers, layers))
        chosen = [name for name in chosen if name.startswith(kept)]
    if not chosen:
        endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"adapter.targets {targets!r} matches no linear module of the backbone; "
            f"its linear modules end in {', '.join(endings)}, as in {linear[0] if linear else 'none'}"
        )
    return chosen


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Name and module of each adapted linear."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def merge(model: nn.Module) -> None:
    """Adds the adapters into the frozen weights, for serving; `unmerge` takes them out again, up to rounding."""
    for _, layer in lora_layers(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    for _, layer in lora_layers(model):
        layer.unmerge()


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trained weights by parameter name, on the host; empty for a frozen backbone.

    Under ZeRO-3 the weights lie in parts on the ranks: gather them by the same names instead.
    """
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def load_adapter_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `adapter_state`. Raises `BackboneError` if names or shapes are not those of the model."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    problems = [f"{name} is missing" for name in own.keys() - state.keys()]
    problems += [f"{name} is unknown" for name in state.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(p.shape)}"
        for name, p in own.items()
        if name in state and state[name].shape != p.shape
    ]
    if problems:
        raise BackboneError(
            f"the saved adapter does not fit this backbone and adapter config ({len(problems)} differences): "
            f"{'; '.join(sorted(problems)[:3])}. Use the config it was trained with."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def _set_precision(layer: LoraLayer) -> None:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    for part in (layer.lora_A, layer.lora_B):
        part.to(dtype=dtype, device=weight.device)


def layer_stack(model: PreTrainedModel) -> str:
    """Name of the list of the model's layers, as `layers` or `encoder.layer`."""
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name
    raise BackboneError(f"no list of {depth} layers found in {type(model).__name__}; name adapter.targets instead")
