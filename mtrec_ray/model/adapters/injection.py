"""PEFT's adapters, put into the model instead of around it, so that the model keeps its own interface.

What all of them have in common here: first weights that depend on a seed alone, float32 whatever the backbone's
precision, and the stateless dropout in the place of PEFT's, which draws from a random state.
"""

from collections.abc import Iterator, Sequence

import torch
from peft import IA3Config, LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mtrec_ray.model.dropout import DropoutContext, StatelessDropout

ADAPTER = "default"
"""PEFT's name for the adapter; ours is the only one."""


def inject(model: PreTrainedModel, config: LoraConfig | IA3Config, targets: Sequence[str], seed: int) -> None:
    """Puts the adapters of `config` on the modules called `targets`. Nothing else of the model is trained."""
    config.target_modules = set(targets)  # type: ignore[assignment]  # which PEFT makes of a list
    config.fan_in_fan_out = isinstance(model.get_submodule(targets[0]), Conv1D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT gives it the precision of the module it is on
            parameter.data = parameter.data.to(trained_dtype(model))


def trained_dtype(model: PreTrainedModel) -> torch.dtype:
    return torch.float64 if model.dtype == torch.float64 else torch.float32


def low_rank_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Name and module of each linear with a low-rank update (`lora`, `dora`, `adalora`)."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def set_dropout(model: nn.Module, dropout: float, context: DropoutContext) -> None:
    """Drops features of what the low-rank updates read."""
    for name, layer in low_rank_layers(model):
        if dropout:
            layer.lora_dropout[ADAPTER] = StatelessDropout(dropout, name, context)
