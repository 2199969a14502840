"""Token ids of texts are those of transformers itself, whatever is kept from one call to the next."""

import pickle

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mtrec_ray.data.fitting import text_encoder
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.model.nano import train_tokenizer

TEXTS = ["like blue whale", "", "no like red fox", "a", "日本語 über", "like blue whale", "rating 4.5  two <eos>"]
TOKENIZER = train_tokenizer(TEXTS * 20, 400)


class Own(PreTrainedTokenizerFast):
    """A class of its own, of which nobody knows how it encodes."""

    def __call__(self, text: list[str], **settings: object) -> dict[str, list[list[int]]]:  # type: ignore[override]
        return {"input_ids": [[7] * len(one) for one in text]}


def expected(texts: list[str], limit: int) -> tuple[list[list[int]], list[bool]]:
    ids = TOKENIZER(texts, add_special_tokens=False)["input_ids"]
    return [own[:limit] for own in ids], [len(own) > limit for own in ids]


def encoded(encoder: TextEncoder, texts: list[str], limit: int) -> tuple[list[list[int]], list[bool]]:
    ids, cut = encoder.encode(texts, limit)
    assert ids.values.dtype == np.int32
    return [part.tolist() for part in np.split(ids.values, ids.offsets[1:-1])], cut.tolist()


def asked(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the tokenizer is asked for from now on."""
    found: list[str] = []
    own = encoder._encoded

    def noted(texts: list[str]) -> object:
        found.extend(texts)
        return own(texts)

    monkeypatch.setattr(encoder, "_encoded", noted)
    return found


def test_ids_are_those_of_the_tokenizer_at_any_limit() -> None:
    encoder = TextEncoder(TOKENIZER)
    for limit in (3, 1, 2, 50, 4):  # higher ones than before, and lower ones
        assert encoded(encoder, TEXTS, limit) == expected(TEXTS, limit)
        assert encoded(encoder, TEXTS[::-1], limit) == expected(TEXTS[::-1], limit)
    assert encoder.encode([], 5)[0].lengths.tolist() == []


def test_a_text_is_encoded_once_unless_more_of_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(TOKENIZER)
    found = asked(encoder, monkeypatch)
    for texts in (TEXTS, TEXTS[2:], [*TEXTS, "new"]):
        encoder.encode(texts, 4)
    assert found == [*dict.fromkeys(TEXTS), "new"]
    encoder.encode(["new"], 2)
    assert len(found) == 7
    encoder.encode(["new"], 9)
    assert found[7:] == ["new"]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "_KNOWN_CHARACTERS", 500)
    encoder = TextEncoder(TOKENIZER)
    most = 0
    for n in range(40):
        texts = [f"like {n} whale", f"fox {n}"]
        assert encoded(encoder, texts, 9) == expected(texts, 9)
        most = max(most, len(encoder._known))
    assert 2 < most <= 6


def test_a_copy_for_another_process_encodes_the_same_and_carries_no_texts() -> None:
    encoder = TextEncoder(TOKENIZER)
    empty = len(pickle.dumps(encoder))
    encoder.encode([f"whale {n}" for n in range(500)], 9)
    sent = pickle.dumps(encoder)
    assert len(sent) == empty
    copy = pickle.loads(sent)
    assert encoded(copy, TEXTS, 6) == expected(TEXTS, 6)
    assert (copy.stand_in, copy.cuts_at_spaces) == (encoder.stand_in, True)
    assert copy.plain(["whale", " whale", "whale <eos>"], 6).tolist() == [True, False, False]


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_in_texts_are_read_as_the_tokenizer_reads_them(split: bool) -> None:
    tokenizer = train_tokenizer(TEXTS * 20, 400)
    tokenizer.split_special_tokens = split
    wanted = tokenizer(["whale <eos>"], add_special_tokens=False)["input_ids"]
    assert (tokenizer.eos_token_id in wanted[0]) != split
    copy = pickle.loads(pickle.dumps(TextEncoder(tokenizer)))
    assert encoded(copy, ["whale <eos>"], 20)[0] == wanted


def test_a_class_of_its_own_encodes_in_its_own_way() -> None:
    own = Own(tokenizer_object=TOKENIZER.backend_tokenizer)
    assert encoded(TextEncoder(own), ["abc", "d"], 2) == ([[7, 7], [7]], [True, False])


def test_a_shortened_text_says_what_its_first_tokens_say() -> None:
    encoder = TextEncoder(TOKENIZER)
    ids = TOKENIZER("no like red fox", add_special_tokens=False)["input_ids"]
    kept, cut = encoder.shortened(["no like red fox", "a"], len(ids) - 1)
    assert cut.tolist() == [True, False]
    assert kept == [TOKENIZER.decode(ids[:-1]).strip(), "a"]
    assert kept[0] != "no like red fox"
