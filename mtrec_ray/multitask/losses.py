"""From logits and labels to one loss: weighted sums over labels, divided once by the weights of the whole step.

    loss = sum_t task_weight_t * (sum over candidates of weight_t * loss_t) / N_t

N_t is the sum of `TaskKind.weights` of task t (most often the number of its observed labels) in the whole optimizer
step: all ranks, all micro-steps. So the gradient does not depend on how a step is cut into micro-steps and ranks. (The
mean of micro-batch means, which does, was shipped and later fixed by torchtitan #2206, verl #3332, mlx-lm #1413 and
others.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.model.position import placed_tasks
from mtrec_ray.multitask.propensity import InversePropensity
from mtrec_ray.tasks.kind import Candidates, Logits, TaskKind
from mtrec_ray.tasks.kinds import build_kinds

Views = Sequence[Logits]
"""Logits as each task reads them: one mapping for all tasks, or one for each in their order (see `balancing.point`)."""


class Objective:
    """The weighted sum over tasks, in the order of `kinds` (the manifest's), which is that of the labels' columns."""

    def __init__(
        self,
        kinds: Sequence[TaskKind],
        weights: Mapping[str, float],
        inverse_propensity: InversePropensity | None = None,
    ) -> None:
        self.kinds = list(kinds)
        self.inverse_propensity = inverse_propensity
        self.tasks = [kind.task.name for kind in self.kinds]
        self.weights = torch.tensor([weights[name] for name in self.tasks], dtype=torch.float64)

    def counts(self, candidates: Candidates) -> Tensor:
        """What a part of the step adds to N: float64 [T]."""
        candidates = self._weighted(candidates)
        return torch.stack([kind.weights(candidates).double().sum() for kind in self.kinds])

    def loss_sums(self, views: Views, candidates: Candidates) -> Tensor:
        """Per task the weighted sum of its candidates' losses, without the task's weight: [T]."""
        candidates = self._weighted(candidates)
        return torch.stack([self._row_losses(views, candidates, t).sum() for t in range(len(self.kinds))])

    def divergence_sums(self, first: Views, second: Views, candidates: Candidates) -> Tensor:
        """Per task the weighted sum of how far two predictions of each candidate are apart: [T]."""
        candidates = self._weighted(candidates)
        sums = []
        for t, kind in enumerate(self.kinds):
            weights = kind.weights(candidates)
            apart = kind.divergence(_read_by(t, first), _read_by(t, second), candidates)
            sums.append(torch.where(weights > 0, apart * weights.to(apart.dtype), 0.0).sum())
        return torch.stack(sums)

    def row_losses(self, views: Views, candidates: Candidates, t: int) -> Tensor:
        """[C] weight times loss of each candidate for task t; 0 where the weight is 0, whatever the loss."""
        return self._row_losses(views, self._weighted(candidates), t)

    def _row_losses(self, views: Views, candidates: Candidates, t: int) -> Tensor:
        kind = self.kinds[t]
        weights = kind.weights(candidates)
        losses = kind.losses(_read_by(t, views), candidates)
        return torch.where(weights > 0, losses * weights.to(losses.dtype), 0.0)

    def _weighted(self, candidates: Candidates) -> Candidates:
        """With the inverse propensities in their label weights."""
        if self.inverse_propensity is None:
            return candidates
        return replace(cast(Batch, candidates), label_weights=self.inverse_propensity.label_weights(candidates))

    def scales(self, counts: Tensor, factors: Tensor | None = None) -> Tensor:
        """N [T] of the whole step -> what each task's sum is multiplied with [T].

        `factors` [T]: of the tasks' weights in this step, by default ones.
        """
        weights = self.weights if factors is None else self.weights * factors
        return weights.to(counts.device) / torch.where(counts > 0, counts, 1.0)

    @staticmethod
    def loss(sums: Tensor, scales: Tensor) -> Tensor:
        """Sums [T] of a part of the step -> that part of the step's loss; the parts add up to the loss.

        A task of weight 0 adds an exact zero even where its own loss is infinite.
        """
        return torch.where(scales > 0, sums * scales.to(sums.dtype), 0.0).sum()


def _read_by(t: int, views: Views) -> Logits:
    return views[t] if len(views) > 1 else views[0]


def make_objective(run: Run, manifest: Manifest) -> Objective:
    """Of all tasks of the prepared data, with the run's weights. Raises `ConfigError` as `build_kinds`."""
    kinds, position = build_kinds(manifest, run.tasks), run.position
    inverse = None
    if position.inverse_propensity:
        tasks = [kind.index for kind in kinds if kind.task.name in placed_tasks(kinds, position)]
        inverse = InversePropensity(manifest.context.index("propensity"), tasks, position.clip)
    return Objective(kinds, {name: task.weight for name, task in run.tasks.items()}, inverse)
