"""Attention from a candidate's item to the items of its history, without padding."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.data.batch import Batch
from mtrec_ray.model.entries import Axis, numbered, of_feedback
from mtrec_ray.model.id_table import IdVectors, ids_of
from mtrec_ray.tasks.kind import FittedTask

_SECONDS = 1e6
GAPS = 32
"""Spans of time that have a bias of their own; the last one is all from 68 years on."""


class HistoryAttention(nn.Module):
    """What a user did with similar items: [C, 2 dim] from the candidate's visible events.

    As in DIN (Zhou et al. 2018) the candidate's item weighs the events; here by a scaled dot product plus a learned
    slope on the age of the event. Keys are item embeddings, values item embeddings and the standardised feedback then
    known; a learned null event takes the weight when nothing in the history matters, or there is none. The second half
    of the output is the plain mean of the values.

    With `gaps` the score has a learned bias by the gap between event and candidate, too: the temporal part of rab^{p,t}
    in A(X) = phi(Q(X) K(X)^T + rab^{p,t}) of Zhai et al. 2024 (arXiv 2402.17152, HSTU), who take it over from the
    personalised time intervals of TiSASRec (Li, Wang and McAuley, WSDM 2020). Spans double: span k holds the gaps from
    2^k - 1 to 2^(k + 1) - 1 seconds. It differs from theirs in that the gap is that to the candidate and not between
    events: so all candidates of a request can share one history, whose own reading it leaves as it is; and in that
    there is no part for the position, and a softmax. The slope cannot say that yesterday at this time counts more than
    an hour ago; the biases begin at 0 and can.
    """

    mean: Tensor
    std: Tensor
    gap_edges: Tensor

    def __init__(self, items: IdVectors, tasks: Sequence[FittedTask], gaps: bool = True) -> None:
        super().__init__()
        self.items, dim = items, items.weight.shape[1]
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim + 2 * len(tasks) + 1, dim)
        self.null_score = nn.Parameter(torch.zeros(1))
        self.age_slope = nn.Parameter(torch.zeros(1))
        self.gap_bias = nn.Parameter(torch.zeros(GAPS)) if gaps else None
        edges = (2 ** torch.arange(1, GAPS, dtype=torch.int64) - 1) * int(_SECONDS)
        self.register_buffer("gap_edges", edges, persistent=False)
        self.register_buffer("mean", torch.tensor([t.mean for t in tasks]), persistent=False)
        self.register_buffer("std", torch.tensor([t.std if t.std > 0 else 1.0 for t in tasks]), persistent=False)
        self.out_dim = 2 * dim
        self._tasks = [t.name for t in tasks]

    def forward(self, batch: Batch) -> Tensor:
        candidate, event = visible_pairs(batch.candidate_event_start, batch.candidate_event_end)
        embedded = self.items(ids_of(batch, "event", self.items))  # [E, dim]
        query = self.query(self.items(ids_of(batch, "item", self.items)))  # [C, dim]
        gap = (batch.times[candidate] - batch.event_time[event]).clamp(min=0)
        age = torch.log1p((gap / _SECONDS).float())
        score = (query[candidate] * self.key(embedded)[event]).sum(-1) / query.shape[-1] ** 0.5
        score = score - functional.softplus(self.age_slope) * age
        if self.gap_bias is not None:
            score = score + self.gap_bias[torch.bucketize(gap, self.gap_edges, right=True)]
        weight = self._softmax(score, candidate, len(query))
        observed = ~torch.isnan(batch.event_feedback)
        feedback = torch.where(observed, (batch.event_feedback - self.mean) / self.std, 0.0)
        known = torch.cat([embedded, feedback, observed.float()], dim=1)[event]
        value = torch.relu(self.value(torch.cat([known, age[:, None] / 10], dim=1)))  # [P, dim]
        attended = _segment_sum(weight[:, None] * value, candidate, len(query))
        seen = (batch.candidate_event_end - batch.candidate_event_start).clamp(min=1)
        return torch.cat([attended, _segment_sum(value, candidate, len(query)) / seen[:, None]], dim=1)

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        item = numbered("item", self.items.weight.shape[1])
        return {"value.weight": [None, [*item, *of_feedback(self._tasks), "age"]]}

    def _softmax(self, score: Tensor, candidate: Tensor, candidates: int) -> Tensor:
        """Softmax over each candidate's events and the null event."""
        top = self.null_score.detach().expand(candidates).scatter_reduce(0, candidate, score.detach(), "amax")
        weight = torch.exp(score - top[candidate])
        total = _segment_sum(weight[:, None], candidate, candidates)[:, 0] + torch.exp(self.null_score - top)
        return weight / total[candidate]


def visible_pairs(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Event ranges [start, end) of the candidates [C] -> every (candidate, event) pair, as two int64 [P]."""
    count = end - start
    candidate = torch.repeat_interleave(torch.arange(len(start), device=start.device), count)
    first = count.cumsum(0) - count
    event = start[candidate] + torch.arange(len(candidate), device=start.device) - first[candidate]
    return candidate, event


def _segment_sum(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """[P, D] -> [segments, D]."""
    return values.new_zeros(segments, values.shape[1]).index_add(0, segment, values)
