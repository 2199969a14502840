"""Tokens of texts that are put together from two parts, as an event's feedback words and its item's text.

Feedback that is a number (`dwell 3.07 blue whale`) makes nearly every event's text a different one. Where the tokenizer
is known to cut a text at the space between the parts, each part is encoded once instead, and their tokens are joined.
That is so for byte-level BPE with a space before the text (`nano`): its pattern (Radford et al. 2019, `encoder.py` of
GPT-2) has no match that goes on past a single space, and a space begins a match with what follows it. It is not so
for parts that begin or end with white space, or hold one of the tokenizer's added tokens; these are encoded whole.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mtrec_ray.data.fitting.texts import encode_texts
from mtrec_ray.data.requests.ragged import Ragged, offsets_of, spans

Array = np.ndarray[Any, np.dtype[Any]]


def encode_joined(
    heads: Sequence[str], tails: Sequence[str], head: Array, tail: Array, tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[Ragged, Array]:
    """int32 token ids, at most `limit`, of the N texts `heads[head] tails[tail]`, and bool [N] whether each was cut.

    A part that is empty leaves no space. Each different part, or else each different text, is encoded once.
    """
    apart, empty_heads, empty_tails = np.zeros(len(head), dtype=bool), _empty(heads), _empty(tails)
    if cuts_at_spaces(tokenizer):
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        plain_heads, plain_tails = _plain(heads, added), _plain(tails, added)
        apart = plain_heads[head] & plain_tails[tail] & ~(empty_heads[head] & empty_tails[tail])
    parts = [*heads, *tails] if apart.any() else []
    whole, place = np.unique(head[~apart] * max(len(tails), 1) + tail[~apart], return_inverse=True)
    texts = [f"{heads[pair // len(tails)]} {tails[pair % len(tails)]}".strip() for pair in whole.tolist()]
    ids, cut = encode_texts([*parts, *texts], tokenizer, limit)
    nothing = len(ids)
    first, second = np.full((2, len(head)), nothing)
    first[apart] = np.where(empty_heads[head[apart]], nothing, head[apart])
    second[apart] = np.where(empty_tails[tail[apart]], nothing, len(heads) + tail[apart])
    first[~apart] = len(parts) + place.ravel()
    pool = Ragged.of([*ids, np.zeros(0, np.int32)], np.int32)
    joined = pool.take(np.stack([first, second], axis=1).ravel()).regroup(np.full(len(head), 2))
    cut = np.append(cut, False)
    lengths = np.minimum(joined.lengths, limit)
    return (
        Ragged(joined.values[spans(joined.offsets[:-1], lengths)], offsets_of(lengths)),
        cut[first] | cut[second] | (joined.lengths > limit),
    )


def cuts_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of two plain parts with a space between them are those of the parts, one after the other."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, before = backend["model"], backend["pre_tokenizer"] or {}
    return bool(
        model["type"] == "BPE"
        and model["dropout"] is None
        and backend["normalizer"] is None
        and before["type"] == "ByteLevel"
        and before["add_prefix_space"]
        and before["use_regex"]
        and not any(character.isspace() for token in backend["added_tokens"] for character in token["content"])
    )


def _empty(texts: Sequence[str]) -> Array:
    return np.array([not text for text in texts], dtype=bool)


def _plain(texts: Sequence[str], added: Sequence[str]) -> Array:
    return np.array([text == text.strip() and not any(token in text for token in added) for text in texts], dtype=bool)
