"""A tokenizer as the passes of `prepare` use it: texts in, token ids out, and nothing of transformers where it is fast.

A task that is given the tokenizer of transformers itself loads that package, for most of a second; what `tokenizers`
needs is there at once.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from mtrec_ray.data.requests.ragged import Ragged, offsets_of, spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, np.dtype[Any]]

_BATCH = 4096
_KNOWN_CHARACTERS = 1 << 24
"""Of the texts whose tokens are kept from one call to the next, about; some tens of megabytes with these."""
_TEXT_COST = 100
"""What is counted for a text beside its characters"""
_HALF_CHARACTER = "\ufffd"
"""What is decoded from the first of the several tokens of one character."""


class TextEncoder:
    """Token ids of texts without special tokens. The texts of items come again in every part of every bucket, so each
    text that was met lately is encoded once; what is kept is not pickled."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.cuts_at_spaces = cuts_at_spaces(tokenizer)
        self.stand_in = stand_in(tokenizer)
        self._added: list[str] = []
        if self.cuts_at_spaces:
            self._added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._split_special = tokenizer.split_special_tokens
        self._tokenizer: Tokenizer | PreTrainedTokenizerBase = tokenizer
        if _is_fast(tokenizer):
            self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        self._forget(limit=0)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget(limit=0)

    def encode(self, texts: Sequence[str], limit: int) -> tuple[Ragged, Array]:
        """int32 token ids of each text, at most `limit` of them, and bool [N] whether it was cut."""
        place = self._places(texts, limit)
        lengths = np.minimum(self._known_ids.lengths[place], limit)
        values = self._known_ids.values[spans(self._known_ids.offsets[place], lengths)]
        return Ragged(values, offsets_of(lengths)), self._known_tokens[place] > limit

    def plain(self, texts: Sequence[str], limit: int) -> Array:
        """bool [N]: where `cuts_at_spaces`, texts that may stand beside others; they are encoded on the way."""
        places = self._places(texts, limit)  # which replaces what is indexed
        return self._known_plain[places]

    def shortened(self, texts: Sequence[str], limit: int) -> tuple[list[str], Array]:
        """The texts, of those with more than `limit` tokens only as much as these say; bool [N] whether it was cut."""
        ids, cut = self.encode(texts, limit)
        kept = list(texts)
        for place in np.flatnonzero(cut).tolist():
            own = ids.values[ids.offsets[place] : ids.offsets[place + 1]].tolist()
            if isinstance(self._tokenizer, Tokenizer):
                decoded = self._tokenizer.decode(own, skip_special_tokens=False)
            else:
                decoded = str(self._tokenizer.decode(own, clean_up_tokenization_spaces=False))
            kept[place] = decoded.rstrip(_HALF_CHARACTER).strip()
        return kept, cut

    def _places(self, texts: Sequence[str], limit: int) -> Array:
        """int64 [N] where the texts stand among those that are known, with at least `limit` of their tokens."""
        if limit > self._known_limit or self._known_cost > _KNOWN_CHARACTERS:
            self._forget(max(limit, self._known_limit))
        self._learn([text for text in dict.fromkeys(texts) if text not in self._known])
        return np.fromiter(map(self._known.__getitem__, texts), dtype=np.int64, count=len(texts))

    def _forget(self, limit: int) -> None:
        self._known: dict[str, int] = {}
        self._known_limit, self._known_cost = limit, 0
        self._known_ids = Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64))
        self._known_tokens = np.zeros(0, dtype=np.int64)
        self._known_plain = np.zeros(0, dtype=bool)

    def _learn(self, texts: Sequence[str]) -> None:
        """Adds distinct texts that are not known."""
        if not texts:
            return
        values, lengths, tokens = [self._known_ids.values], [self._known_ids.lengths], [self._known_tokens]
        for first in range(0, len(texts), _BATCH):
            encoded = list(self._encoded(list(texts[first : first + _BATCH])))
            own = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
            kept = np.minimum(own, self._known_limit)
            flat = np.fromiter(chain.from_iterable(encoded), dtype=np.int32, count=int(own.sum()))
            values.append(flat[spans(offsets_of(own)[:-1], kept)])
            lengths.append(kept)
            tokens.append(own)
        self._known_cost += sum(map(len, texts)) + _TEXT_COST * len(texts)
        self._known.update(zip(texts, range(len(self._known), len(self._known) + len(texts)), strict=True))
        self._known_ids = Ragged(np.concatenate(values), offsets_of(np.concatenate(lengths)))
        self._known_tokens = np.concatenate(tokens)
        if self.cuts_at_spaces:
            self._known_plain = np.concatenate([self._known_plain, [self._is_plain(text) for text in texts]])

    def _encoded(self, texts: list[str]) -> Iterable[list[int]]:
        """What `tokenizer(texts, add_special_tokens=False)["input_ids"]` is; the call itself takes longer for all that
        it makes beside the ids than for the ids."""
        if not isinstance(self._tokenizer, Tokenizer):
            return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        self._tokenizer.encode_special_tokens = self._split_special
        return (encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))

    def _is_plain(self, text: str) -> bool:
        """Without white space at its ends, and none of the tokenizer's added tokens."""
        return text == text.strip() and not any(token in text for token in self._added)


def cuts_at_spaces(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokens of two plain parts with a space between them are those of the parts, one after the other."""
    from transformers import PreTrainedTokenizerFast

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


def stand_in(tokenizer: "PreTrainedTokenizerBase") -> int:
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


def _is_fast(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether all that it does is what its backend does; a class of its own may encode in its own way."""
    from transformers import PreTrainedTokenizerFast

    return type(tokenizer) is PreTrainedTokenizerFast
