import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.data.streaming.chunks import open_order
from mtrec_ray.data.streaming.order import Order, OrderSettings, StepPlan, permutation
from tests.fixtures import write_prepared


class FakeShards:
    """Row groups with given sizes and costs, in place of files."""

    split = "train"
    row_group_requests = 256  # so that a window is 8 row groups

    def __init__(self, group_sizes: list[int], seed: int = 0) -> None:
        self.group_sizes = np.array(group_sizes, dtype=np.int64)
        self.num_requests = sum(group_sizes)
        self.all_costs = np.random.default_rng(seed).integers(1, 100, self.num_requests)
        self.groups_read = 0

    def costs(self, groups):
        starts = np.cumsum(self.group_sizes) - self.group_sizes
        spans = [np.arange(starts[g], starts[g] + self.group_sizes[g]) for g in groups]
        numbers = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
        self.groups_read += len(groups)
        return numbers, self.all_costs[numbers]


def order(shards, world_size=1, batch=8, seed=0, shuffle=True, micro_tokens=150) -> Order:
    return Order(shards, OrderSettings("train", seed, batch, micro_tokens, world_size, shuffle))


def sequence(plans: list[StepPlan]) -> list[list[int]]:
    return [plan.requests.tolist() for plan in plans]


def epoch(of: Order, number: int) -> list[StepPlan]:
    return [of.step(number, i) for i in range(of.steps_per_epoch)]


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@given(sizes, st.integers(1, 5), st.integers(1, 12), st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_request_exactly_once_an_epoch_whatever_the_workers(groups, world_size, batch, number, shuffle):
    plans = epoch(order(FakeShards(groups), world_size, batch, shuffle=shuffle), number)
    assert sorted(np.concatenate([p.requests for p in plans]).tolist()) == list(range(sum(groups)))
    assert [len(p.requests) for p in plans[:-1]] == [batch] * (len(plans) - 1)
    alone = epoch(order(FakeShards(groups), 1, batch, shuffle=shuffle), number)
    assert sequence(plans) == sequence(alone)


@given(sizes, st.integers(1, 5), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_micro_steps_are_bounded_and_equally_many(groups, world_size, batch):
    shards = FakeShards(groups)
    for plan in epoch(order(shards, world_size, batch), 0):
        assert len(plan.micro_steps) == world_size
        assert {len(rank) for rank in plan.micro_steps} == {plan.num_micro_steps}
        for numbers in (numbers for rank in plan.micro_steps for numbers in rank):
            assert shards.all_costs[numbers].sum() <= 150 or len(numbers) == 1


def test_ranks_get_similar_cost():
    shards = FakeShards([256] * 8)
    for plan in epoch(order(shards, world_size=4, batch=128), 0):
        cost = [sum(shards.all_costs[numbers].sum() for numbers in rank) for rank in plan.micro_steps]
        assert max(cost) - min(cost) <= 100  # at most one request


def test_a_request_above_the_bound_goes_alone():
    shards = FakeShards([6])
    shards.all_costs = np.array([1000, 10, 10, 10, 10, 10])
    micro_steps = order(shards, batch=6).step(0, 0).micro_steps[0]
    assert [numbers.tolist() for numbers in micro_steps] == [[0], [1, 2, 3, 4, 5]]


def test_random_access_equals_the_sequence():
    whole = sequence(epoch(order(FakeShards([5] * 40)), 2))
    fresh = [order(FakeShards([5] * 40)).step(2, i).requests.tolist() for i in (17, 3, 24)]
    assert fresh == [whole[i] for i in (17, 3, 24)]
    assert order(FakeShards([5] * 40)).at(2 * 25 + 3).requests.tolist() == whole[3]


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    shards = FakeShards([5] * 40)
    base = sequence(epoch(order(shards), 0))
    assert base == sequence(epoch(order(shards), 0))
    assert base != sequence(epoch(order(shards), 1))
    assert base != sequence(epoch(order(shards, seed=1), 0))
    assert [n for s in sequence(epoch(order(shards, shuffle=False), 0)) for n in s] == list(range(200))


def test_reads_only_the_windows_of_the_step():
    shards = FakeShards([4] * 1000)
    order(shards).step(0, 300)
    assert shards.groups_read <= 16


def test_steps_outside_the_epoch_are_refused():
    with pytest.raises(IndexError, match="step 5 of an epoch of 5 steps"):
        order(FakeShards([8] * 5)).step(0, 5)


def test_permutation_is_pinned():
    """A change of this breaks resuming of every run; it must be meant."""
    assert permutation(8, 0, 0, 0, 0).tolist() == [6, 0, 4, 7, 5, 1, 2, 3]
    assert sorted(permutation(1000, 1, 2).tolist()) == list(range(1000))


def test_costs_come_from_the_sidecars(tmp_path):
    manifest = write_prepared(tmp_path)
    shards = open_order(str(tmp_path), OrderSettings("train", 0, 8, 60, 1, True)).shards
    numbers, costs = shards.costs(np.arange(len(shards.group_sizes)))
    assert numbers.tolist() == list(range(37))
    rows = shards.rows(numbers, ["history_ids", "candidate_ids"]).to_pylist()
    assert costs.tolist() == [len(row["history_ids"]) + len(row["candidate_ids"]) for row in rows]
    assert sum(costs) == sum(entry.tokens for entry in manifest.shards["train"])


def test_without_tokens_candidates_are_the_cost(tmp_path):
    write_prepared(tmp_path, tokens=False)
    shards = open_order(str(tmp_path), OrderSettings("train", 0, 8, 60, 1, True)).shards
    numbers, costs = shards.costs(np.arange(3))
    rows = shards.rows(numbers, ["row_id"]).to_pylist()
    assert costs.tolist() == [len(row["row_id"]) for row in rows]
