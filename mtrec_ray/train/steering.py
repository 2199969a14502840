"""Steps that also look at validation rows: gradients of both splits, summed over ranks, for `strategy.adaptive`.

Look n, in step n * every (from 0), reads step n of the validation split, over and over from its beginning. So what a
look sees depends on the step alone: it is the same on any number of workers and after a resumption. The rows pass as
those of the step do, with dropout and with the train loss; the backbone computes without gradients.
"""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mtrec_ray.config import Adaptive
from mtrec_ray.data.batch import Batch
from mtrec_ray.engine.base import Engine
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.balancing.point import Probe
from mtrec_ray.multitask.losses import Objective
from mtrec_ray.multitask.strategy.adaptive import AdaptiveWeights
from mtrec_ray.multitask.strategy.shared_layer import SharedLayer


class ValidationSteps(Protocol):
    """The validation split as `train.worker.TrainingData` has it."""

    def steps(self, first: int, last: int) -> Iterator[Any]:
        """Steps [first, last), counted over epochs, each with its `batches` of this rank."""
        ...


class Steering:
    """Adaptive weights at work in a span of steps, with one engine."""

    def __init__(
        self,
        weights: AdaptiveWeights,
        config: Adaptive,
        objective: Objective,
        engine: Engine,
        valid: ValidationSteps,
        seed: int,
    ) -> None:
        self.weights, self.objective, self.engine, self.seed = weights, objective, engine, seed
        self.layer = SharedLayer(cast(Any, engine.model).fuse)
        self._every, self._valid = config.every, valid
        self._looks: Iterator[Any] | None = None

    def open_step(self, step: int, last: int) -> "Look | None":
        """Begins a step (from 0) of a span that ends before `last`; None in steps that do not look."""
        if step % self._every != 0:
            return None
        if self._looks is None:
            self._looks = self._valid.steps(step // self._every, -(-last // self._every))
        return Look(self, step, next(self._looks).batches)

    def close(self) -> None:
        """Ends the reading of validation rows."""
        if self._looks is not None:
            cast(Any, self._looks).close()


class Look:
    """One step: the validation rows at once, then `see` in each backward pass of the step, then `close`."""

    def __init__(self, steering: Steering, step: int, valid: list[Batch]) -> None:
        self._steering = steering
        steering.layer.listens = True
        # A task that is not a main one has scale 0, and so a gradient of zeros.
        self._wanted = self._of_validation(step, valid).sum(0)
        self._found = torch.zeros_like(self._wanted).repeat(len(steering.objective.tasks), 1)

    def see(self, arriving: Tensor) -> None:
        """Takes what arrives at the copies of z in a backward pass of the step."""
        self._found += self._steering.layer.gradients(arriving)

    def close(self) -> Tensor:
        """Moves the weights, after the last backward pass; gives the cosines [T] by which it did (see `learn`)."""
        steering = self._steering
        steering.layer.listens = False
        found = steering.engine.sum_over_ranks(self._found)
        return steering.weights.learn(self._wanted.cpu(), found.cpu())

    def _of_validation(self, step: int, batches: list[Batch]) -> Tensor:
        """[T, P] the gradients of the main tasks' weighted losses, over all ranks."""
        layer, objective, engine = self._steering.layer, self._steering.objective, self._steering.engine
        there = [batch.to(engine.device) for batch in batches]
        counts = engine.sum_over_ranks(torch.stack([objective.counts(batch) for batch in there]).sum(0))
        scales = objective.scales(counts, self._steering.weights.main.double())
        parts: list[Tensor] = []
        for batch in there:
            probe = Probe(lambda arriving: parts.append(layer.gradients(arriving)))
            sums = objective.loss_sums(engine.forward(batch, DropoutKey(self._steering.seed, step), probe), batch)
            probe.gramian(Objective.loss(sums, scales))
        return engine.sum_over_ranks(torch.stack(parts).sum(0))
