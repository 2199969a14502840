"""What pretraining starts from: a backbone with its language-model head, its special tokens, and the documents."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import open_fs, path_in
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import BackboneError, DataError
from mtrec_ray.model.backbone import is_causal, load_config, locate
from mtrec_ray.train.pretrained import NANO, untrained_nano
from mtrec_ray.train.pretraining import Corpus, Objective


def language_model(run: Run, manifest: Manifest) -> PreTrainedModel:
    """`run.backbone` with its head, all weights in float32: `nano` random by the seed, others as published.

    A head that the weights lack is tied to the embeddings where the model's config ties it, else drawn from the seed.
    Raises `BackboneError`.
    """
    name = run.backbone.name
    if name == NANO:
        nano = untrained_nano(run, manifest)
        model = LlamaForCausalLM(nano.config)
        model.model = nano
        model.tie_weights()
        return model
    config = load_config(name)
    auto = AutoModelForCausalLM if is_causal(config) else AutoModelForMaskedLM
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)  # a random head must be the same on every worker
            return auto.from_pretrained(locate(name), config=config, dtype="float32")
    except (OSError, ValueError) as error:
        raise BackboneError(f"backbone.name: '{name}' cannot be pretrained: {error}") from error


def objective(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Objective:
    """Next token for a decoder, masked tokens for an encoder. Raises `BackboneError` where there is no mask token."""
    embeddings: Any = model.get_input_embeddings()
    vocab_size: int = embeddings.num_embeddings
    if is_causal(model.config.get_text_config()):
        return Objective(vocab_size)
    if tokenizer.mask_token_id is None:
        raise BackboneError(
            f"{type(model).__name__} is an encoder, but its tokenizer has no mask token, so it cannot be pretrained. "
            "Train with its published weights (`mtrec train`), or choose another backbone."
        )
    return Objective(vocab_size, tokenizer.mask_token_id)


def separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token between two documents."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise BackboneError("the backbone's tokenizer has no end, separator or beginning token to put between documents")


def load_corpus(prepared: str, manifest: Manifest, separator_id: int) -> Corpus:
    """All documents of a prepared folder. Raises `DataError` if there are none."""
    filesystem, root = open_fs(prepared)
    paths = [path_in(root, path) for path in manifest.documents]
    columns = [pq.ParquetFile(path, filesystem=filesystem).read(["ids"])["ids"] for path in paths]
    chunks = [chunk for column in columns for chunk in column.chunks if len(chunk)]
    if not chunks:
        raise DataError(
            f"{prepared} holds no documents: the items have no text. Give data.items.text, or set backbone.name: none."
        )
    lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
    ids = pa.concat_arrays([chunk.flatten() for chunk in chunks]).to_numpy(zero_copy_only=False)
    return Corpus(ids.astype(np.int32), np.cumsum(lengths, dtype=np.int64), separator_id)
