"""Small models and engines, and what tests ask of them."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.base import Engine, build_engine
from mtrec_ray.evaluate.facts import Facts
from mtrec_ray.model.adapters.add import add_adapter
from mtrec_ray.model.backbone import DTYPES, Backbone
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.nano import build_nano
from mtrec_ray.model.recommender import Recommender, frozen_dtype
from mtrec_ray.multitask import losses
from mtrec_ray.multitask.balancing.balancer import Balancer, make_method
from mtrec_ray.multitask.losses import Objective
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.train.loop import Recipe
from tests.batches import VOCAB, Step, make_manifest, make_run

CPU = torch.device("cpu")


class Source:
    """A train split of `per_epoch` steps of eight requests, over and over, or a validation split of one; each rank has
    its share of a step. Stops with an error if asked to."""

    per_epoch = 4

    def __init__(self, valid: bool = False, fails_at: int | None = None) -> None:
        self.order = SimpleNamespace(steps_per_epoch=1 if valid else self.per_epoch)
        self.valid, self.fails_at = valid, fails_at
        self.rank, self.ranks = 0, 1
        if dist.is_initialized():
            self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    def batches(self, numbers: list[int]) -> list[Batch]:
        """The micro-steps of these requests."""
        raise NotImplementedError

    def steps(self, first: int, last: int) -> Iterator[Step]:
        for index in range(first, last):
            if index == self.fails_at:
                raise ConnectionError("the node is gone")
            begin = 8 * (index % self.per_epoch)
            numbers = range(1000, 1041) if self.valid else range(begin, begin + 8)
            yield Step(index, self.batches([number for number in numbers if number % self.ranks == self.rank]))


def small_model() -> Any:
    return build_nano(VOCAB, 16, 2, 2, max_positions=64)


def small_backbone(run: Run, model: Any = None) -> Backbone:
    """A tiny decoder, tuned as `run` has it; adapters are random, for zeros would hide mistakes."""
    model = (small_model() if model is None else model).to(DTYPES[frozen_dtype(run)])
    backbone = Backbone(model, checkpointing=run.engine.activation_checkpointing)
    add_adapter(backbone, run.adapter.model_copy(update={"rank": 2, "alpha": 4.0}), seed=0)
    if run.adapter.kind == "full":
        return backbone
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(noise if run.adapter.kind == "lora" else parameter + noise)
    return backbone


def make_engine(run: Run, with_backbone: bool = False, manifest: Manifest | None = None) -> Engine:
    manifest = manifest or make_manifest()
    return build_engine(run, lambda: Recommender(small_backbone(run) if with_backbone else None, manifest, run), CPU)


def make_objective(run: Run, manifest: Manifest | None = None) -> Objective:
    return losses.make_objective(run, manifest or make_manifest())


def kinds_of_tasks() -> list[TaskKind]:
    """Of all tasks of `tests.batches`."""
    return make_objective(make_run()).kinds


def facts_of(row_ids: np.ndarray, kinds: Sequence[TaskKind]) -> Facts:
    """Five requests of `tests.batches` belong to one user."""
    return Facts(users=row_ids // 500, shown=row_ids)


def make_recipe(run: Run, num_steps: int, engine: Engine, manifest: Manifest | None = None) -> Recipe:
    objective = make_objective(run, manifest)
    balancer = Balancer(make_method(run), run.balance.scope, objective, engine, run.balance.conflict)
    train = run.train
    return Recipe(
        objective,
        balancer,
        num_steps,
        train.warmup,
        train.decay,
        run.seed,
        train.log_every,
        regularization=run.regularization,
    )


def backward(engine: Engine, batches: Sequence[Batch], objective: Objective, step: int = 0) -> float:
    """Forward and backward of one optimizer step, in the few lines that the loop must agree with; the loss."""
    engine.model.train()
    counts = engine.sum_over_ranks(torch.stack([objective.counts(batch) for batch in batches]).sum(0))
    scales, total = objective.scales(counts), torch.zeros(1, dtype=torch.float64)
    for m, batch in enumerate(batches, 1):
        sums = objective.loss_sums(engine.forward(batch, DropoutKey(0, step)), batch)
        loss = objective.loss(sums, scales)
        engine.backward(loss, last=m == len(batches))
        total += loss.detach()
    return float(engine.sum_over_ranks(total))


def take_steps(engine: Engine, data: Sequence[Step], objective: Objective) -> list[dict[str, Tensor]]:
    """The whole gradients of each step; the weights are moved on."""
    gradients = []
    for step in data:
        backward(engine, step.batches, objective, step.plan)
        gradients.append(engine.gradients())
        engine.step(1.0)
    return gradients


class Copies:
    """A balance point that changes nothing: each task reads a copy of z."""

    trains_below = True

    def split(self, z: Tensor, tasks: int) -> tuple[Tensor, ...]:
        return tuple(z.clone() for _ in range(tasks))


def gradients_and_weights(run: Run, manifest: Manifest, data: Sequence[Step], copies: bool) -> list[dict[str, Tensor]]:
    """Gradients of each step of a model without backbone, and the last parameters; `copies`: each task's logits are
    read from a copy of z.
    """
    objective, engine = make_objective(run, manifest), make_engine(run, manifest=manifest)
    engine.model.train()
    found = []
    for step in data:
        counts = engine.sum_over_ranks(torch.stack([objective.counts(batch) for batch in step.batches]).sum(0))
        for m, batch in enumerate(step.batches, 1):
            views = engine.forward(batch, DropoutKey(0, step.plan), Copies() if copies else None)
            loss = objective.loss(objective.loss_sums(views, batch), objective.scales(counts))
            engine.backward(loss, last=m == len(step.batches))
        found.append(engine.gradients())
        engine.step(1.0)
    found.append(engine.parameters())
    engine.close()
    return found


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative L2 distance over all tensors together; the names must be the same."""
    assert found.keys() == expected.keys()
    a, b = (torch.cat([values[name].double().flatten() for name in sorted(values)]) for values in (found, expected))
    return float((a - b).norm() / b.norm())


def run_ranks(worker: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `worker(*arguments)` returns on each rank of a gloo group of processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(world_size, folder, worker, arguments), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: str, worker: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(worker(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
