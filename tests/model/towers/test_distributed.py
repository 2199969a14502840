"""Every architecture at ZeRO-3 on two ranks, one of them idle in a micro-step, against one plain process."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.batches import Step, make_batch, make_manifest, make_run, make_steps
from tests.model.towers.architectures import NAMES
from tests.training import distance, gradients_and_weights, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 2
SETTINGS = ("tasks.stars.parent=like", "engine.optimizer=sgd", "train.clip_norm=null", "towers.dropout=0.2")


def data(ranks: int, rank: int) -> list[Step]:
    """Two micro-steps a step; of two ranks, rank 1 has all of the second step's requests in its second."""
    steps = make_steps(STEPS, ranks, rank, micro_steps=2)
    if ranks == 2 and rank == 1:
        whole = make_steps(STEPS, ranks, rank, micro_steps=1)[1].batches[0]
        steps[1] = Step(1, [make_batch([]), whole])
    domains = torch.arange(3)
    for step in steps:
        for batch in step.batches:
            batch.domain.copy_(domains[batch.row_ids % 3])
    return steps


def trained(kind: str, split: bool, data: list[Step], *engine: str) -> list[dict[str, Tensor]]:
    """Gradients of each step, with one mapping of logits or with one for each task; and the last parameters."""
    run = make_run(f"towers.kind={kind}", *SETTINGS, *engine)
    manifest = make_manifest().model_copy(update={"domains": ["", "home", "search"]})
    return gradients_and_weights(run, manifest, data, copies=split)


def on_rank() -> dict[str, Any]:
    steps = data(2, torch.distributed.get_rank())
    zero = ("engine.name=deepspeed", "engine.zero_stage=3")
    return {kind: trained(kind, True, steps, *zero) for kind in NAMES}


@pytest.fixture(scope="module")
def sharded() -> dict[str, Any]:
    return run_ranks(on_rank, 2)[0]


@pytest.mark.parametrize("kind", NAMES)
def test_a_call_per_task_at_zero_3_on_two_ranks_equals_one_call_in_one_process(
    kind: str, sharded: dict[str, Any]
) -> None:
    alone = trained(kind, split=False, data=data(1, 0))
    for found, expected in zip(sharded[kind], alone, strict=True):
        assert distance(found, expected) < 1e-5
