import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, T5Config

from mtrec_ray.config import Adapter
from mtrec_ray.errors import BackboneError
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.backbone import Backbone, load_model
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.model.nano import build_nano, train_tokenizer
from tests.model.models import (
    VOCABULARY,
    largest_difference,
    largest_parameter_difference,
    make_model,
    no_history,
    outputs_and_gradients,
    relative,
    shared_end,
    staircase,
    tiny,
    token_ids,
    true_float64,
    with_lora,
)

CASES = [
    ("nano", "shared_end"),
    ("nano", "staircase"),
    ("stories", "shared_end"),
    ("stories", "staircase"),
    ("bert", "shared_end"),
    ("nano", "no_history"),
    ("bert", "no_history"),
]


def make_layout(name: str, causal: bool) -> RequestLayout:
    return staircase() if name == "staircase" else {"shared_end": shared_end, "no_history": no_history}[name](causal)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_packed_equals_separate_in_float32(model, layout):
    backbone = with_lora(make_model(model))
    row = make_layout(layout, backbone.causal)
    packed = outputs_and_gradients(backbone, row, "packed")
    assert largest_difference(packed, outputs_and_gradients(backbone, row, "separate")) < 1e-5


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_packed_equals_separate_in_true_float64(model, layout):
    with true_float64():
        backbone = with_lora(make_model(model).double())
        row = make_layout(layout, backbone.causal)
        packed = outputs_and_gradients(backbone, row, "packed")
        separate = outputs_and_gradients(backbone, row, "separate")
        assert packed[0].dtype == torch.float64
        assert largest_difference(packed, separate) < 1e-12
        assert largest_parameter_difference(packed, separate) < 1e-10


def test_separate_is_what_the_plain_model_gives_each_sequence():
    model, layout = make_model("nano"), staircase()
    ids, batch = token_ids(layout), layout.separate()
    expected = [
        model(ids[t[p]][None]).last_hidden_state[0, -1] for t, p in zip(batch.tokens, batch.present, strict=True)
    ]
    separate = Backbone(model, mode="separate")(ids, layout)
    assert relative(separate, torch.stack(expected)) < 1e-6


def test_full_fine_tuning_has_the_same_gradients_packed_and_separate():
    backbone = Backbone(make_model("nano")).train()
    add_adapter(backbone, Adapter(kind="full"), seed=0)
    packed = outputs_and_gradients(backbone, staircase(), "packed")
    assert len(packed[1]) == len(list(backbone.parameters()))
    assert largest_difference(packed, outputs_and_gradients(backbone, staircase(), "separate")) < 1e-5


@pytest.mark.parametrize(("model", "mode"), [("nano", "packed"), ("nano", "separate"), ("bert", "packed")])
def test_checkpointing_changes_no_result(model, mode):
    plain, checkpointed = with_lora(make_model(model)), with_lora(make_model(model))
    checkpointed.enable_checkpointing()
    layout = shared_end(plain.causal)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        expected = outputs_and_gradients(plain, layout, mode)
        without, saved[:] = sum(saved), []
        found = outputs_and_gradients(checkpointed, layout, mode)
    assert sum(saved) < without, "nothing was checkpointed"
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize("mode", ["packed", "separate"])
@pytest.mark.parametrize("model", ["nano", "bert"])
@pytest.mark.parametrize("histories", [[], [3, 2]], ids=["no request", "no candidate"])
def test_a_row_without_candidates_gives_zero_gradients(model, mode, histories):
    backbone = with_lora(make_model(model), dropout=0.1)
    backbone.mode = mode
    layout = RequestLayout.from_lengths(histories, [[] for _ in histories], [[] for _ in histories], backbone.causal)
    ids = token_ids(layout)
    hidden = backbone(ids, layout, key=DropoutKey(0, 0), token_uids=ids)
    assert hidden.shape == (0, backbone.hidden_size)
    hidden.sum().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_an_output_depends_on_its_own_past_only():
    backbone, layout = Backbone(make_model("nano")), staircase()
    ids = token_ids(layout)
    before = backbone(ids, layout)
    for c in (0, 7, 16):
        unseen = ~layout.dense_mask()[layout.last_tokens()[c]]
        changed = torch.where(unseen, (ids + 1) % VOCABULARY, ids)
        assert torch.equal(backbone(changed, layout)[c], before[c])


def test_pooling_of_an_encoder_is_the_mean_of_the_candidates_own_tokens():
    model, layout = make_model("bert"), shared_end(causal=False)
    ids = token_ids(layout)
    mean, last = Backbone(model)(ids, layout), Backbone(model, pooling="last")(ids, layout)
    one_token = layout.candidate_length == 1
    assert torch.allclose(mean[one_token], last[one_token])
    assert not torch.allclose(mean[~one_token], last[~one_token], atol=1e-2)
    hidden = model(ids[None], position_ids=layout.positions()[None], request_layout=layout).last_hidden_state[0]
    start, length = int(layout.candidate_start[2]), int(layout.candidate_length[2])
    assert torch.allclose(mean[2], hidden[start : start + length].mean(0), atol=1e-6)


def test_bfloat16_is_near_float32_and_its_adapters_are_float32():
    layout = staircase()
    backbone = with_lora(make_model("nano").to(torch.bfloat16))
    hidden, gradients = outputs_and_gradients(backbone, layout, "packed")
    exact = outputs_and_gradients(with_lora(make_model("nano")), layout, "packed")
    assert hidden.dtype == torch.bfloat16
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert relative(hidden.float(), exact[0]) < 2e-2


def test_autocast_runs_packed_as_separate():
    backbone, layout = with_lora(make_model("nano")), staircase()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed = outputs_and_gradients(backbone, layout, "packed")
        separate = outputs_and_gradients(backbone, layout, "separate")
    assert largest_difference(packed, separate) < 5e-2


def test_the_models_own_dropouts_are_off():
    backbone = with_lora(tiny("BertConfig", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    layout = shared_end(causal=False)
    first, again = (outputs_and_gradients(backbone, layout, "packed")[0] for _ in range(2))
    assert torch.equal(first, again)


def test_ids_beyond_the_vocabulary():
    backbone, layout = Backbone(make_model("nano")), shared_end()
    ids = token_ids(layout)
    ids[3] = VOCABULARY
    with pytest.raises(BackboneError, match=r"token id 128 is beyond the backbone's vocabulary of 128.*mtrec prepare"):
        backbone(ids, layout)


def test_positions_beyond_the_model():
    backbone = Backbone(build_nano(VOCABULARY, width=32, layers=1, heads=4, max_positions=29))
    layout = shared_end()
    with pytest.raises(BackboneError, match=r"has 30 tokens, the backbone reads at most 29. Lower history.max_events"):
        backbone(token_ids(layout), layout)


def test_roberta_has_two_positions_less_than_its_table():
    assert Backbone(tiny("RobertaConfig")).max_positions == 62
    assert Backbone(tiny("BertConfig")).max_positions == 64


def test_a_decoder_does_not_take_an_encoders_row():
    with pytest.raises(ValueError, match="causal=False for a backbone with causal=True"):
        Backbone(make_model("nano"))(torch.zeros(1), shared_end(causal=False))


def test_the_checksum_names_the_weights_and_survives_adapters():
    backbone = Backbone(make_model("nano"))
    assert backbone.checksum() == Backbone(make_model("nano")).checksum()
    assert backbone.checksum() != Backbone(build_nano(VOCABULARY, 32, 2, 4, kv_heads=2, seed=1)).checksum()
    add_adapter(backbone, Adapter(rank=2), seed=0)
    assert Backbone(backbone.model).checksum() == backbone.checksum()
    with torch.no_grad():
        backbone.model.norm.weight[0] += 1e-6
    assert Backbone(backbone.model).checksum() != backbone.checksum()


def test_a_saved_nano_is_loaded_from_its_folder(tmp_path):
    model = make_model("nano")
    model.save_pretrained(tmp_path)
    loaded = Backbone(load_model(str(tmp_path)))
    assert loaded.checksum() == Backbone(model).checksum()
    assert load_model(str(tmp_path), "bfloat16").dtype == torch.bfloat16


def test_a_name_that_is_not_a_folder_needs_the_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        BackboneError, match=r"(?s)'some/model' is neither a folder.*hf download some/model --local-dir"
    ):
        load_model("some/model")


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(BackboneError, match=r"has no config.json \(it holds weights.bin\)"):
        load_model(str(tmp_path))
    with pytest.raises(BackboneError, match="there is no folder"):
        load_model(str(tmp_path / "absent"))


def test_a_folder_with_a_config_but_no_weights(tmp_path):
    make_model("nano").config.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"weights of .* cannot be loaded"):
        load_model(str(tmp_path))


def test_a_model_without_all_its_weights_is_refused(tmp_path):
    model = tiny("LlamaConfig")
    weights = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(BackboneError, match=r"lacks 3 weights of a LlamaModel \(layers\.1\.mlp\.down_proj"):
        load_model(str(tmp_path))


def test_an_encoder_published_without_a_pooler_is_the_same_each_time(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=30, **sizes)).save_pretrained(tmp_path)
    first, second = (Backbone(load_model(str(tmp_path))) for _ in range(2))
    assert first.checksum() == second.checksum()


def test_encoder_decoders_are_refused(tmp_path):
    T5Config(vocab_size=8, d_model=8, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"is an encoder-decoder \(t5\)"):
        load_model(str(tmp_path))


def test_nano_is_the_same_everywhere_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = (Backbone(make_model("nano")).checksum() for _ in range(2))
    assert first == again
    assert torch.rand(1) == expected


def test_the_tokenizer_is_a_function_of_its_texts(tmp_path):
    texts = [f"Toy Story ({year}) Animation|Comedy {year % 7}" for year in range(1900, 2020)]
    first, again = (train_tokenizer(iter(texts), 300) for _ in range(2))
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert len(first) == 300
    assert (first.pad_token_id, first.bos_token_id, first.eos_token_id) == (0, 1, 2)
    for text in ("Toy Story", "Amélie 東京 🎬 \x00"):
        assert first.decode(first(text).input_ids).removeprefix(" ") == text
    assert "".join(first.convert_ids_to_tokens(first("Toy Story").input_ids)) == "ĠToyĠStory"


def test_the_layout_reaches_attention_without_importing_ray():
    code = (
        "import sys; import mtrec_ray.model.backbone, mtrec_ray.model.adapters, mtrec_ray.model.probe;"
        "assert 'ray' not in sys.modules and 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
