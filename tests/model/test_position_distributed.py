"""Places and inverse propensities at ZeRO-3 on two ranks, one of them idle in a micro-step, and in one process."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from tests.batches import Step, make_batch, make_manifest, make_run, make_steps
from tests.training import distance, gradients_and_weights, run_ranks

STEPS = 2
SETTINGS = (
    "data.columns.position=place",
    "data.columns.propensity=chance",
    "engine.optimizer=sgd",
    "train.clip_norm=null",
    "position.dropout=0.2",
)
WAYS = {method: (f"position.method={method}",) for method in ("additive", "pal", "feature")}
WAYS["weighted"] = ("position.method=pal", "position.inverse_propensity=true", "position.clip=3")


def with_context(batch: Batch) -> Batch:
    """Places 0 .. 4 or unknown, chances 1/4 .. 1 or unknown, by row."""
    place, chance = (batch.row_ids % 6).float(), (batch.row_ids % 5).float() / 4
    context = torch.stack([torch.where(place > 4, torch.nan, place), torch.where(chance == 0, torch.nan, chance)], 1)
    return replace(batch, context=context)


def data(ranks: int, rank: int, micro_steps: int = 2) -> list[Step]:
    """Of two ranks, rank 1 has all of the second step's requests in its second micro-step."""
    steps = make_steps(STEPS, ranks, rank, micro_steps=micro_steps)
    if ranks == 2 and rank == 1:
        steps[1] = Step(1, [make_batch([]), make_steps(STEPS, ranks, rank, micro_steps=1)[1].batches[0]])
    return [Step(step.plan, [with_context(batch) for batch in step.batches]) for step in steps]


def trained(way: str, split: bool, data: list[Step], *engine: str) -> list[dict[str, Tensor]]:
    """Gradients of each step, and the last parameters."""
    run = make_run(*SETTINGS, *WAYS[way], *engine)
    known = {"context": ["position", "propensity"], "positions": [0, 4], "propensities": 9}
    manifest = make_manifest().model_copy(update=known)
    return gradients_and_weights(run, manifest, data, copies=split)


def on_rank() -> dict[str, Any]:
    steps = data(2, torch.distributed.get_rank())
    zero = ("engine.name=deepspeed", "engine.zero_stage=3")
    return {way: trained(way, True, steps, *zero) for way in WAYS}


@pytest.fixture(scope="module")
def sharded() -> dict[str, Any]:
    return run_ranks(on_rank, 2)[0]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_at_zero_3_on_two_ranks_it_is_as_in_one_process(way: str, sharded: dict[str, Any]) -> None:
    for found, expected in zip(sharded[way], trained(way, False, data(1, 0)), strict=True):
        assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_micro_steps_and_copies_change_nothing(way: str) -> None:
    whole = trained(way, False, data(1, 0, micro_steps=1))
    for found, expected in zip(trained(way, True, data(1, 0, micro_steps=4)), whole, strict=True):
        assert distance(found, expected) < 1e-5
