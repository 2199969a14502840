"""Augmentation with other texts of items, and with the tokenizer of the prepared data."""

from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer

from mtrec_ray.data.fitting.fitted_files import load_items
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.fingerprint import fingerprint
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.augment.item_text import publish_texts
from mtrec_ray.data.streaming.augment.rows import RequestRows
from mtrec_ray.data.streaming.chunks import open_order
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.train.augmentation import open_augmenter
from tests.data.by_hand import config

WORDS = ["red", "green", "blue", "warm", "cold", "north", "south", "old"]
TEXTS = {str(item): f"{WORDS[item % 8]} {WORDS[item // 8 % 8]} thing {item}" for item in range(20)}


def variants_of(item):
    return [f"thing {WORDS[int(item) % 8]}", WORDS[int(item) % 8]]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A log of 20 items with texts, and a table with two more texts each of items 0 to 9."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    users, items, likes, queries = (rng.integers(most, size=400).tolist() for most in (8, 20, 2, 8))
    rows = zip(users, items, range(10**9, 10**9 + 400 * 60, 60), likes, (WORDS[q] for q in queries), strict=True)
    (folder / "log.csv").write_text("user,item,time,like,q\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    (folder / "items.csv").write_text("id,title\n" + "".join(f"{item},{text}\n" for item, text in TEXTS.items()))
    others = [(item, text) for item in range(10) for text in variants_of(item)]
    (folder / "others.csv").write_text("key,name\n" + "".join(f"{item},{text}\n" for item, text in others))
    return folder


def text_run(folder, **parts):
    return config(
        data__logs=str(folder / "log.csv"),
        data__items={"path": str(folder / "items.csv"), "key": "id", "text": "{title}"},
        data__prepared_dir=str(folder / "prepared"),
        data__buckets=2,
        backbone={"name": "nano", "vocab_size": 300},
        features__aggregates=[],
        **parts,
    )


TABLE = {"path": "others.csv", "key": "key", "text": "{name}"}


def told(folder, run, steps_wanted=6):
    """The texts of events and candidates as trained on, with those as prepared: lists of (item, own, found)."""
    data = prepare(run, serial_tasks)
    publish_texts(run, data.path)
    augment = open_augmenter(run, data.path, data.manifest)
    tokenizer = AutoTokenizer.from_pretrained(f"{data.path}/tokenizer")
    shards = open_order(data.path, OrderSettings("train", 0, 8, 10**6, 1, True)).shards
    table = shards.rows(np.arange(shards.num_requests))
    items = load_items(data.path).keys.to_pylist()
    own, events, candidates = RequestRows.of(table), [], []
    for step in range(steps_wanted):
        found = RequestRows.of(augment(table, step))
        for into, names, before, after in (
            (events, [items[i - 1] for i in own.values("event_item")], own.event_tokens, found.event_tokens),
            (candidates, own.values("item").tolist(), own.candidate_tokens, found.candidate_tokens),
        ):
            for n, name in enumerate(names):
                spans = [t.values[t.offsets[n] : t.offsets[n + 1]] for t in (before, after)]
                assert len(spans[1]) <= len(spans[0])
                into.append((name, *(tokenizer.decode(span).strip() for span in spans)))
    return events, candidates


def test_items_have_one_of_their_texts_and_events_their_words_before_it(text_folder, monkeypatch):
    monkeypatch.chdir(text_folder)
    events, candidates = told(text_folder, text_run(text_folder, augment__item_text=TABLE))
    for told_of, names in ((events, ("like ", "no like ")), (candidates, ("",))):
        variants = Counter()
        for item, own, found in told_of:
            word = next(name for name in names if own.startswith(name) and own[len(name) :] == TEXTS[item])
            if int(item) >= 10:
                assert found == own
                continue
            assert found.startswith(word)
            variants[[TEXTS[item], *variants_of(item)].index(found[len(word) :])] += 1
        assert len(variants) == 3
        assert max(variants.values()) < 1.25 * min(variants.values())


def test_a_text_is_cut_to_the_length_of_the_one_it_stands_for(text_folder, monkeypatch):
    monkeypatch.chdir(text_folder)
    long = text_folder / "long.csv"
    long.write_text("key,name\n" + "".join(f"{item},{' '.join(WORDS)} {' '.join(WORDS)}\n" for item in range(20)))
    _, candidates = told(text_folder, text_run(text_folder, augment__item_text={**TABLE, "path": "long.csv"}), 2)
    cut = [found for _, own, found in candidates if found != own]
    assert cut
    assert all(" ".join(WORDS).startswith(text) or text.startswith(" ".join(WORDS)) for text in cut)


def test_a_query_stays_before_the_text(text_folder, monkeypatch):
    monkeypatch.chdir(text_folder)
    run = text_run(text_folder, augment__item_text=TABLE, data__columns__query="q")
    _, candidates = told(text_folder, run)
    changed = [(item, own, found) for item, own, found in candidates if found != own]
    assert changed
    for item, own, found in changed:
        query = own.removesuffix(TEXTS[item])
        assert query.strip() in WORDS
        assert found in {f"{query}{text}" for text in variants_of(item)}


def test_a_function_of_a_plugin_makes_texts(text_folder, monkeypatch):
    monkeypatch.chdir(text_folder)
    (text_folder / "my_texts.py").write_text(
        "from mtrec_ray.data.streaming.augment.item_text import AUGMENTERS\n"
        "AUGMENTERS.register('backwards')(\n"
        "    lambda item, text: [' '.join(reversed(text.split()))] if item != '3' else []\n"
        ")\n"
        "AUGMENTERS.register('nothing')(lambda item, text: [' '])\n"
    )
    monkeypatch.syspath_prepend(str(text_folder))
    run = text_run(text_folder, plugins=["my_texts"], augment__item_text={"function": "backwards"})
    _, candidates = told(text_folder, run, 2)
    backwards = {item: " ".join(reversed(text.split())) for item, text in TEXTS.items()}
    changed = [(item, found) for item, own, found in candidates if found != own]
    assert 0.35 < len(changed) / len([1 for item, *_ in candidates if item != "3"]) < 0.65
    assert "3" not in {item for item, _ in changed}
    for item, found in changed:
        assert backwards[item].startswith(found)  # cut where the other order has more tokens
    nothing = text_run(text_folder, plugins=["my_texts"], augment__item_text={"function": "nothing"})
    with pytest.raises(DataError, match="'nothing' gave ' ' for item '0'"):
        publish_texts(nothing, "unused")
    unknown = text_run(text_folder, plugins=["my_texts"], augment__item_text={"function": "backward"})
    with pytest.raises(ConfigError, match="Did you mean 'backwards'"):
        publish_texts(unknown, "unused")
    no_items = text_run(text_folder, plugins=["my_texts"], augment__item_text={"function": "backwards"})
    no_items = no_items.model_copy(update={"data": no_items.data.model_copy(update={"items": None})})
    with pytest.raises(ConfigError, match=r"give data.items with `text`"):
        publish_texts(no_items, "unused")


def test_a_table_of_other_items_is_refused_and_rows_without_text_are_told_of(text_folder, monkeypatch, capsys):
    monkeypatch.chdir(text_folder)
    run = text_run(text_folder, augment__item_text={**TABLE, "path": "wrong.csv"})
    path = prepare(run, serial_tasks).path
    (text_folder / "wrong.csv").write_text("key,name\nx1,one\nx2,two\n")
    with pytest.raises(DataError, match=r"none of its 2 texts is of an item with a train row. Its keys, as 'x1', 'x2'"):
        publish_texts(run, path)
    (text_folder / "wrong.csv").write_text("key,name\n1,one\n2,\n,three\n99,four\n")
    publish_texts(run, path)
    said = capsys.readouterr().err
    assert "2 row(s) of the table have no key or no text" in said
    assert "1 texts for items of the train rows, 1 for others" in said


def test_texts_are_no_part_of_the_prepared_data(text_folder, monkeypatch):
    monkeypatch.chdir(text_folder)
    plain = text_run(text_folder)
    for switch in ({"item_text": TABLE}, {"negatives": 0.1}, {"history_crop": 1}):
        assert fingerprint(text_run(text_folder, augment=switch)) == fingerprint(plain)


def test_noise_takes_the_special_tokens_of_the_prepared_tokenizer(text_folder, monkeypatch):
    monkeypatch.chdir(text_folder)
    run = text_run(text_folder, augment={"token_noise": 0.9})
    data = prepare(run, serial_tasks)
    noise = open_augmenter(run, data.path, data.manifest).noise
    assert noise._special.tolist() == [0, 1, 2]
    assert noise._ordinary.tolist() == list(range(3, data.manifest.vocab_size))
    assert open_augmenter(text_run(text_folder), data.path, data.manifest) is None
    unread = run.model_copy(update={"backbone": run.backbone.model_copy(update={"name": "none"})})
    found = open_augmenter(unread, data.path, data.manifest)
    assert (found.noise, found.texts, found.ordered) == (None, None, False)
