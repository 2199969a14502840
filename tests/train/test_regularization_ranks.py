"""R-Drop and adversarial training on two ranks and under ZeRO 0-3, against one rank: in one group of processes."""

from typing import Any

import pytest
import torch

from tests.batches import Step, make_batch, make_request, make_steps
from tests.multitask.balancing.training import run_of, train
from tests.training import distance, run_ranks

pytestmark = pytest.mark.distributed

SWITCHES = (
    "adapter.dropout=0.2",
    "regularization.r_drop.weight=2",
    "regularization.adversarial={method: pgd, epsilon: 0.1, steps: 2}",
)
ON_FEATURES = ("regularization.adversarial.on=features",)
STEPS = 2


def zero(stage: int) -> tuple[str, str]:
    return "engine.name=deepspeed", f"engine.zero_stage={stage}"


def on_rank() -> dict[str, Any]:
    rank = torch.distributed.get_rank()
    data = make_steps(STEPS, ranks=2, rank=rank, micro_steps=2, tokens=True)
    found = {"plain": train(run_of("sum", *SWITCHES), data)}
    for stage in range(4):
        found[f"{stage}"] = train(run_of("sum", *SWITCHES, *zero(stage)), data)
    found["features 3"] = train(run_of("sum", *SWITCHES, *ON_FEATURES, *zero(3)), data)
    found["mgda 3"] = train(run_of("mgda", *SWITCHES, *zero(3)), data)
    found["checkpointing 3"] = train(run_of("sum", *SWITCHES, "engine.activation_checkpointing=true", *zero(3)), data)
    if rank == 1:  # nothing in the first step's first micro-step, and nothing at all in the second step
        data[0].batches[0] = make_batch([], tokens=True)
        data[1].batches[:] = [make_batch([], tokens=True)] * 2
    for stage in (0, 3):
        found[f"nothing {stage}"] = train(run_of("sum", *SWITCHES, *zero(stage)), data)
    return found


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    """What rank 0 of two saw; rank 1 must have the same weights."""
    first, second = run_ranks(on_rank, 2)
    for name in first:
        assert distance(first[name]["parameters"], second[name]["parameters"]) == 0
    return first


def joined() -> list[Step]:
    """One rank's data: each micro-step holds what those of both ranks hold."""
    steps = []
    for step in range(STEPS):
        numbers = range(step * 8, (step + 1) * 8)
        dealt = [[n for n in numbers if n % 2 == rank] for rank in range(2)]
        micro = [[n for mine in dealt for n in mine[m::2]] for m in range(2)]
        steps.append(Step(step, [make_batch([make_request(n) for n in part], tokens=True) for part in micro]))
    return steps


def largest_distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    return max(distance(*pair) for pair in zip(found["gradients"], expected["gradients"], strict=True))


@pytest.mark.parametrize("name", ["plain", "0", "1", "2", "3", "checkpointing 3"])
def test_two_ranks_are_one_at_every_stage(name: str, two: dict[str, Any]) -> None:
    assert largest_distance(two[name], train(run_of("sum", *SWITCHES), joined())) < 1e-5


def test_moved_features_and_a_balance_point_are_one_rank_too(two: dict[str, Any]) -> None:
    features = train(run_of("sum", *SWITCHES, *ON_FEATURES), joined())
    assert largest_distance(two["features 3"], features) < 1e-5
    assert largest_distance(features, train(run_of("sum", *SWITCHES), joined())) > 1e-3
    assert largest_distance(two["mgda 3"], train(run_of("mgda", *SWITCHES), joined())) < 1e-4


def test_a_rank_without_candidates_takes_part(two: dict[str, Any]) -> None:
    assert largest_distance(two["nothing 3"], two["nothing 0"]) < 1e-5
