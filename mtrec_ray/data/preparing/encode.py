"""Requests of a bucket -> rows of the request schema (docs/ARCHITECTURE.md), per split, and pretraining documents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables, log_vectors, stored_hashes
from mtrec_ray.data.features.side_features import candidate_categories, candidate_numbers, describe
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.fitting.joined_texts import encode_joined
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.fitting.texts import distinct_feedback
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.reading.context import CODED, context_texts
from mtrec_ray.data.requests.bucket import Bucket, lag_us
from mtrec_ray.data.requests.ids import EVENT, ITEM, USER, hash_ids
from mtrec_ray.data.requests.ragged import Ragged, offsets_of, spans
from mtrec_ray.data.requests.requests import Events, history_ends, without_exposures
from mtrec_ray.data.requests.windows import Windows, windows
from mtrec_ray.data.vectors import VECTORS, hash_column
from mtrec_ray.labels import MATCHING

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Encoded:
    """One bucket, encoded."""

    requests: dict[str, pa.Table]
    """Per split"""
    lengths: dict[str, pa.Table]
    """Per split: tokens and candidates of each request"""
    documents: pa.Table
    numbers: Array
    """float32 [C, F] of all candidates, in their order"""
    longest: dict[str, int]
    """`request`: most tokens of a request; `position`: most tokens that one candidate attends to"""
    counts: dict[str, int]
    """`cut_events` in the histories of requests, and `cut_candidates`, whose texts are longer than they may be"""


def encode(
    bucket: Bucket,
    run: Run,
    tables: Tables,
    fitted: Fitted,
    encoder: TextEncoder | None,
    shared_end: bool,
    item_past: Array,
) -> Encoded:
    """All requests of a bucket. Without an encoder of texts (`backbone: none`) the token lists are empty.

    `item_past`: float64 [C, .], how each candidate's item has done so far (`features.item_past`); [0, 0] if no declared
    aggregate asks for it.
    """
    events, ends, train_events = _history(bucket, run)
    described = describe(bucket, run, tables, fitted)
    numbers = candidate_numbers(bucket, described, run, fitted, item_past)
    texts, text = tables.row_texts(bucket.rows)
    event_tokens, cut = _event_tokens(events, texts, text[events.row], run, encoder)
    candidate_tokens, cut_candidates = _candidate_tokens(bucket, texts, text[bucket.candidates.row], run, encoder)
    named = [name for name in CODED if name in context_texts(run.data.columns)]
    unnamed = np.zeros(bucket.rows.num_rows, dtype=np.int64)
    rows = _RequestRows(
        bucket=bucket,
        events=events,
        event_tokens=event_tokens,
        candidate_tokens=candidate_tokens,
        numbers=numbers,
        vectors=log_vectors(bucket.rows, run),
        stored=stored_hashes(bucket.rows, run, tables),
        categories=candidate_categories(bucket, described),
        item_rows=fitted.items.lookup(bucket.rows.items),
        user_rows=fitted.users.lookup(bucket.rows.users),
        hashes=_hashes(bucket, run),
        domains=fitted.domains.lookup(bucket.rows.domain.tolist()) if "domain" in named else unnamed,
        policies=fitted.policies.lookup(bucket.rows.policy.tolist()) if "policy" in named else unnamed,
        named=named,
        asked="query" in context_texts(run.data.columns),
        delayed=any(task.window is not None for task in run.tasks.values()),
    )
    requests, lengths, longest, cut_events = {}, {}, {"request": 0, "position": 0}, 0
    for code, split in enumerate(SPLITS):
        plan = _requests(bucket, ends, code, run, shared_end)
        cut_events += int(cut[spans(events.starts[plan.user] + plan.first, plan.stop - plan.first)].sum())
        requests[split], lengths[split], seen = rows.table(plan)
        longest = {key: max(longest[key], seen[key]) for key in longest}
    return Encoded(
        requests=requests,
        lengths=lengths,
        documents=_documents(events, train_events, event_tokens),
        numbers=numbers,
        longest=longest,
        counts={"cut_events": cut_events, "cut_candidates": cut_candidates},
    )


def encode_documents(bucket: Bucket, run: Run, tables: Tables, encoder: TextEncoder) -> pa.Table:
    """The documents of a bucket alone: those of `encode`."""
    events, _, train_events = _history(bucket, run)
    texts, text = tables.row_texts(bucket.rows)
    return _documents(events, train_events, _event_tokens(events, texts, text[events.row], run, encoder)[0])


def _hashes(bucket: Bucket, run: Run) -> dict[str, Array]:
    """For hashed tables, and of items for the catalogue (`data.catalogue`)."""
    hashes: dict[str, Array] = {}
    if run.features.ids == "hashed":
        hashes[USER] = hash_ids(bucket.rows.users, "user")
    if hashes or any(task.kind in MATCHING for task in run.tasks.values()):
        hashes[ITEM] = hash_ids(bucket.rows.items, "item")
    return hashes


def _history(bucket: Bucket, run: Run) -> tuple[Events, Array, Array]:
    """The events that the model reads, each candidate's end in them, and which lie in the train period."""
    if run.history.exposures:
        return bucket.events, bucket.ends, bucket.train_events
    kept = ~np.isnan(bucket.events.feedback).all(axis=1)
    events = without_exposures(bucket.events)
    return events, history_ends(bucket.candidates, events, lag_us(run)), bucket.train_events[kept]


def _requests(bucket: Bucket, ends: Array, split: int, run: Run, shared_end: bool) -> Windows:
    """The requests of one split; their candidates are positions in the bucket's candidates."""
    mine = np.flatnonzero(bucket.split == split)
    found = windows(bucket.candidates.user[mine], ends[mine], run.history, shared_end)
    return replace(found, candidates=Ragged(mine[found.candidates.values], found.candidates.offsets))


def _event_tokens(
    events: Events, item_texts: Sequence[str], text: Array, run: Run, encoder: TextEncoder | None
) -> tuple[Ragged, Array]:
    """Tokens of each event, whose item has `item_texts[text]`, and bool [E] whether it was cut."""
    if encoder is None:
        none = np.zeros(len(events.row), dtype=bool)
        return Ragged(np.zeros(0, np.int32), np.zeros(len(none) + 1, np.int64)), none
    words, word = distinct_feedback(events.feedback, run)
    return encode_joined(words, item_texts, word, text, encoder, run.history.event_tokens)


def _candidate_tokens(
    bucket: Bucket, item_texts: Sequence[str], text: Array, run: Run, encoder: TextEncoder | None
) -> tuple[Ragged, int]:
    """Tokens of each candidate, at least one, and how many candidates were cut. Each different text is encoded once.

    A query stands before the item's text as feedback words do in an event, and has at most half of the tokens: items
    found by the same long query would else be read as the same.
    """
    row = bucket.candidates.row
    if encoder is None:
        return Ragged(np.zeros(0, np.int32), np.zeros(len(row) + 1, np.int64)), 0
    limit, count = run.history.candidate_tokens, max(len(item_texts), 1)
    asked = pa.array(bucket.rows.query[row], pa.string()).dictionary_encode()
    queries, cut_queries = encoder.shortened(asked.dictionary.to_pylist(), limit // 2)
    pairs = asked.indices.to_numpy().astype(np.int64) * count + text
    distinct, place = np.unique(pairs, return_inverse=True)
    texts = [_joined(queries[pair // count], item_texts[pair % count]) for pair in distinct.tolist()]
    ids, cut = encoder.encode(texts, limit)
    cut |= cut_queries[distinct // count]
    # The stand-in for a text without tokens stands behind all of them.
    values = np.append(ids.values, np.int32(encoder.stand_in))
    empty = ids.lengths == 0
    starts = np.where(empty, len(ids.values), ids.offsets[:-1])[place]
    lengths = np.where(empty, 1, ids.lengths)[place]
    return Ragged(values[spans(starts, lengths)], offsets_of(lengths)), int(cut[place].sum())


def _joined(query: str, text: str) -> str:
    return f"{query} {text}".strip() if query else text


def _documents(events: Events, train_events: Array, tokens: Ragged) -> pa.Table:
    """One document per user with the events of the train period, in their order."""
    user = np.repeat(np.arange(len(events.starts) - 1), np.diff(events.starts))
    counts = np.bincount(user[train_events], minlength=len(events.starts) - 1)
    documents = tokens.take(np.flatnonzero(train_events)).regroup(counts)
    documents = documents.take(np.flatnonzero(documents.lengths))
    return pa.table({"ids": documents.to_arrow()}, schema=pa.schema([("ids", pa.list_(pa.int32()))]))


@dataclass(frozen=True)
class _RequestRows:
    """The arrays that request rows are cut from."""

    bucket: Bucket
    events: Events
    event_tokens: Ragged
    candidate_tokens: Ragged
    numbers: Array
    vectors: Array
    """float32 [N, .] of the log's own; no columns without them"""
    stored: dict[str, Array]
    """int64 [N] per scope, see `attributes.stored_hashes`"""
    categories: Array
    item_rows: Array
    user_rows: Array
    hashes: dict[str, Array]
    """int64 of each of the bucket's users and items, where something names them by it"""
    domains: Array
    """int64 [N] row of the vocabulary of each of the bucket's rows; likewise `policies`"""
    policies: Array
    named: list[str]
    """Those of `CODED` that the log has: requests keep their text, too, since one that is not in train has index 0"""
    asked: bool
    """Whether the log has queries: requests keep them, since augmentation changes the item's text behind them"""
    delayed: bool
    """Whether a task has a window: requests keep how late feedback came"""

    def table(self, plan: Windows) -> tuple[pa.Table, pa.Table, dict[str, int]]:
        """Request rows, their lengths, and the longest request and position."""
        rows, candidates = self.bucket.rows, self.bucket.candidates
        counts = plan.stop - plan.first
        e = spans(self.events.starts[plan.user] + plan.first, counts)
        c = plan.candidates.values
        row = candidates.row[c]
        history = self.event_tokens.take(e).regroup(counts)
        own = self.candidate_tokens.take(c)
        uid_row = rows.row_id[candidates.row[plan.candidates.values[plan.candidates.offsets[:-1]]]]
        columns: dict[str, pa.Array] = {
            "request_uid": pa.array(uid_row),
            "user": _taken(rows.users, plan.user),
            "user_index": pa.array(self.user_rows[plan.user].astype(np.int32)),
            "history_ids": history.to_arrow(),
            "history_ends": _lists(_running(self.event_tokens.lengths[e], counts), counts, np.int32),
            "event_item": _lists(self.item_rows[rows.item[self.events.row[e]]], counts, np.int32),
            "event_time": _lists(self.events.time[e], counts, np.int64),
            "event_feedback": _lists(self.events.feedback[e], counts, np.float32),
            "candidate_ids": own.regroup(plan.candidates.lengths).to_arrow(),
            "candidate_ends": _lists(_running(own.lengths, plan.candidates.lengths), plan.candidates.lengths, np.int32),
            "candidate_events": _lists(plan.seen, plan.candidates.lengths, np.int32),
            "item": _listed(_taken(rows.items, rows.item[row]), plan.candidates.offsets),
            "item_index": _lists(self.item_rows[rows.item[row]], plan.candidates.lengths, np.int32),
            "time": _lists(rows.time[row], plan.candidates.lengths, np.int64),
            "row_id": _lists(rows.row_id[row], plan.candidates.lengths, np.int64),
            "categories": _lists(self.categories[c], plan.candidates.lengths, np.int32),
            "numbers": _lists(self.numbers[c], plan.candidates.lengths, np.float32),
            "labels": _lists(self.bucket.labels[c], plan.candidates.lengths, np.float32),
            "context": _lists(rows.context[row], plan.candidates.lengths, np.float32),
            "domain": _lists(self.domains[row], plan.candidates.lengths, np.int32),
            "policy": _lists(self.policies[row], plan.candidates.lengths, np.int32),
        }
        if self.vectors.shape[1]:
            columns[VECTORS] = _lists(self.vectors[row], plan.candidates.lengths, np.float32)
        if USER in self.hashes:
            columns[USER] = pa.array(self.hashes[USER][plan.user])
        if ITEM in self.hashes:
            of_items = self.hashes[ITEM][rows.item]
            columns[ITEM] = _lists(of_items[row], plan.candidates.lengths, np.int64)
            columns[EVENT] = _lists(of_items[self.events.row[e]], counts, np.int64)
        for scope, found in self.stored.items():
            columns[hash_column(scope)] = _lists(found[row], plan.candidates.lengths, np.int64)
        for name in self.named:
            columns[f"{name}_name"] = _listed(pa.array(getattr(rows, name)[row], pa.string()), plan.candidates.offsets)
        if self.asked:
            columns["query"] = _listed(pa.array(rows.query[row], pa.string()), plan.candidates.offsets)
        if self.delayed:
            late = self.bucket.delays
            columns["delays"] = _lists(late.delays[c], plan.candidates.lengths, np.float32)
            columns["elapsed"] = _lists(late.elapsed[c], plan.candidates.lengths, np.float32)
        tokens = history.lengths + own.regroup(plan.candidates.lengths).lengths
        lengths = {"tokens": tokens.astype(np.int32), "candidates": plan.candidates.lengths.astype(np.int32)}
        return pa.table(columns), pa.table(lengths), self._longest(plan, e, counts, tokens, own)

    def _longest(self, plan: Windows, e: Array, counts: Array, tokens: Array, own: Ragged) -> dict[str, int]:
        before = np.concatenate([[0], np.cumsum(self.event_tokens.lengths[e])])
        first = np.repeat(offsets_of(counts)[:-1], plan.candidates.lengths)
        position = before[first + plan.seen] - before[first] + own.lengths
        return {"request": int(tokens.max(initial=0)), "position": int(position.max(initial=0))}


def _running(lengths: Array, counts: Array) -> Array:
    """Running sums of `lengths` that start anew with each group of `counts` of them."""
    total = offsets_of(lengths)
    return total[1:] - np.repeat(total[offsets_of(counts)[:-1]], counts)


def _lists(values: Array, counts: Array, dtype: Any) -> pa.Array:
    """Lists of counts[0], counts[1], ... rows of `values` [N] or [N, k] (row-major)."""
    width = values.shape[1] if values.ndim > 1 else 1
    return Ragged(np.ascontiguousarray(values, dtype=dtype).ravel(), offsets_of(counts * width)).to_arrow()


def _taken(texts: Sequence[str], which: Array) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(which))


def _listed(values: pa.Array, offsets: Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
