"""Trials on one backbone copy are computed for LoRA alone; any other adapter would be computed wrongly."""

import pytest

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.stacked import StackedBackbone
from tests.model.adapters.kinds import SMALL
from tests.model.models import make_model


@pytest.mark.parametrize("kind", [*SMALL, "frozen"])
def test_other_kinds_are_refused(kind):
    stacked = StackedBackbone(Backbone(make_model("nano")))

    def adapt(backbone: Backbone) -> None:
        add_adapter(backbone, Adapter(kind=kind, **SMALL.get(kind, {})), seed=0)

    if kind in ("lora", "frozen"):
        stacked.slot(adapt)
    else:
        with pytest.raises(ValueError, match="other weights of the backbone than those of LoRA"):
            stacked.slot(adapt)
