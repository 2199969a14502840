"""The training loop: a generator of optimizer steps. When to log, evaluate and stop is the caller's business."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mtrec_ray.config import Regularization, Stage
from mtrec_ray.data.batch import Batch
from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import DivergedError
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.trained import Trained, trained_parts
from mtrec_ray.multitask.balancing.balancer import Balancer
from mtrec_ray.multitask.balancing.point import Point
from mtrec_ray.multitask.losses import Objective
from mtrec_ray.multitask.strategy.alternating import Turns, task_factors
from mtrec_ray.multitask.strategy.stages import Span
from mtrec_ray.train import regularization
from mtrec_ray.train.schedule import Decay, lr_scale
from mtrec_ray.train.steering import Steering


class StepData(Protocol):
    """One optimizer step's data on one rank: `data.streaming.stream.Step`."""

    @property
    def plan(self) -> Any: ...

    @property
    def batches(self) -> list[Batch]: ...


@dataclass(frozen=True)
class Recipe:
    """What a step needs beside model and data. Equal recipes, data and weights give equal steps."""

    objective: Objective
    balancer: Balancer
    num_steps: int
    """Optimizer steps of the whole run; the learning rate's schedule ends there."""
    warmup: float
    decay: Decay
    seed: int
    log_every: int
    """Steps between two logs, the last of which are those whose conflict is measured."""
    turns: Turns = "joint"
    labels: tuple[int, ...] = ()
    """Observed train labels of each task, for `turns` that draw by them."""
    steering: Steering | None = None
    """Of weights that validation rows move."""
    regularization: Regularization = Regularization()  # noqa: RUF009 - frozen

    def factors(self, step: int) -> Tensor | None:
        """[T] what the tasks' weights are multiplied with in a step (from 0); None = ones."""
        if self.steering is not None:
            return self.steering.weights.factors
        return task_factors(self.turns, self.objective.weights, self.labels, self.seed, step, self.num_steps)


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. Tensors stay on the device, so that the loop does not wait for it."""

    step: int
    """Steps done, this one included."""
    plan: Any
    """The order's plan of the step."""
    loss: Tensor
    """Weighted loss over all ranks, scalar."""
    task_loss: Tensor
    """[T] mean over the step's observed labels, with what `regularization` adds to it; NaN where there are none."""
    counts: Tensor
    """[T] observed labels, all ranks"""
    balance: Tensor
    """[T] what the balance method multiplied each task with, a mean over micro-steps; ones for the plain sum."""
    gramian: Tensor | None
    """[T, T] of the tasks' gradients at the balance point, where it was measured."""
    factors: Tensor | None
    """[T] what the tasks' weights were multiplied with, where validation rows steer them."""
    agreement: Tensor | None
    """[T] cosines of the tasks' gradients with that of the main tasks on validation rows, in steps that look there."""
    grad_norm: Tensor
    lr_scale: float
    candidates: int
    """On this rank."""
    tokens: int
    wait_seconds: float
    """Time in which this rank waited for its data."""
    seconds: float


def training_steps(
    engine: Engine, steps: Iterable[StepData], recipe: Recipe, first_step: int = 0, span: Span | None = None
) -> Iterator[StepResult]:
    """Trains on `steps`, the first of which is step `first_step` of the run, to the end of `span`, or of the recipe.

    Every rank brings equally many steps and equally many batches per step, empty ones included.

    Raises:
        DivergedError: the loss is not finite; on all ranks alike, and before the weights are touched.
    """
    source = iter(steps)
    engine.model.train()
    parts = trained_parts(engine.model)
    span = span or Span(0, recipe.num_steps, Stage(until=1.0))
    for step in range(first_step, span.last):
        if not engine.model.training:  # the caller may evaluate between two steps
            engine.model.train()
        started = time.perf_counter()
        data = next(source)
        waited = time.perf_counter() - started
        done = _take_step(engine, parts, recipe, step, data.batches, span)
        yield StepResult(
            step=step + 1,
            plan=data.plan,
            **done,
            candidates=sum(batch.num_candidates for batch in data.batches),
            tokens=sum(len(batch.ids) for batch in data.batches),
            wait_seconds=waited,
            seconds=time.perf_counter() - started,
        )


def is_logged(step: int, recipe: Recipe) -> bool:
    """Whether the run is logged after so many steps."""
    return step % recipe.log_every == 0 or step == recipe.num_steps


def _take_step(
    engine: Engine, parts: list[Trained], recipe: Recipe, step: int, batches: list[Batch], span: Span
) -> dict[str, Any]:
    """What `StepResult` says of the step itself."""
    objective, balancer, key = recipe.objective, recipe.balancer, DropoutKey(recipe.seed, step)
    micro_counts = torch.stack([objective.counts(batch) for batch in batches]).to(engine.device)
    counts = engine.sum_over_ranks(micro_counts.sum(0))
    factors = recipe.factors(step)
    scales = objective.scales(counts, factors)
    look = None if recipe.steering is None else recipe.steering.open_step(step, span.last)
    watch, see = is_logged(step + 1, recipe), None if look is None else look.see
    balanced = balancer.open_step(step, counts, scales, watch, see)

    def loss_sums(m: int, point: Point | None) -> Tensor:
        batch = batches[m].to(engine.device)
        return regularization.loss_sums(recipe.regularization, engine, objective, batch, key, scales, point)

    if balancer.looks_ahead:
        balanced.look(loss_sums, len(batches))
    sums = torch.zeros(len(counts), dtype=torch.float64, device=engine.device)
    for m in range(len(batches)):
        micro_sums = loss_sums(m, balanced.point)
        micro_loss = balanced.loss(micro_sums, micro_counts[m])
        for part in parts:
            if (extra := part.extra_loss()) is not None:
                micro_loss = micro_loss + extra / (len(batches) * engine.world_size)
        engine.backward(micro_loss, last=m == len(batches) - 1)
        sums += micro_sums.detach()
    sums = engine.sum_over_ranks(sums)
    loss = objective.loss(sums, scales)
    # The one place where a step waits for the device: weights must not be updated from a loss that is not finite.
    if not bool(torch.isfinite(loss)):
        raise _not_finite(engine, recipe, step, sums, batches)
    agreement = None if look is None else look.close()
    scale = lr_scale(step, recipe.num_steps, recipe.warmup, recipe.decay, span.first)
    for part in parts:
        part.before_step()
    grad_norm = engine.step(scale)
    for part in parts:
        part.after_step(step + 1, recipe.num_steps)
    again = None
    if balancer.looks_back:
        with torch.no_grad():
            again = engine.sum_over_ranks(
                torch.stack([loss_sums(m, None) for m in range(len(batches))]).double().sum(0)
            )
    balanced.close(sums, again)
    return {
        "loss": loss,
        "task_loss": sums / counts,
        "counts": counts,
        "balance": balanced.weights,
        "gramian": balanced.conflict,
        "factors": None if recipe.steering is None else factors,
        "agreement": agreement,
        "grad_norm": grad_norm,
        "lr_scale": scale,
    }


_NAMED_ROWS = 3
"""Log rows that an error names, of each rank."""


def _not_finite(engine: Engine, recipe: Recipe, step: int, sums: Tensor, batches: list[Batch]) -> DivergedError:
    """Names the tasks and log rows. `sums` are over all ranks, so all of them come here together and raise the same."""
    objective = recipe.objective
    finite = (torch.isfinite(sums).cpu() | (objective.weights == 0)).tolist()
    bad = [t for t, fine in enumerate(finite) if not fine]
    rows: list[int] = []
    with torch.no_grad():
        for batch in (batch.to(engine.device) for batch in batches):
            views = engine.forward(batch, DropoutKey(recipe.seed, step))
            for t in bad:
                rows += batch.row_ids[~torch.isfinite(objective.row_losses(views, batch, t))].tolist()
    named = torch.full((engine.world_size, _NAMED_ROWS), -1, dtype=torch.int64, device=engine.device)
    own = sorted(set(rows))[:_NAMED_ROWS]
    named[engine.world_rank, : len(own)] = torch.tensor(own, dtype=torch.int64)
    named = engine.sum_over_ranks(named + 1) - 1  # 0 in the places of other ranks
    told = [f"row {row & ((1 << 40) - 1)} of log file {row >> 40}" for row in named.flatten().tolist() if row >= 0]
    where = f", first in {', '.join(told[:_NAMED_ROWS])} (see files.parquet of the prepared data)" if told else ""
    return DivergedError(
        f"step {step + 1}: the loss of {', '.join(objective.tasks[t] for t in bad) or 'all tasks together'} is not "
        f"finite{where}. Lower train.learning_rate or set train.clip_norm; if it happens in the first steps, look for "
        "extreme values in that task's labels."
    )
