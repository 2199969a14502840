"""One micro-step's data on one worker: several requests in one packed row, no padding."""

from dataclasses import dataclass, fields, replace

import torch

from mtrec_ray.model.layout import RequestLayout


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
    the log kept, over the share that `augment.negatives` keeps; 1 without all of these"""
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

    def to(self, device: torch.device | str) -> "Batch":
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def num_candidates(self) -> int:
        return self.labels.shape[0]
