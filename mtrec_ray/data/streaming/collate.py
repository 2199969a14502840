"""Arrow request rows -> `Batch`, with array operations only: nothing here loops over requests or candidates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import Catalogue, CatalogueRows
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.reading.context import row_weights
from mtrec_ray.data.requests.ids import EVENT, ITEM, USER
from mtrec_ray.data.streaming.augment.history import SHOWN
from mtrec_ray.data.streaming.augment.thinning import WEIGHT
from mtrec_ray.data.vectors import VECTORS, StoredVectors, assemble, hash_column
from mtrec_ray.model.dropout import token_uids
from mtrec_ray.model.layout import RequestLayout

Array = np.ndarray[Any, np.dtype[Any]]


class Collator:
    """Packs request rows (schema in docs/ARCHITECTURE.md) into one `Batch`; also of no rows at all.

    `causal` is false for an encoder, whose history reads in both directions. `stored`: the vectors of items and users
    (`data.vectors.load_vectors`), and `catalogue` (`data.catalogue.load_catalogue`), are needed for data that has some.
    """

    def __init__(
        self,
        manifest: Manifest,
        causal: bool = True,
        stored: Mapping[str, StoredVectors] | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        assert (manifest.catalogue is None) == (catalogue is None), "data with a catalogue is read with it"
        self.causal = causal
        self.catalogue = None if catalogue is None else CatalogueRows(catalogue)
        self.vectors, self.stored = manifest.vectors, stored or {}
        self.own_width = sum(entry.size for entry in manifest.vectors if entry.scope == "log")
        self.has_tokens = manifest.vocab_size > 0
        self.tasks = len(manifest.tasks)
        self.slots = sum(entry.width for entry in manifest.categories)
        self.features = len(manifest.numbers)
        self.context = list(manifest.context)

    def __call__(self, rows: pa.Table) -> Batch:
        candidates, item_index = _lists(rows, "item_index")
        events, event_item = _lists(rows, "event_item")
        count = len(item_index)
        request = np.repeat(np.arange(rows.num_rows), candidates)
        event_start = (np.cumsum(events) - events)[request]
        seen = _values(rows, "candidate_events", np.int64)
        layout = self._layout(rows, candidates, events, event_start, seen)
        request_uids = _tensor(rows.column("request_uid").to_numpy(), np.int64)
        return Batch(
            ids=self._ids(rows, layout),
            layout=layout,
            token_uids=token_uids(request_uids, layout.token_requests(), layout.request_offsets()),
            user_index=_tensor(rows.column("user_index").to_numpy()[request], np.int64),
            item_index=_tensor(item_index, np.int64),
            categories=_tensor(_values(rows, "categories"), np.int64).reshape(count, self.slots),
            numbers=_tensor(_values(rows, "numbers"), np.float32).reshape(count, self.features),
            labels=_tensor(_values(rows, "labels"), np.float32).reshape(count, self.tasks),
            label_weights=self._label_weights(rows, count),
            row_ids=_tensor(_values(rows, "row_id"), np.int64),
            times=_tensor(_values(rows, "time"), np.int64),
            event_item=_tensor(event_item, np.int64),
            event_feedback=_tensor(_values(rows, "event_feedback"), np.float32).reshape(len(event_item), self.tasks),
            event_time=_tensor(_values(rows, "event_time"), np.int64),
            request=_tensor(request, np.int64),
            context=_tensor(_values(rows, "context"), np.float32).reshape(count, len(self.context)),
            delays=_tensor(_optional(rows, "delays", count * self.tasks), np.float32).reshape(count, self.tasks),
            elapsed=_tensor(_optional(rows, "elapsed", count), np.float32),
            domain=_tensor(_values(rows, "domain"), np.int64),
            policy=_tensor(_values(rows, "policy"), np.int64),
            shown=_tensor(_values(rows, SHOWN if SHOWN in rows.column_names else "candidate_events"), np.int64),
            candidate_event_start=_tensor(event_start, np.int64),
            candidate_event_end=_tensor(event_start + seen, np.int64),
            vectors=self._vectors(rows, count),
            catalogue=self._catalogue_rows(rows, ITEM),
            event_catalogue=self._catalogue_rows(rows, EVENT),
            user_hash=_tensor(rows.column(USER).to_numpy()[request] if USER in rows.column_names else [], np.int64),
            item_hash=_tensor(_optional(rows, ITEM, 0), np.int64),
            event_hash=_tensor(_optional(rows, EVENT, 0), np.int64),
        )

    def _label_weights(self, rows: pa.Table, count: int) -> torch.Tensor:
        """float32 [C, T]"""
        context = _values(rows, "context", np.float64).reshape(count, len(self.context))
        weights = row_weights(context, self.context)
        if WEIGHT in rows.column_names:
            weights *= _values(rows, WEIGHT)
        return _tensor(np.repeat(weights[:, None], self.tasks, axis=1), np.float32)

    def _vectors(self, rows: pa.Table, count: int) -> torch.Tensor:
        """float32 [C, V]; [0, 0] of data without vectors."""
        if not self.vectors:
            return torch.zeros(0, 0)
        own = _values(rows, VECTORS) if self.own_width else np.zeros(0)
        stored = {scope: of.values for scope, of in self.stored.items()}
        named = {scope: of.rows(_values(rows, hash_column(scope))) for scope, of in self.stored.items()}
        return _tensor(assemble(self.vectors, own.reshape(count, self.own_width), stored, named), np.float32)

    def _catalogue_rows(self, rows: pa.Table, hashes: str) -> torch.Tensor:
        """int64 [C] or [E]; [0] of data without a catalogue."""
        return _tensor([] if self.catalogue is None else self.catalogue.of(_values(rows, hashes)), np.int64)

    def _layout(
        self, rows: pa.Table, candidates: Array, events: Array, event_start: Array, seen: Array
    ) -> RequestLayout:
        if not self.has_tokens:
            return RequestLayout.from_arrays([], [], [], [], self.causal)
        history_length = _lists(rows, "history_ids")[0]
        # The tokens of the first n events, at n; a zero before each request's first event makes n = 0 no exception.
        before = np.insert(_values(rows, "history_ends", np.int64), np.cumsum(events) - events, 0)
        first = event_start + np.repeat(np.arange(rows.num_rows), candidates)
        ends = _values(rows, "candidate_ends", np.int64)
        starts = np.roll(ends, 1)
        starts[(np.cumsum(candidates) - candidates)[candidates > 0]] = 0
        return RequestLayout.from_arrays(history_length, candidates, ends - starts, before[first + seen], self.causal)

    def _ids(self, rows: pa.Table, layout: RequestLayout) -> torch.Tensor:
        """int64 [L]: each request's history tokens, then its candidates' tokens."""
        if not self.has_tokens:
            return torch.zeros(0, dtype=torch.int64)
        history_length, history = _lists(rows, "history_ids")
        own = _values(rows, "candidate_ids")
        ids = np.empty(layout.length, dtype=np.int64)
        requests, offsets = layout.token_requests().numpy(), layout.request_offsets().numpy()
        in_history = offsets < history_length[requests]
        ids[in_history], ids[~in_history] = history, own
        return torch.from_numpy(ids)


def _lists(rows: pa.Table, name: str) -> tuple[Array, Array]:
    """Lengths of a list column's rows (int64), and its values one after another."""
    column = rows.column(name).combine_chunks()
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    return lengths, column.flatten().to_numpy(zero_copy_only=False)


def _values(rows: pa.Table, name: str, dtype: type | None = None) -> Array:
    values = _lists(rows, name)[1]
    return values if dtype is None else values.astype(dtype)


def _optional(rows: pa.Table, name: str, size: int) -> Array:
    """Numbers of a column that rows may lack, which are then NaN."""
    return _values(rows, name) if name in rows.column_names else np.full(size, np.nan)


def _tensor(values: Array | list[int], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=dtype))  # a copy: Arrow's memory is read-only
