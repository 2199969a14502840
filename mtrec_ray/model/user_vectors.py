"""The vector of a user before a candidate: of the history that the candidate sees and of the user's declared vectors,
and of nothing of the candidate."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.config import Matching
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import VectorEntry
from mtrec_ray.model.entries import Axis, numbered, of_feedback
from mtrec_ray.model.history_attention import visible_pairs
from mtrec_ray.model.vectors import VectorProjection
from mtrec_ray.tasks.groups import group_log_softmax, weighted_sums
from mtrec_ray.tasks.kind import FittedTask

_SECONDS = 1e6


class UserVectors(nn.Module):
    """`Batch` -> [C, dim], through a linear layer from what is known of the user:

    - with a backbone, its hidden state at the last history token that the candidate sees, or a learned vector where
      there is none;
    - a mean of the vectors of the visible events' items. An event's weight is the softmax over the candidate's events
      of a learned score of its feedback, less learned slopes (never below 0) times log(1 + age in seconds) and
      log(1 + number of newer visible events). A learned null event takes part, so an empty history has a vector;
    - each declared vector of the user (`data.users.vectors`) as of the candidate's time, projected (`model.vectors`).

    The log's own vectors are not read, though the batch has them: a row of the log is of a user and an item, and nobody
    says which of them its vector is of. Of the item, it would tell which candidate the user is about to see.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tasks: Sequence[FittedTask],
        vectors: Sequence[VectorEntry],
        config: Matching,
        hidden_size: int | None,
    ) -> None:
        """`vectors`: all that are declared."""
        super().__init__()
        dim = config.dim
        self.has_unit_length = config.similarity == "cosine"
        self.reads_text = hidden_size is not None
        if hidden_size is not None:
            self.text = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, dim))
            self.no_text = nn.Parameter(torch.zeros(dim))
        self.feedback = nn.Linear(2 * len(tasks), 1)
        nn.init.zeros_(self.feedback.weight)
        nn.init.zeros_(self.feedback.bias)
        self.slopes = nn.Parameter(torch.zeros(2))
        self.null_event = nn.Parameter(torch.zeros(dim))
        self.null_score = nn.Parameter(torch.tensor([-8.0]))  # at first about that of an event of a day ago
        self.projections = nn.ModuleList(VectorProjection(entry, dim) for entry in vectors if entry.scope == "user")
        self.out = nn.Linear((1 + self.reads_text + len(self.projections)) * dim, dim)
        self._tasks = [t.name for t in tasks]
        self.register_buffer("mean", torch.tensor([t.mean for t in tasks]), persistent=False)
        self.register_buffer("std", torch.tensor([t.std if t.std > 0 else 1.0 for t in tasks]), persistent=False)

    def forward(self, batch: Batch, past: Tensor | None, events: Tensor) -> Tensor:
        """`past` [C, H] hidden states (of any value where no history token is seen); `events` [E, dim] item vectors."""
        parts = [self._mean_of_items(batch, events)]
        if self.reads_text:
            assert past is not None
            seen = (batch.layout.candidate_end > 0)[:, None]
            parts.append(torch.where(seen, self.text(torch.where(seen, past, 0.0)), self.no_text))
        parts += [projection(batch.vectors) for projection in self.projections]
        vectors: Tensor = self.out(torch.cat(parts, dim=1))
        return functional.normalize(vectors, dim=1) if self.has_unit_length else vectors

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        vectors = [cast(VectorProjection, projection).name for projection in self.projections]
        views = ["items", *(["text"] if self.reads_text else []), *vectors]
        read = [column for view in views for column in numbered(view, len(self.null_event))]
        return {
            "feedback.weight": [None, of_feedback(self._tasks)],
            "out.weight": [None, read],
            "projections": [vectors],
        }

    def _mean_of_items(self, batch: Batch, events: Tensor) -> Tensor:
        """[C, dim]"""
        count = len(batch.times)
        candidate, event = visible_pairs(batch.candidate_event_start, batch.candidate_event_end)
        age = (batch.times[candidate] - batch.event_time[event]).clamp(min=0) / _SECONDS
        newer = batch.candidate_event_end[candidate] - 1 - event
        recency = torch.log1p(torch.stack([age, newer], dim=1).to(events.dtype)) @ functional.softplus(self.slopes)
        score = self._feedback_score(batch)[event] - recency
        # the null event stands behind the others, and a pair for each candidate behind those of visible events
        owner = torch.cat([candidate, torch.arange(count, device=candidate.device)])
        place = torch.cat([event, event.new_full((count,), len(events))])
        scores = torch.cat([score, self.null_score.expand(count)])
        weight = torch.exp(group_log_softmax(scores, owner, torch.ones_like(owner, dtype=torch.bool)))
        return weighted_sums(torch.cat([events, self.null_event[None]]), weight, place, owner, count)

    def _feedback_score(self, batch: Batch) -> Tensor:
        """[E]"""
        observed = ~torch.isnan(batch.event_feedback)
        value = torch.where(observed, (batch.event_feedback - self.mean) / self.std, 0.0)
        score: Tensor = self.feedback(torch.cat([value, observed.to(value.dtype)], dim=1).to(self.slopes.dtype))
        return score[:, 0]
