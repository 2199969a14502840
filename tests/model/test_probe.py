import pytest
import torch

from mtrec_ray.errors import BackboneError
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.probe import choose_mode
from tests.model.models import shared_end, tiny, token_ids

PACKED = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3 with windows": ("Qwen3Config", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "mistral with a window": ("MistralConfig", {"sliding_window": 6}),
    "gemma3 with windows": ("Gemma3TextConfig", {"sliding_window": 6}),
    "bert": ("BertConfig", {}),
    "roberta, positions from 2": ("RobertaConfig", {}),
}
SEPARATE = {
    "gemma2, soft cap": ("Gemma2Config", {"attn_logit_softcapping": 5.0}, "takes softcap"),
    "gpt-oss, sinks": ("GptOssConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}, "takes s_aux"),
    "llama4, chunks": (
        "Llama4TextConfig",
        {"attention_chunk_size": 8, "intermediate_size_mlp": 64, "pad_token_id": 0, "num_local_experts": 2},
        "chunks of 8",
    ),
    "lfm2, convolution": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, "carry state"),
    "mamba, state space": ("MambaConfig", {"state_size": 8}, "carry state"),
    "bloom, own attention": ("BloomConfig", {"n_layer": 2, "n_head": 4}, "attention interface"),
}


@pytest.mark.parametrize("name", PACKED)
def test_models_that_can_be_packed(name):
    config, settings = PACKED[name]
    result = choose_mode(Backbone(tiny(config, **settings), mode="separate"))
    assert result.mode == "packed"
    assert result.reason is None
    assert result.difference < 1e-5


@pytest.mark.parametrize("name", SEPARATE)
def test_models_that_cannot_be_packed_fall_back_with_the_reason(name):
    config, settings, reason = SEPARATE[name]
    backbone = Backbone(tiny(config, **settings), mode="separate")
    result = choose_mode(backbone)
    assert (result.mode, backbone.mode) == ("separate", "separate")
    assert reason in result.reason
    assert type(backbone.model).__name__ in result.reason
    hidden = backbone(token_ids(shared_end()), shared_end())
    assert hidden.shape == (6, 32)
    assert hidden.isfinite().all()


@pytest.mark.parametrize(("config", "mode"), [("LlamaConfig", "packed"), ("Lfm2Config", "separate")])
def test_bfloat16_hides_neither(config, mode):
    settings = {"layer_types": ["conv", "full_attention"]} if config == "Lfm2Config" else {}
    backbone = Backbone(tiny(config, torch.bfloat16, initializer_range=0.02, **settings))
    assert choose_mode(backbone).mode == mode


def test_packing_can_be_required():
    backbone = Backbone(tiny("Gemma2Config"), mode="separate")
    with pytest.raises(BackboneError, match=r"Gemma2Model cannot be packed: .*softcap.*backbone.packing: auto"):
        choose_mode(backbone, "require")


def test_packing_can_be_off():
    result = choose_mode(Backbone(tiny("LlamaConfig")), "off")
    assert (result.mode, result.difference) == ("separate", None)


def test_the_probe_leaves_training_mode_and_gradients_alone():
    backbone = Backbone(tiny("LlamaConfig")).train()
    choose_mode(backbone)
    assert backbone.training
    assert all(p.grad is None for p in backbone.parameters())
