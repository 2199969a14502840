"""Texts of events and candidates, and their token ids."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mtrec_ray.config import Run
from mtrec_ray.data.requests.distinct import distinct_rows
from mtrec_ray.tasks.labels import labels_of

Array = np.ndarray[Any, np.dtype[Any]]

_BATCH = 4096
_HALF_CHARACTER = "\ufffd"
"""What is decoded from the first of the several tokens of one character."""


def feedback_words(feedback: Sequence[float], run: Run) -> str:
    """The words of one event's labels [T], NaN = none: `like`, `no like` (impressions only), `rating 4.5`."""
    words = []
    for (name, task), value in zip(run.tasks.items(), feedback, strict=True):
        if np.isnan(value):
            continue
        if labels_of(task.kind, run.plugins) != "binary":
            words.append(f"{name} {value:g}")
        elif value == 1:
            words.append(name)
        elif run.data.layout == "impressions":
            words.append(f"no {name}")
    return " ".join(words)


def distinct_feedback(feedback: Array, run: Run) -> tuple[list[str], Array]:
    """The distinct feedback words of events [E, T], and int64 [E] which of them each event has."""
    if not len(feedback):
        return [], np.zeros(0, dtype=np.int64)
    bits = np.ascontiguousarray(feedback, dtype=np.float32).copy()
    bits[np.isnan(bits)] = np.nan  # one bit pattern for all NaN
    first, codes = distinct_rows(list(bits.view(np.int32).T))
    return [feedback_words(row, run) for row in bits[first]], codes


def tokenizer_texts(texts: Sequence[str], words: Sequence[str]) -> Iterable[str]:
    """What a tokenizer learns from: every item's text and every query once, all feedback words together about a tenth
    as often."""
    yield from texts
    if words:
        times = max(1, len(texts) // (10 * len(words)))
        for _ in range(times):
            yield from words


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[Array], Array]:
    """int32 token ids of each text without special tokens, at most `limit` of them, and bool [N] whether it was cut."""
    ids: list[Array] = []
    cut = np.zeros(len(texts), dtype=bool)
    for first in range(0, len(texts), _BATCH):
        for encoded in _encoded(list(texts[first : first + _BATCH]), tokenizer):
            cut[len(ids)] = len(encoded) > limit
            ids.append(np.array(encoded[:limit], dtype=np.int32))
    return ids, cut


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterable[list[int]]:
    """What `tokenizer(texts, add_special_tokens=False)["input_ids"]` is; the call itself takes longer for all that it
    makes beside the ids than for the ids."""
    if type(tokenizer) is not PreTrainedTokenizerFast:  # a class of its own may encode in its own way
        yield from tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
        yield encoding.ids


def shortened(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[str], Array]:
    """The texts, of those with more than `limit` tokens only as much as these say; bool [N] whether it was cut."""
    ids, cut = encode_texts(texts, tokenizer, limit)
    kept = list(texts)
    for place in np.flatnonzero(cut).tolist():
        decoded = str(tokenizer.decode(ids[place], clean_up_tokenization_spaces=False))
        kept[place] = decoded.rstrip(_HALF_CHARACTER).strip()
    return kept, cut


def stand_in(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token of a candidate without text: the tokenizer's end, separator, unknown or padding token."""
    for token in (
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
        tokenizer.unk_token_id,
        tokenizer.pad_token_id,
    ):
        if token is not None:
            return int(token)
    return 0
