"""Events' texts encoded part by part are what they are as a whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mtrec_ray.data.fitting.joined_texts import encode_joined
from mtrec_ray.data.fitting.text_encoder import TextEncoder, cuts_at_spaces
from mtrec_ray.model.nano import train_tokenizer

TEXTS = ["like blue whale", "no like red fox", "dwell 3.25 it's a whale of 2 tales", "日本語 über", "rating 4.5  two"]
TOKENIZER = train_tokenizer(TEXTS * 20, 400)
ENCODER = TextEncoder(TOKENIZER)
PIECES = [*"ab 1.9'st-!\n\t日é\u0301\u00a0\u3000", "like", "dwell 3.25", "blue whale", "'s", "<eos>", "<pad> x", "  "]
PARTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


def whole(head: str, tail: str, limit: int) -> tuple[list[int], bool]:
    """What transformers itself says of the text as one."""
    ids = TOKENIZER(f"{head} {tail}".strip(), add_special_tokens=False)["input_ids"]
    return ids[:limit], len(ids) > limit


@given(st.lists(PARTS, min_size=1, max_size=5), st.lists(PARTS, min_size=1, max_size=5), st.integers(1, 12))
def test_parts_give_the_tokens_of_the_whole(heads: list[str], tails: list[str], limit: int) -> None:
    head, tail = (places.ravel() for places in np.indices((len(heads), len(tails))))
    tokens, cut = encode_joined(heads, tails, head, tail, ENCODER, limit)
    expected = [whole(heads[h], tails[t], limit) for h, t in zip(head, tail, strict=True)]
    assert [part.tolist() for part in np.split(tokens.values, tokens.offsets[1:-1])] == [ids for ids, _ in expected]
    assert cut.tolist() == [was_cut for _, was_cut in expected]


def test_each_part_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(self: TextEncoder, texts: list[str]) -> object:
        asked.extend(texts)
        return encoded(self, texts)

    encoded = TextEncoder._encoded
    monkeypatch.setattr(TextEncoder, "_encoded", counted)
    heads, tails = [f"dwell {n}" for n in range(30)], [f"item {n}" for n in range(20)]
    head, tail = (places.ravel() for places in np.indices((30, 20)))
    encode_joined(heads, tails, head, tail, TextEncoder(TOKENIZER), 20)
    assert sorted(asked) == sorted(heads + tails)


@pytest.mark.parametrize("setting", ["add_prefix_space", "use_regex"])
def test_other_tokenizers_encode_whole_texts(setting: str) -> None:
    from tokenizers import pre_tokenizers

    other = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER.backend_tokenizer.__class__.from_str(TOKENIZER.backend_tokenizer.to_str())
    )
    assert cuts_at_spaces(other)
    settings = {"add_prefix_space": True, "use_regex": True} | {setting: False}
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**settings)
    assert not cuts_at_spaces(other)
    heads, tails = ["dwell 3", ""], ["blue whale", ""]
    head, tail = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    tokens, _ = encode_joined(heads, tails, head, tail, TextEncoder(other), 20)
    expected = other(["dwell 3 blue whale", "dwell 3", "blue whale", ""], add_special_tokens=False)["input_ids"]
    assert [part.tolist() for part in np.split(tokens.values, tokens.offsets[1:-1])] == expected
