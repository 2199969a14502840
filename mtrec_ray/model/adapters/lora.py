"""LoRA: a trained low-rank update of each adapted linear module (Hu et al. 2021, arXiv 2106.09685), by PEFT."""

from peft import LoraConfig
from torch import nn

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters.injection import inject, low_rank_layers, set_dropout
from mtrec_ray.model.adapters.targets import find_targets
from mtrec_ray.model.backbone import Backbone


def add_lora(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """h = W x + (alpha / rank) B A dropout(x), section 4.1; B starts at 0."""
    targets = find_targets(backbone.model, adapter.targets, adapter.top_layers)
    inject(backbone.model, lora_config(adapter), targets, seed)
    set_dropout(backbone.model, adapter.dropout, backbone.dropout)


def lora_config(adapter: Adapter) -> LoraConfig:
    """PEFT's config, without dropout; DoRA for kind `dora`."""
    config = LoraConfig(r=adapter.rank, lora_dropout=0.0, bias="none", use_dora=adapter.kind == "dora")
    config.lora_alpha = adapter.alpha  # type: ignore[assignment]  # PEFT divides it by the rank, so it need not be whole
    return config


def merge(model: nn.Module) -> None:
    """Adds low-rank updates into the frozen weights, for serving; `unmerge` takes them out again, up to rounding."""
    for _, layer in low_rank_layers(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    for _, layer in low_rank_layers(model):
        layer.unmerge()
