"""Other texts in place of an item's own: a synonym, a translation, a rewording.

They come from a table of the user's, or from a function that a module among `plugins` registers:

    from mtrec_ray.data.streaming.augment.item_text import AUGMENTERS

    @AUGMENTERS.register("without_year")
    def without_year(item: str, text: str) -> list[str]: ...

Either way they are read once, before the first step, and kept as text at `texts_path`: which is nothing that the
prepared data depends on. They are tokenised where they are used, together with the words of an event's feedback, by
the tokenizer of the prepared data. (That of `nano` has learned from `data.items.text` alone, and splits other words
into many tokens.)
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from mtrec_ray.config import ItemText, Run, Table
from mtrec_ray.data.filesystem import joined, open_fs, write_table_atomic
from mtrec_ray.data.fitting.fitted_files import load_items
from mtrec_ray.data.fitting.tally import Vocabulary
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.fitting.texts import distinct_feedback
from mtrec_ray.data.reading.tables import read_entities, read_texts
from mtrec_ray.data.requests.ragged import Ragged, offsets_of, spans
from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.rows import RequestRows
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.progress import say
from mtrec_ray.registry import Registry, import_plugins

Array = np.ndarray[Any, np.dtype[Any]]

AUGMENTERS: Registry[Callable[[str, str], Sequence[str]]] = Registry("item text function")
"""An item's key and its text -> other texts for it, none or several."""
WHERE = "augment.item_text"


def texts_path(prepared: str, settings: ItemText) -> str:
    """Where the texts of these settings are kept, below the prepared folder."""
    text = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
    return joined(prepared, f"item_texts/{hashlib.sha256(text.encode()).hexdigest()[:16]}.parquet")


def publish_texts(run: Run, prepared: str) -> None:
    """Reads or makes the other texts of all items, and writes them to `texts_path`; on the driver, before training.

    What an earlier run left there is replaced: its table or function may have changed.

    Raises:
        DataError: a table that cannot be read, of no item of the log, or a function that gave no text.
        ConfigError: an unknown function, or no texts for it to work on.
    """
    settings = run.augment.item_text
    if settings is None:
        return
    keys, texts = _from_table(settings) if settings.path is not None else _from_function(run, settings)
    known = int(pc.is_in(pa.array(keys, pa.string()), value_set=load_items(prepared).keys).to_numpy(False).sum())
    if not known:
        raise DataError(
            f"{WHERE}: none of its {len(keys):,} texts is of an item with a train row. Its keys, as "
            f"{', '.join(repr(key) for key in keys[:3])}, must be items of the log as in data.columns.item."
        )
    order = np.argsort(np.array(keys), kind="stable")
    table = pa.table({"item": pa.array(keys, pa.string()), "text": pa.array(texts, pa.string())})
    filesystem, path = open_fs(texts_path(prepared, settings))
    write_table_atomic(filesystem, path, table.take(pa.array(order)))
    say(f"{WHERE}: {known:,} texts for items of the train rows, {len(keys) - known:,} for others")


def _from_table(settings: ItemText) -> tuple[list[str], list[str]]:
    assert settings.path is not None
    assert settings.key is not None
    keys, texts, left_out = read_texts(Table(path=settings.path, key=settings.key, text=settings.text), WHERE)
    if left_out:
        say(f"{WHERE}: {left_out:,} row(s) of the table have no key or no text, and are left out")
    return keys, texts


def _from_function(run: Run, settings: ItemText) -> tuple[list[str], list[str]]:
    assert settings.function is not None
    import_plugins(run.plugins)
    function = AUGMENTERS[settings.function]
    if run.data.items is None or run.data.items.text is None:
        raise ConfigError(f"{WHERE}.function: items have no text for it to work on; give data.items with `text`.")
    if run.data.items.valid_from is not None:
        raise ConfigError(
            f"{WHERE}.function: the texts of data.items change with time (valid_from), and the function would mix "
            "those of all times; give texts of your own as `path`, or leave out valid_from."
        )
    items = read_entities(run.data.items)
    found = [
        (key, text)
        for key, own in zip(items.keys.to_pylist(), items.text, strict=True)
        if own
        for text in _checked(function(key, own), settings.function, key)
    ]
    return [key for key, _ in found], [text for _, text in found]


def _checked(texts: Iterable[str], function: str, item: str) -> list[str]:
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{WHERE}.function: '{function}' gave {text!r} for item '{item}'; it must give a list of texts that "
                "are not empty, or an empty list."
            )
    return texts


class ItemTexts:
    """Gives each event and candidate one of its item's texts, its own with the same probability as each other.

    Events of items that are rarer than `features.min_count` keep theirs: of them the prepared rows have no key.
    """

    def __init__(
        self,
        table: pa.Table,
        items: Vocabulary,
        tokenizer: PreTrainedTokenizerBase,
        run: Run,
    ) -> None:
        """`table`: as `publish_texts` writes it, the texts of an item one after the other."""
        self._texts = table.column("text").combine_chunks()
        keys = table.column("item").to_numpy()
        firsts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, dtype=np.int64)
        self._first = np.append(firsts, 0)  # the last one is an item without other texts
        self._count = np.append(np.diff(firsts, append=len(keys)), 0)
        self._item = {key: number for number, key in enumerate(keys[firsts].tolist())}
        self._of_row = self._numbers([None, *items.keys.to_pylist()[: items.known]])
        self._encoder, self._run = TextEncoder(tokenizer), run
        self._limit = max(run.history.event_tokens, run.history.candidate_tokens)

    @classmethod
    def open(cls, run: Run, prepared: str, tokenizer: PreTrainedTokenizerBase) -> "ItemTexts":
        """From what `publish_texts` has written."""
        assert run.augment.item_text is not None
        filesystem, path = open_fs(texts_path(prepared, run.augment.item_text))
        return cls(pq.read_table(path, filesystem=filesystem), load_items(prepared), tokenizer, run)

    def __call__(self, rows: RequestRows, draws: Draws) -> RequestRows:
        """An event is named by its request's uid and its place in the history, a candidate by its row id."""
        of_events = self._of_row[rows.values("event_item")]
        of_candidates = self._numbers(rows.of_candidates["item"].to_pylist())
        row_ids = rows.values("row_id")
        drawn = draws.uniform("text.event", rows.uids[rows.request_of_event], rows.event_places)
        words, word = distinct_feedback(
            rows.values("event_feedback").reshape(len(drawn), len(self._run.tasks)), self._run
        )
        spoken = np.array(words, dtype=object)[word] if words else np.zeros(0, dtype=object)
        return replace(
            rows,
            event_tokens=self._changed(rows.event_tokens, of_events, drawn, spoken),
            candidate_tokens=self._changed(
                rows.candidate_tokens, of_candidates, draws.uniform("text.candidate", row_ids), self._asked(rows)
            ),
        )

    def _asked(self, rows: RequestRows) -> Array:
        """object [C]: the query before each candidate's text, as much of it as `prepare` has put there."""
        if "query" not in rows.of_candidates:
            return np.full(int(rows.candidates.sum()), "", dtype=object)
        queries, place = np.unique(rows.values("query").astype(str), return_inverse=True)
        short, _ = self._encoder.shortened(queries.tolist(), self._run.history.candidate_tokens // 2)
        return np.array(short, dtype=object)[place]

    def _numbers(self, items: Sequence[str | None]) -> Array:
        without = len(self._item)
        return np.array([self._item.get(item, without) for item in items], dtype=np.int64)

    def _changed(self, own: Ragged, items: Array, drawn: Array, words: Array) -> Ragged:
        """The texts [N] of these items, with the drawn ones among them in place of their own."""
        count = self._count[items]
        other = (drawn * (count + 1)).astype(np.int64)  # `count` stands for the item's own text
        changed = np.flatnonzero(other < count)
        texts = self._texts.take(pa.array((self._first[items] + other)[changed])).to_pylist()
        spoken = [f"{word} {text}".strip() for word, text in zip(words[changed], texts, strict=True)]
        tokens, _ = self._encoder.encode(spoken, self._limit)
        changed, tokens = changed[tokens.lengths > 0], tokens.take(np.flatnonzero(tokens.lengths))
        starts, lengths = own.offsets[:-1].copy(), own.lengths.copy()
        starts[changed] = len(own.values) + tokens.offsets[:-1]
        lengths[changed] = np.minimum(lengths[changed], tokens.lengths)
        pool = np.concatenate([own.values, tokens.values])
        return Ragged(pool[spans(starts, lengths)], offsets_of(lengths))
