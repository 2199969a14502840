"""Hugging Face models by path, a decoder and an encoder, through every command on generated logs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from mtrec_ray.config import Run
from mtrec_ray.data.prepare import load_prepared
from mtrec_ray.data.sample import write_sample
from mtrec_ray.launch.evaluate import evaluate
from mtrec_ray.launch.pretrain import pretrain
from mtrec_ray.launch.train import train
from tests.conftest import ROOT
from tests.launch.sample_runs import sample_config, scores

pytestmark = [pytest.mark.ray, pytest.mark.slow]
DECODER = ROOT.parent / "shared" / "models" / "stories260k"
SMALL = [
    "history.max_events=8",
    "history.event_tokens=10",
    "history.candidate_tokens=10",
    "adapter.rank=2",
    "pretrain.max_steps=2",
    "pretrain.sequence_tokens=32",
    "pretrain.batch_tokens=512",
    "train.max_steps=2",
    "train.batch_requests=4",
    "evaluate.bootstrap=0",
    "evaluate.baselines=[constant]",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("backbones")
    write_sample(str(folder / "logs"), users=12, items=12, days=6, shards=2)
    return folder


@pytest.fixture(scope="module")
def decoder() -> Path:
    if not DECODER.is_dir():
        pytest.skip(f"needs the model in {DECODER}, which is not part of the project")
    return DECODER


@pytest.fixture(scope="module")
def encoder(place) -> Path:
    """A tiny BERT with random weights and a tokenizer that knows the letters."""
    folder = place / "bert"
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (place / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(place / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=128, **sizes)).save_pretrained(folder)
    return folder


def config(place: Path, name: str, backbone: Path | str) -> Run:
    return sample_config(place, name, f"backbone={{name: {backbone}, packing: require}}", *SMALL)


def trained(run: Run, layout: str) -> tuple[str, dict[str, np.ndarray]]:
    """The folder of the run and its scores; at its checkpoint's side only the name of the frozen weights lies."""
    folder = train(run)
    assert load_prepared(run).manifest.history_layout == layout
    state = json.loads(Path(folder, "checkpoint/state.json").read_text())
    assert Path(state["backbone"]).is_absolute()
    with safe_open(Path(folder, "checkpoint/adapter.safetensors"), framework="pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118
    return folder, scores(folder)


def test_a_decoder_by_relative_path_is_trained_and_scored_again(place, decoder, monkeypatch):
    monkeypatch.chdir(decoder.parent)  # where no worker is
    folder, before = trained(config(place, "decoder", decoder.name), "staircase")
    monkeypatch.chdir(place)
    evaluate(folder)
    for name, values in scores(folder).items():
        np.testing.assert_allclose(values, before[name], rtol=1e-5, atol=1e-6)


def test_an_encoder_is_pretrained_further_and_then_trained(place, encoder):
    run = config(place, "encoder", encoder)
    weights = pretrain(run)
    record = json.loads(Path(weights, "pretrain.json").read_text())
    assert record["loss_after"] < record["loss_before"]
    backbone = run.backbone.model_copy(update={"name": weights})
    trained(run.model_copy(update={"backbone": backbone}), "shared_end")
