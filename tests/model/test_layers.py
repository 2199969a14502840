import pytest

from mtrec_ray.errors import BackboneError
from mtrec_ray.model.layers import layer_stack, layers_above
from tests.model.models import make_model, tiny

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": 32}
BLOOM = {"n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("model", "stack", "below", "above"),
    [
        (make_model("nano"), "layers", "embed_tokens.", "norm.weight"),
        (tiny("BertConfig"), "encoder.layer", "embeddings.", "pooler."),
        (tiny("GPT2Config", **GPT2), "h", "w", "ln_f."),
        (tiny("OPTConfig", **OPT), "decoder.layers", "decoder.embed_", "decoder.final_layer_norm."),
        (tiny("BloomConfig", **BLOOM), "h", "word_embeddings", "ln_f."),
    ],
    ids=["nano", "bert", "gpt2", "opt", "bloom"],
)
def test_layers_above_each_weight(model, stack, below, above):
    """In OPT the last norm comes before the layers; in BLOOM and BERT a norm belongs to the embeddings."""
    assert layer_stack(model) == stack
    expected = {f"{stack}.0.": 1, f"{stack}.1.": 0, below: 2, above: 0}
    seen = set()
    for name, _ in model.named_parameters():
        found = [prefix for prefix in expected if name.startswith(prefix)]
        assert len(found) == 1, name
        assert layers_above(model, name) == expected[found[0]], name
        seen.add(found[0])
    assert seen == expected.keys()


def test_an_adapter_is_in_the_layer_it_is_put_into():
    model = make_model("nano")
    assert layers_above(model, "layers.0.self_attn.q_proj.lora_A.default.weight") == 1
    assert layers_above(model, "layers.1.adapter_of_some_kind.key") == 0


def test_a_model_that_shares_one_layer_has_no_list_of_them():
    with pytest.raises(BackboneError, match=r"no list of 2 layers found in AlbertModel, which .* need; choose another"):
        layer_stack(tiny("AlbertConfig", embedding_size=16))
