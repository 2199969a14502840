"""One micro-step's data on one worker: several requests in one packed row, no padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from mtrec_ray.model.layout import RequestLayout, joined


@dataclass(frozen=True)
class Batch:
    """L tokens, R requests, C candidates, E history events, T tasks, G category slots, F numbers, X context columns.

    All of L, R, C, E may be zero: a worker that has no request left still takes part in the step.
    """

    ids: torch.Tensor
    """int64 [L] token ids"""
    layout: RequestLayout
    token_uids: torch.Tensor
    """int64 [L] names each token independently of packing and rank, for stateless dropout"""
    user_index: torch.Tensor
    """int64 [C] row of the user table, 0 = unknown"""
    item_index: torch.Tensor
    """int64 [C]"""
    categories: torch.Tensor
    """int64 [C, G], 0 = unknown, -1 = absent"""
    numbers: torch.Tensor
    """float32 [C, F], NaN = missing"""
    labels: torch.Tensor
    """float32 [C, T], NaN = not observed"""
    label_weights: torch.Tensor
    """float32 [C, T] how much each label counts in its task's loss: the row's weight, over the share of such rows that
    the log kept, over the shares that `augment.negatives` and `augment.domains` keep; 1 without all of
    these"""
    row_ids: torch.Tensor
    """int64 [C] names each candidate, for audits, predictions and stateless dropout"""
    times: torch.Tensor
    """int64 [C] microseconds since 1970"""
    event_item: torch.Tensor
    """int64 [E] row of the item table of each history event"""
    event_feedback: torch.Tensor
    """float32 [E, T] label that became known with the event, NaN = none"""
    event_time: torch.Tensor
    """int64 [E] microseconds since 1970"""
    request: torch.Tensor
    """int64 [C] number of each candidate's request in this batch, 0 .. R-1"""
    context: torch.Tensor
    """float32 [C, X] how the row came about, NaN = unknown; column k is `manifest.context[k]`"""
    delays: torch.Tensor
    """float32 [C, T] seconds from the row to its feedback, of labels 1 of tasks with a window; NaN elsewhere, and where
    the log does not say when it came"""
    elapsed: torch.Tensor
    """float32 [C] seconds from a train row to the end of what was known when its labels were taken; NaN for others"""
    domain: torch.Tensor
    """int64 [C] index into `manifest.domains`, 0 = unknown"""
    policy: torch.Tensor
    """int64 [C] index into `manifest.policies`, 0 = unknown"""
    shown: torch.Tensor
    """int64 [C] candidates of one request with the same number were shown together: the events that they saw as they
    were prepared"""
    candidate_event_start: torch.Tensor
    """int64 [C] first history event of the candidate's request, as an index into E"""
    candidate_event_end: torch.Tensor
    """int64 [C] one past the last history event the candidate may see"""
    vectors: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """float32 [C, V] the declared vectors side by side, see `manifest.vectors`; NaN in all of a missing one; [0, 0] of
    data without any"""
    catalogue: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 [C] row of the catalogue (`data.catalogue`) of each candidate's item; [0] of data without one"""
    event_catalogue: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 [E] row of the catalogue of each history event, likewise"""
    user_hash: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 [C] the user's id, hashed (`data.id_hashes`); [0] of data for exact tables, as the next two, but that data
    with a catalogue has hashes of items, too"""
    item_hash: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 [C]"""
    event_hash: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 [E] of the item of each history event"""

    def to(self, device: torch.device | str) -> "Batch":
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def num_candidates(self) -> int:
        return self.labels.shape[0]


_NUMBERED = ("request", "candidate_event_start", "candidate_event_end")
"""Fields that count requests or events from the batch's first one."""


def joined_batches(batches: Sequence[Batch]) -> Batch:
    """The requests of several batches in one row, batch after batch; all on one device."""
    tensors: dict[str, torch.Tensor] = {}
    for name in (f.name for f in fields(Batch) if f.name != "layout"):
        parts = [getattr(batch, name) for batch in batches]
        if name in _NUMBERED:
            parts = [part + first for part, first in zip(parts, _firsts(batches, name), strict=True)]
        tensors[name] = torch.cat(parts)
    return Batch(layout=joined(batch.layout for batch in batches), **tensors)


def _firsts(batches: Sequence[Batch], name: str) -> list[torch.Tensor | int]:
    """What the numbers of each batch begin with in the joined one; nothing here waits for the device."""
    firsts: list[torch.Tensor | int] = [0]
    for batch in batches[:-1]:
        # requests stand in their order, so the last candidate's has the largest number
        size = (batch.request[-1:] + 1).sum() if name == "request" else len(batch.event_item)
        firsts.append(firsts[-1] + size)
    return firsts
