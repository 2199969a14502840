"""Which of the backbone's own weights are trained."""

import pytest

from mtrec_ray.model.layers import layer_stack
from tests.model.models import make_model, tiny, with_adapter

OPT = {"word_embed_proj_dim": 32, "ffn_dim": 64, "pad_token_id": 0, "num_key_value_heads": None}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}


def trained(model, **settings) -> set[str]:
    backbone = with_adapter(model, "full", **settings)
    return {name.removeprefix("model.") for name, p in backbone.named_parameters() if p.requires_grad}


def test_all_of_them():
    model = make_model("nano")
    assert trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("model", "norms"),
    [
        (lambda: make_model("nano"), {"norm.weight"}),
        (lambda: make_model("bert"), set()),
        (lambda: tiny("GPT2Config", **GPT2), {"ln_f.weight", "ln_f.bias"}),
        (lambda: tiny("OPTConfig", **OPT), {"decoder.final_layer_norm.weight", "decoder.final_layer_norm.bias"}),
    ],
)
def test_the_last_layer_and_the_norm_after_it(model, norms):
    stack = layer_stack(model())
    own = {name for name, _ in model().named_parameters() if name.startswith(f"{stack}.1.")}
    assert own
    assert trained(model(), top_layers=1) == own | norms


def test_as_many_as_there_are_leave_out_the_embeddings_alone():
    model = make_model("nano")
    assert {name for name, _ in model.named_parameters()} - trained(model, top_layers=2) == {"embed_tokens.weight"}


def test_nothing():
    backbone = with_adapter(make_model("nano"), "frozen")
    assert not any(p.requires_grad for p in backbone.parameters())
