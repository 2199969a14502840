"""`nano`: the built-in small decoder and its tokenizer, for CPUs, tests and logs without a pretrained model."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from mtrec_ray.errors import ConfigError

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
_BATCH = 1000


def build_nano(
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    ffn: int | None = None,
    max_positions: int = 4096,
    seed: int = 0,
) -> LlamaModel:
    """A Llama decoder with random weights, the same for the same arguments; the global random state is left alone.

    `kv_heads` defaults to `heads`, `ffn` to 8/3 of the width rounded up to a multiple of 32 (Touvron et al. 2023).
    The weights of the embedding double as a language-model head when it is pretrained. Raises `ConfigError`.
    """
    kv_heads = kv_heads or heads
    if width % heads or (width // heads) % 2 or heads % kv_heads:
        raise ConfigError(
            f"backbone.width {width} must be an even multiple of backbone.heads {heads}, "
            f"and heads a multiple of the {kv_heads} key-value heads"
        )
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=ffn or -(-8 * width // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaModel(config)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from `texts`: any text can be encoded, and the same texts give the same tokenizer.

    The first three special tokens serve as padding, beginning and end, with ids 0, 1, 2. The vocabulary is smaller than
    `vocab_size` where the texts have too few different pairs. Raises `ConfigError` if the bytes alone do not fit.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(special_tokens)
    if vocab_size < least:
        raise ConfigError(
            f"backbone.vocab_size {vocab_size} is too small: {len(alphabet)} bytes and {len(special_tokens)} special "
            f"tokens need at least {least}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer=trainer)
    pad, bos, eos = special_tokens[:3]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while batch := list(islice(stream, _BATCH)):
        yield batch
