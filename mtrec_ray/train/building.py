"""The backbone as a run asks for it: its weights, and which of them are trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtrec_ray.config import Run, Stage
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.base import Engine, build_engine
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.adapters.full import store_frozen_in_bfloat16
from mtrec_ray.model.backbone import Backbone, is_causal, load_config
from mtrec_ray.model.probe import choose_mode
from mtrec_ray.model.recommender import Recommender, frozen_dtype
from mtrec_ray.train.pretrained import NANO, NONE, starting_model


def reads_causally(run: Run) -> bool:
    """Whether batches are laid out for a decoder; known before any weight is loaded."""
    if run.backbone.name in (NANO, NONE):
        return True
    return is_causal(load_config(run.backbone.name).get_text_config())


@dataclass(frozen=True)
class BackboneBuilder:
    """Called by the engine, once or more; gives None for `backbone: none`."""

    run: Run
    prepared: str
    manifest: Manifest

    def __call__(self) -> nn.Module | None:
        backbone = self.bare(self.run.engine.activation_checkpointing)
        if backbone is not None:
            adapt(backbone, self.run)
        return backbone

    def bare(self, checkpointing: bool = False) -> Backbone | None:
        """The frozen backbone without adapters."""
        run = self.run
        if run.backbone.name == NONE:
            return None
        model = starting_model(run, self.prepared, self.manifest, frozen_dtype(run))
        return Backbone(model, pooling=run.backbone.pooling, checkpointing=checkpointing)


def adapt(backbone: Backbone, run: Run) -> None:
    """Makes trainable what `adapter` says, in place; with `engine.precision: bf16` all else is bfloat16 then."""
    add_adapter(backbone, run.adapter, run.seed)
    if run.engine.precision == "bf16" and run.adapter.kind == "full":
        store_frozen_in_bfloat16(backbone)


def open_engine(
    run: Run,
    manifest: Manifest,
    device: torch.device,
    build_backbone: Callable[[], nn.Module | None],
    stage: Stage = Stage(until=1.0),  # noqa: B008 - frozen
    catalogue: Catalogue | None = None,
) -> tuple[Engine, str | None]:
    """The engine with the whole model in it; and where requests are not packed, a note for the user.

    `stage`: what is trained; all that the run ever trains by default. `catalogue`: of the prepared data, if it has one.

    Packing is chosen here and not earlier, for at ZeRO-3 only the engine can run the model.
    """
    engine = build_engine(
        run, lambda: Recommender(build_backbone(), manifest, run, catalogue).train_stage(stage), device
    )
    backbone: Any = engine.model.backbone
    return engine, None if backbone is None else choose_mode(backbone, run.backbone.packing).note
