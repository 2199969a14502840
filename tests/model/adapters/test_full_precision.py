"""`adapter.kind: full` in bfloat16: what is trained is float32, the frozen layers below it are not."""

import pytest
import torch
from torch import Tensor

from mtrec_ray.model.adapters.full import store_frozen_in_bfloat16
from mtrec_ray.model.backbone import Backbone, load_model
from mtrec_ray.model.layers import layers_above
from mtrec_ray.model.recommender import Recommender, frozen_dtype
from mtrec_ray.train.building import adapt
from tests.batches import make_manifest, make_run, make_steps
from tests.model.models import make_model, tiny, with_adapter
from tests.training import CPU, backward, build_engine, distance, make_objective, small_model

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
TOP = ("engine.name=plain", "adapter.kind=full", "adapter.top_layers=1", "engine.precision=bf16")


@pytest.mark.parametrize("model", [lambda: make_model("nano"), lambda: tiny("GPT2Config", **GPT2)])
def test_only_the_frozen_layers_are_bfloat16_and_trained_weights_are_those_of_the_file(model) -> None:
    before = dict(model().named_parameters())
    backbone = with_adapter(model(), "full", top_layers=1)
    checksum = backbone.checksum()
    store_frozen_in_bfloat16(backbone)
    for name, parameter in backbone.model.named_parameters():
        top = layers_above(backbone.model, name) < 1
        assert parameter.dtype == (torch.float32 if top else torch.bfloat16), name
        assert torch.equal(parameter, before[name].to(parameter.dtype)), name
    assert backbone.checksum() == checksum  # of the file


def test_what_an_architecture_keeps_in_float32_stays_so() -> None:
    backbone = with_adapter(make_model("nano"), "full", top_layers=1)
    backbone.model._keep_in_fp32_modules_strict = {"input_layernorm"}
    store_frozen_in_bfloat16(backbone)
    first = backbone.model.layers[0]
    assert first.input_layernorm.weight.dtype == torch.float32
    assert first.post_attention_layernorm.weight.dtype == torch.bfloat16


def trained_once(folder: str, mixed: bool) -> tuple[set[torch.dtype], dict[str, Tensor]]:
    """Types of the frozen weights, and gradients of one step."""
    run = make_run(*TOP)

    def build() -> Recommender:
        backbone = Backbone(load_model(folder, frozen_dtype(run)))
        whole = run if mixed else run.model_copy(update={"engine": run.engine.model_copy(update={"precision": "fp32"})})
        adapt(backbone, whole)
        return Recommender(backbone, make_manifest(), run)

    engine = build_engine(run, build, CPU)
    (step,) = make_steps(1, tokens=True)
    backward(engine, step.batches, make_objective(run))
    frozen = {p.dtype for p in engine.model.backbone.parameters() if not p.requires_grad}
    return frozen, engine.gradients()


def test_a_step_is_the_same_but_for_the_noise_of_bfloat16(tmp_path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    types, mixed = trained_once(str(tmp_path), mixed=True)
    whole_types, whole = trained_once(str(tmp_path), mixed=False)
    assert (types, whole_types) == ({torch.bfloat16}, {torch.float32})
    assert any("layers.1." in name for name in mixed)
    assert 0 < distance(mixed, whole) < 0.02  # bfloat16 has 8 bits: 0.004 a rounding
    in_backbone = [{n: g for n, g in found.items() if n.startswith("backbone.")} for found in (mixed, whole)]
    assert distance(*in_backbone) < 0.03
