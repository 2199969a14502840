"""Tokens of texts that are put together from two parts, as an event's feedback words and its item's text.

Feedback that is a number (`dwell 3.07 blue whale`) makes nearly every event's text a different one. Where the tokenizer
is known to cut a text at the space between the parts, each part is encoded once instead, and their tokens are joined.
That is so for byte-level BPE with a space before the text (`nano`): its pattern (Radford et al. 2019, `encoder.py` of
GPT-2) has no match that goes on past a single space, and a space begins a match with what follows it. It is not so
for parts that begin or end with white space, or hold one of the tokenizer's added tokens; these are encoded whole.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.requests.ragged import Ragged, offsets_of, spans

Array = np.ndarray[Any, np.dtype[Any]]


def encode_joined(
    heads: Sequence[str], tails: Sequence[str], head: Array, tail: Array, encoder: TextEncoder, limit: int
) -> tuple[Ragged, Array]:
    """int32 token ids, at most `limit`, of the N texts `heads[head] tails[tail]`, and bool [N] whether each was cut.

    A part that is empty leaves no space. Each different part, or else each different text, is encoded once.
    """
    apart, empty_heads, empty_tails = np.zeros(len(head), dtype=bool), _empty(heads), _empty(tails)
    if encoder.cuts_at_spaces:
        plain_heads, plain_tails = encoder.plain(heads, limit), encoder.plain(tails, limit)
        apart = plain_heads[head] & plain_tails[tail] & ~(empty_heads[head] & empty_tails[tail])
    parts = [*heads, *tails] if apart.any() else []
    whole, place = np.unique(head[~apart] * max(len(tails), 1) + tail[~apart], return_inverse=True)
    texts = [f"{heads[pair // len(tails)]} {tails[pair % len(tails)]}".strip() for pair in whole.tolist()]
    pool, cut = encoder.encode([*parts, *texts], limit)
    nothing = len(cut)
    first, second = np.full((2, len(head)), nothing)
    first[apart] = np.where(empty_heads[head[apart]], nothing, head[apart])
    second[apart] = np.where(empty_tails[tail[apart]], nothing, len(heads) + tail[apart])
    first[~apart] = len(parts) + place.ravel()
    pool = Ragged(pool.values, np.append(pool.offsets, pool.offsets[-1]))
    joined = pool.take(np.stack([first, second], axis=1).ravel()).regroup(np.full(len(head), 2))
    cut = np.append(cut, False)
    lengths = np.minimum(joined.lengths, limit)
    return (
        Ragged(joined.values[spans(joined.offsets[:-1], lengths)], offsets_of(lengths)),
        cut[first] | cut[second] | (joined.lengths > limit),
    )


def _empty(texts: Sequence[str]) -> Array:
    return np.array([not text for text in texts], dtype=bool)
