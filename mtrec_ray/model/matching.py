"""Logits of tasks that match a user with an item: inner products of a vector of each."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtrec_ray.config import Features, Matching
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.history_attention import visible_pairs
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


class VectorPair(nn.Module):
    """The vectors of users and of items, of one task or of several.

    `user` holds the users' vectors [C, dim] of the last pass that scored, for rankings of the whole catalogue
    (`train.ranks`).
    """

    def __init__(self, items: ItemVectors, users: UserVectors, kinds: Sequence[TaskKind]) -> None:
        super().__init__()
        self.items, self.users = items, users
        self.tasks = [kind.task.name for kind in kinds]
        self.user: Tensor | None = None

    def forward(
        self, batch: Batch, past: Tensor | None, embed: Embed | None, further: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors [C, dim] of users and of their candidates, and [M, dim] of `further` rows of the catalogue."""
        rows = [batch.catalogue, batch.event_catalogue, *further.values()]
        distinct, place = torch.unique(torch.cat(rows), return_inverse=True)
        vectors = handed_out(self.items(distinct, embed), place)
        own, events, *others = vectors.split([len(part) for part in rows])
        user = self.users(batch, past, events)
        if not self.training:
            self.user = user.detach()
        return user, own, dict(zip(further, others, strict=True))


class Matcher(nn.Module):
    """`Batch` -> logits {task: [C, K]}: the candidate's own item first, and in training, of kind `retrieval`, the
    negatives of the step behind it, corrected for how often they are drawn (see `tasks.matching.Retrieval`).

    The negatives are a function of the context's key (seed and step) and the task's name: all rows of a step have the
    same ones, on all ranks. `pairs` holds the vectors of each task, or with `matching.shared` one pair for all.
    """

    first_seen: Tensor

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
        self.context, self.catalogue, self.is_shared = context, catalogue, config.shared
        self.pairs = nn.ModuleList(
            VectorPair(
                ItemVectors(manifest, catalogue, config, features, hidden_size, context),
                UserVectors(manifest.tasks, manifest.vectors, config, hidden_size),
                served,
            )
            for served in ([self.kinds] if config.shared else [[kind] for kind in self.kinds])
        )
        self.register_buffer("first_seen", torch.tensor(catalogue.first_seen), persistent=False)
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

    def pair_of(self, task: str) -> VectorPair:
        """The vectors of a task; raises `KeyError` for one that does not match."""
        for pair in self.pairs:
            assert isinstance(pair, VectorPair)
            if task in pair.tasks:
                return pair
        raise KeyError(task)

    def forward(self, batch: Batch, past: Tensor | None, embed: Embed | None) -> dict[str, Tensor]:
        """`past`: see `UserVectors`; `embed`: the backbone's token embeddings, None without one.

        Computed also for no candidates, so that every worker takes part in every exchange.
        """
        drawn = self._draw(batch.catalogue.device) if self.training else {}
        found: dict[str, Tensor] = {}
        for pair in self.pairs:
            assert isinstance(pair, VectorPair)
            further = {name: drawn[name][0] for name in pair.tasks if name in drawn}
            user, own, negatives = pair(batch, past, embed, further)
            for name in pair.tasks:
                found[name] = (user * own).sum(1, keepdim=True)
                if name in negatives:
                    found[name] = torch.cat([found[name], user @ negatives[name].T], dim=1)
        logits, biases = {}, iter(() if self.bias is None else self.bias)
        for number, kind in enumerate(self.kinds):
            name = kind.task.name
            logits[name] = found[name] * self._scale(number)
            if isinstance(kind, InterestMatch):
                logits[name] = logits[name] + next(biases)
            if isinstance(kind, Retrieval) and name in drawn:
                rows, log_expected = drawn[name]
                own, others = logits[name].split([1, len(rows)], dim=1)
                others = others - log_expected.to(others.dtype)
                logits[name] = torch.cat([own, others.masked_fill(self._left_out(kind, batch, rows), _MASKED)], dim=1)
        return logits

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        names = [kind.task.name for kind in self.kinds]
        with_bias = [kind.task.name for kind in self.kinds if isinstance(kind, InterestMatch)]
        pairs = ["all tasks"] if self.is_shared else names
        return {"pairs": [pairs], "log_scale": [names], "bias": [with_bias]}

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
        """bool [C, M]: negatives that are the candidate's own item, that did not exist yet, or, if these do not count,
        that it has seen."""
        left_out = batch.catalogue[:, None] == negatives
        left_out |= self.first_seen[negatives] > batch.times[:, None]
        if kind.params.exclude_seen:
            distinct, which = torch.unique(negatives, return_inverse=True)
            place = torch.searchsorted(distinct, batch.event_catalogue).clamp(max=len(distinct) - 1)
            candidate, event = visible_pairs(batch.candidate_event_start, batch.candidate_event_end)
            hit = (distinct[place] == batch.event_catalogue)[event]
            seen = left_out.new_zeros(len(batch.times), len(distinct))
            seen[candidate[hit], place[event[hit]]] = True
            left_out |= seen[:, which]
        return left_out

    def _scale(self, number: int) -> Tensor | float:
        if self.log_scale is None:
            return 1.0
        return self.log_scale[number].clamp(max=math.log(LARGEST_SCALE)).exp()
