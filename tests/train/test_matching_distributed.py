"""Tasks that match users with items at ZeRO 0-3 on two ranks, one of them idle in a micro-step, against one process.

With declared vectors of both, of which a rank holds those of its own rows.
"""

from typing import Any

import pytest
import torch

from mtrec_ray.engine.base import build_engine
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.multitask.losses import make_objective
from mtrec_ray.train.evaluation import Scores, score
from tests.batches import Step
from tests.matching import manifest, matching_batch, matching_model, matching_run, matching_steps
from tests.training import CPU, distance, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SETTINGS = ("backbone=nano", "engine.optimizer=sgd", "train.clip_norm=null", "adapter.dropout=0.2")


def data(ranks: int, rank: int) -> list[Step]:
    steps = matching_steps(2, ranks, rank, micro_steps=2, tokens=True, vectors=True)
    if ranks == 2 and rank == 1:
        whole = matching_steps(2, ranks, rank, tokens=True, vectors=True)[1].batches[0]
        steps[1] = Step(1, [matching_batch([], tokens=True, vectors=True), whole])
    return steps


def trained(ranks: int, rank: int, *engine_settings: str) -> tuple[list[Any], Scores | None]:
    """Gradients of two steps, the last parameters, and scores with ranks."""
    run = matching_run(*SETTINGS, *engine_settings)
    objective, found = make_objective(run, manifest(vectors=True)), []
    engine = build_engine(run, lambda: matching_model(run, backbone=True, vectors=True), CPU)
    steps = data(ranks, rank)
    for step in steps:
        engine.model.train()
        counts = engine.sum_over_ranks(torch.stack([objective.counts(batch) for batch in step.batches]).sum(0))
        for m, batch in enumerate(step.batches, 1):
            views = engine.forward(batch, DropoutKey(0, step.plan))
            loss = objective.loss(objective.loss_sums(views, batch), objective.scales(counts))
            engine.backward(loss, last=m == len(step.batches))
        found.append(engine.gradients())
        engine.step(1.0)
    found.append(engine.parameters())
    scores = score(engine, steps, objective.kinds)
    engine.close()
    return found, scores


def on_rank() -> dict[str, Any]:
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {"plain": trained(2, rank)}
    for stage in range(4):
        zero = ("engine.name=deepspeed", f"engine.zero_stage={stage}")
        found[f"zero {stage}"] = trained(2, rank, *zero)
    found["bf16"] = trained(2, rank, "engine.name=deepspeed", "engine.zero_stage=3", "engine.precision=bf16")
    found["full"] = trained(2, rank, "engine.name=deepspeed", "engine.zero_stage=3", "adapter={kind: full}")
    return found


@pytest.fixture(scope="module")
def on_two() -> dict[str, Any]:
    found: dict[str, Any] = run_ranks(on_rank, 2)[0]
    return found


@pytest.mark.parametrize("engine", ["plain", "zero 0", "zero 1", "zero 2", "zero 3", "bf16", "full"])
def test_two_ranks_equal_one_process(engine: str, on_two: dict[str, Any]) -> None:
    settings = {"bf16": ("engine.precision=bf16",), "full": ("adapter={kind: full}",)}.get(engine, ())
    gradients, scores = on_two[engine]
    alone, expected = trained(1, 0, *settings)
    tolerance = 2e-2 if engine == "bf16" else 1e-5
    for found, wanted in zip(gradients, alone, strict=True):
        assert distance(found, wanted) < tolerance
    assert any(name.startswith("backbone.") and g.norm() > 0 for name, g in gradients[0].items())
    assert scores is not None
    assert expected is not None
    assert (scores.row_ids == expected.row_ids).all()
    if engine != "bf16":
        assert all((scores.ranks[task] == expected.ranks[task]).all() for task in ("next", "interest"))
    assert all((scores.catalogue[task] == expected.catalogue[task]).all() for task in ("next", "interest"))
    assert (scores.ranks["next"] > 1).any()
