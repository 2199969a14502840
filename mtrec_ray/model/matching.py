"""Logits of tasks that match a user with an item: inner products of a vector of each, shared by all such tasks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtrec_ray.config import Features, Matching
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.item_vectors import Embed, ItemVectors
from mtrec_ray.model.negatives import NegativeSampler
from mtrec_ray.model.user_vectors import UserVectors
from mtrec_ray.tasks.groups import handed_out
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.matching import InterestMatch, MatchingKind, Retrieval

LARGEST_SCALE = 100.0
"""As in CLIP (Radford et al. 2021, arXiv 2103.00020, Sec. 2.5), whose softmax became unstable beyond."""
_MASKED = -1e30
"""The logit of a negative that does not count: finite, so that differences of two are 0 and not undefined."""


class Matcher(nn.Module):
    """`Batch` -> logits {task: [C, K]}: the candidate's own item first, and in training, of kind `retrieval`, the
    negatives of the step behind it, corrected for how often they are drawn (see `tasks.matching.Retrieval`).

    The negatives are a function of the context's key (seed and step) and the task's name: all rows of a step have the
    same ones, on all ranks. `user` holds the users' vectors [C, dim] of the last pass that scored, for rankings of the
    whole catalogue (`train.ranks`).
    """

    def __init__(
        self,
        manifest: Manifest,
        catalogue: Catalogue,
        kinds: Sequence[TaskKind],
        config: Matching,
        features: Features,
        hidden_size: int | None,
        context: DropoutContext,
    ) -> None:
        """`kinds`: of all tasks; `hidden_size`: of the backbone, None without one."""
        super().__init__()
        self.kinds = [kind for kind in kinds if isinstance(kind, MatchingKind)]
        self.context, self.catalogue = context, catalogue
        self.items = ItemVectors(manifest, catalogue, config, features, hidden_size, context)
        self.users = UserVectors(manifest.tasks, config, hidden_size)
        self.log_scale = None
        if config.similarity == "cosine":
            self.log_scale = nn.Parameter(torch.tensor([math.log(kind.first_scale) for kind in self.kinds]))
        of_labels = [kind.initial_bias()[0] for kind in self.kinds if isinstance(kind, InterestMatch)]
        self.bias = nn.Parameter(torch.tensor(of_labels)) if of_labels else None
        self._samplers = {
            kind.task.name: NegativeSampler(catalogue.shown, kind.params.power)
            for kind in self.kinds
            if isinstance(kind, Retrieval)
        }
        self.user: Tensor | None = None

    def forward(self, batch: Batch, past: Tensor | None, embed: Embed | None) -> dict[str, Tensor]:
        """`past`: see `UserVectors`; `embed`: the backbone's token embeddings, None without one.

        Computed also for no candidates, so that every worker takes part in every exchange.
        """
        drawn = self._draw(batch.catalogue.device) if self.training else {}
        rows = [batch.catalogue, batch.event_catalogue, *(negatives for negatives, _ in drawn.values())]
        distinct, place = torch.unique(torch.cat(rows), return_inverse=True)
        vectors = handed_out(self.items(distinct, embed), place)
        own, events, *others = vectors.split([len(part) for part in rows])
        user = self.users(batch, past, events)
        if not self.training:
            self.user = user.detach()
        negatives = dict(zip(drawn, others, strict=True))
        logits, biases = {}, iter(() if self.bias is None else self.bias)
        for number, kind in enumerate(self.kinds):
            name = kind.task.name
            scale = self._scale(number)
            first = (user * own).sum(1, keepdim=True) * scale
            if isinstance(kind, InterestMatch):
                first = first + next(biases)
            if isinstance(kind, Retrieval) and name in drawn:
                found, log_expected = drawn[name]
                corrected = user @ negatives[name].T * scale - log_expected.to(user.dtype)
                first = torch.cat([first, corrected.masked_fill(self._left_out(kind, batch, found), _MASKED)], dim=1)
            logits[name] = first
        return logits

    def _draw(self, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        """Task -> int64 [M] rows of the catalogue, float64 [M] log(M q)."""
        if self.context.key is None:
            raise ValueError("negatives need a DropoutKey in training")
        found = {}
        for kind in self.kinds:
            if isinstance(kind, Retrieval):
                name, count = kind.task.name, kind.params.negatives
                rows, log_q = self._samplers[name].draw(count, self.context.key.salt(f"negatives.{name}"))
                found[name] = torch.from_numpy(rows).to(device), torch.from_numpy(log_q + math.log(count)).to(device)
        return found

    def _left_out(self, kind: Retrieval, batch: Batch, negatives: Tensor) -> Tensor:
        """bool [C, M]: negatives that are the candidate's own item, or that it has seen, if these do not count."""
        left_out = batch.catalogue[:, None] == negatives
        if kind.params.exclude_seen:
            hits = (batch.event_catalogue[:, None] == negatives).long().cumsum(0)
            until = torch.cat([hits.new_zeros(1, len(negatives)), hits])  # [e]: among the first e events
            left_out |= until[batch.candidate_event_end] > until[batch.candidate_event_start]
        return left_out

    def _scale(self, number: int) -> Tensor | float:
        if self.log_scale is None:
            return 1.0
        return self.log_scale[number].clamp(max=math.log(LARGEST_SCALE)).exp()
