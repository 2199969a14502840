"""The training loop: a generator of optimizer steps. When to log, evaluate and stop is the caller's business."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import UserError
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.losses import Objective, label_counts
from mtrec_ray.train.schedule import Decay, lr_scale


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
    num_steps: int
    """Optimizer steps of the whole run; the learning rate's schedule ends there."""
    warmup: float
    decay: Decay
    seed: int


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
    """[T] mean over the step's observed labels; NaN where there are none."""
    counts: Tensor
    """[T] observed labels, all ranks"""
    grad_norm: Tensor
    lr_scale: float
    candidates: int
    """On this rank."""
    tokens: int
    wait_seconds: float
    """Time in which this rank waited for its data."""
    seconds: float


def training_steps(
    engine: Engine, steps: Iterable[StepData], recipe: Recipe, first_step: int = 0
) -> Iterator[StepResult]:
    """Trains on `steps`, the first of which is step `first_step` of the run, to the end of the recipe.

    Every rank brings equally many steps and equally many batches per step, empty ones included.

    Raises:
        UserError: the loss is not finite; on all ranks alike, and before the weights are touched.
    """
    source = iter(steps)
    engine.model.train()
    for step in range(first_step, recipe.num_steps):
        if not engine.model.training:  # the caller may evaluate between two steps
            engine.model.train()
        started = time.perf_counter()
        data = next(source)
        batches = data.batches
        waited = time.perf_counter() - started
        counts = sum(label_counts(batch.labels) for batch in batches).to(engine.device)  # type: ignore[union-attr]
        counts = engine.sum_over_ranks(counts)
        scales = recipe.objective.scales(counts)
        sums = torch.zeros(len(counts), dtype=torch.float64, device=engine.device)
        for m, batch in enumerate(batches, 1):
            batch = batch.to(engine.device)
            logits = engine.forward(batch, DropoutKey(recipe.seed, step))
            micro_sums = recipe.objective.loss_sums(logits, batch.labels)
            engine.backward(recipe.objective.loss(micro_sums, scales), last=m == len(batches))
            sums += micro_sums.detach()
        sums = engine.sum_over_ranks(sums)
        loss = recipe.objective.loss(sums, scales)
        _check_finite(loss, sums, recipe.objective, step)
        scale = lr_scale(step, recipe.num_steps, recipe.warmup, recipe.decay)
        grad_norm = engine.step(scale)
        yield StepResult(
            step=step + 1,
            plan=data.plan,
            loss=loss,
            task_loss=sums / counts,
            counts=counts,
            grad_norm=grad_norm,
            lr_scale=scale,
            candidates=sum(batch.num_candidates for batch in batches),
            tokens=sum(len(batch.ids) for batch in batches),
            wait_seconds=waited,
            seconds=time.perf_counter() - started,
        )


def _check_finite(loss: Tensor, sums: Tensor, objective: Objective, step: int) -> None:
    """The one place where a step waits for the device: weights must not be updated from a loss that is not finite.

    `sums` are over all ranks, so all of them raise together and none is left waiting in a collective.
    """
    if bool(torch.isfinite(loss)):
        return
    finite = (torch.isfinite(sums).cpu() | (objective.weights == 0)).tolist()
    bad = [task.name for task, fine in zip(objective.tasks, finite, strict=True) if not fine] or ["all tasks together"]
    raise UserError(
        f"step {step + 1}: the loss of {', '.join(bad)} is not finite. Lower train.learning_rate or set "
        "train.clip_norm; if it happens in the first steps, look for extreme values in that task's labels."
    )
