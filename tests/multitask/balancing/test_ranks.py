"""Balance methods on 2 and 4 ranks and under ZeRO 0-3, against one rank: all in one group of processes each."""

from typing import Any

import pytest
import torch

from tests.batches import Step, make_batch, make_request, make_steps
from tests.multitask.balancing.training import run_of, train
from tests.training import distance, run_ranks

pytestmark = pytest.mark.distributed

METHODS = (
    "sum",
    "mgda",
    "pcgrad",
    "cagrad",
    "upgrad",
    "imtl_g",
    "db_mtl",
    "stch",
    "gls",
    "famo",
    "gradnorm",
    "uncertainty",
)
FEW = ("pcgrad", "famo")
"""One that weighs gradients, and one that weighs losses and looks at the batches again."""
STEPS, MICRO_STEPS = 2, 2
WATCHED = "train.log_every=1"


def zero(stage: int) -> tuple[str, str]:
    return "engine.name=deepspeed", f"engine.zero_stage={stage}"


def on_rank(methods: tuple[str, ...], stages: tuple[int, ...]) -> dict[str, Any]:
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    data = make_steps(STEPS, ranks=ranks, rank=rank, micro_steps=MICRO_STEPS, tokens=True)
    found = {name: train(run_of(name, WATCHED), data) for name in methods}
    found["step mgda"] = train(run_of("mgda", "balance.scope=step"), data)
    for stage in stages:
        for name in FEW:
            found[f"{name} {stage}"] = train(run_of(name, WATCHED, *zero(stage)), data)
        found[f"step mgda {stage}"] = train(run_of("mgda", "balance.scope=step", *zero(stage)), data)
    if stages:
        found["nothing"] = [train(run_of("mgda", *zero(stage)), nothing_for_rank_1(rank)) for stage in (0, 3)]
    return found


def nothing_for_rank_1(rank: int) -> list[Step]:
    """Rank 1 has no candidate in the first step's first micro-step, and none at all in the second step."""
    data = make_steps(STEPS, ranks=2, rank=rank, micro_steps=MICRO_STEPS, tokens=True)
    empty = make_batch([], tokens=True)
    if rank == 1:
        data[0].batches[0] = empty
        data[1].batches[:] = [empty] * MICRO_STEPS
    return data


def joined(ranks: int) -> list[Step]:
    """One rank's data: each micro-step holds what the micro-steps of `ranks` ranks hold together."""
    found = []
    for step in range(STEPS):
        numbers = range(step * 8, (step + 1) * 8)
        dealt = [[n for n in numbers if n % ranks == rank] for rank in range(ranks)]
        micro = [[n for mine in dealt for n in mine[m::MICRO_STEPS]] for m in range(MICRO_STEPS)]
        found.append(Step(step, [make_batch([make_request(n) for n in part], tokens=True) for part in micro]))
    return found


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    """What rank 0 of two saw; rank 1 must have weighed the tasks alike."""
    first, second = run_ranks(on_rank, 2, METHODS, (0, 1, 2, 3))
    for name in ("pcgrad", "famo", "famo 3"):
        assert distance(first[name]["parameters"], second[name]["parameters"]) == 0
        assert torch.equal(torch.stack(first[name]["balance"]), torch.stack(second[name]["balance"]))
    return first


@pytest.fixture(scope="module")
def four() -> dict[str, Any]:
    return run_ranks(on_rank, 4, FEW, ())[0]


@pytest.fixture(scope="module")
def one() -> dict[int, dict[str, Any]]:
    return {
        ranks: {name: train(run_of(name, WATCHED), joined(ranks)) for name in METHODS}
        | {"step mgda": train(run_of("mgda", "balance.scope=step"), joined(ranks))}
        for ranks in (2, 4)
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    for a, b in zip(found["gradients"], expected["gradients"], strict=True):
        assert distance(a, b) < tolerance
    torch.testing.assert_close(torch.stack(found["balance"]), torch.stack(expected["balance"]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*METHODS, "step mgda"])
def test_two_ranks_are_one(name: str, two: dict[str, Any], one: dict[int, dict[str, Any]]) -> None:
    assert_same(two[name], one[2][name])


@pytest.mark.parametrize("name", [*FEW, "step mgda"])
def test_four_ranks_are_one(name: str, four: dict[str, Any], one: dict[int, dict[str, Any]]) -> None:
    assert_same(four[name], one[4][name])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", [*FEW, "step mgda"])
def test_every_zero_stage_is_the_plain_engine(name: str, stage: int, two: dict[str, Any]) -> None:
    assert_same(two[f"{name} {stage}"], two[name])


def test_measured_conflict_is_the_same_everywhere(two: dict[str, Any], one: dict[int, dict[str, Any]]) -> None:
    for found in (two["pcgrad"], two["pcgrad 3"], two["pcgrad 1"]):
        torch.testing.assert_close(found["gramian"][0], one[2]["pcgrad"]["gramian"][0], rtol=1e-4, atol=1e-12)


def test_a_rank_without_candidates_takes_part(two: dict[str, Any]) -> None:
    plain, sharded = two["nothing"]
    assert_same(sharded, plain)
