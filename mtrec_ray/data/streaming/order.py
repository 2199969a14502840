"""The order of the requests: a pure function of (prepared data, split, seed, epoch, step).

The row groups of a split are permuted by a key from (seed, epoch); consecutive row groups form windows, and the
requests are permuted inside each window. Step s of an epoch takes positions [s·B, (s+1)·B) of that sequence, so any
step is found without a scan, and which requests it takes depends neither on the number of workers nor on what ran
before. The permutations sort a 64-bit hash (splitmix64) and not a library's generator, whose stream may change.
"""

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mtrec_ray.data.streaming.shards import Shards

WINDOW_REQUESTS = 2048
"""Requests that are shuffled together; also about what one read task decodes."""
_CACHED_WINDOWS = 4

HashArray = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class OrderSettings:
    """What the order depends on, beside the prepared data and the epoch."""

    split: str
    seed: int
    batch_requests: int
    """Requests per optimizer step, over all ranks."""
    micro_tokens: int
    """Most tokens of one micro-step on one rank, or candidates where there are no tokens; a longer request is alone."""
    world_size: int
    shuffle: bool


@dataclass(frozen=True, eq=False)
class StepPlan:
    """Who computes what in one optimizer step; the same on every rank."""

    epoch: int
    step: int
    """Within the epoch."""
    micro_steps: tuple[tuple[IntArray, ...], ...]
    """`micro_steps[rank][m]`: request numbers; equally many micro-steps on every rank, some may be empty."""

    @property
    def num_micro_steps(self) -> int:
        return len(self.micro_steps[0])

    @cached_property
    def requests(self) -> IntArray:
        """All request numbers of the step, ascending."""
        return np.sort(np.concatenate([numbers for rank in self.micro_steps for numbers in rank]))


class Order:
    """Random access to the steps of a split; a request's number is its position in the split, shard after shard."""

    def __init__(self, shards: Shards, settings: OrderSettings) -> None:
        if settings.split != shards.split:
            raise ValueError(f"order of split '{settings.split}' over shards of split '{shards.split}'")
        self.shards = shards
        self.settings = settings
        self.window_groups = max(1, WINDOW_REQUESTS // max(1, shards.row_group_requests))
        self._windows: OrderedDict[tuple[int, int], tuple[IntArray, IntArray]] = OrderedDict()
        self._epoch_groups: tuple[int, IntArray, IntArray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may be short; nothing is dropped."""
        return -(-self.shards.num_requests // self.settings.batch_requests)

    @property
    def steps_per_window(self) -> int:
        """About how many steps use the requests of one window."""
        return max(1, self.window_groups * self.shards.row_group_requests // self.settings.batch_requests)

    def at(self, index: int) -> StepPlan:
        """The step with this number, counted from the first step of epoch 0."""
        return self.step(*divmod(index, self.steps_per_epoch))

    def step(self, epoch: int, index: int) -> StepPlan:
        """Step `index` of an epoch. Raises `IndexError` outside the epoch."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"step {index} of an epoch of {self.steps_per_epoch} steps")
        first = index * self.settings.batch_requests
        numbers, costs = self._take(epoch, first, first + self.settings.batch_requests)
        ranks = deal(numbers, costs, self.settings.world_size)
        packed = [pack(numbers[chosen], costs[chosen], self.settings.micro_tokens) for chosen in ranks]
        most = max(len(bins) for bins in packed)
        empty = numbers[:0]
        return StepPlan(epoch, index, tuple((*bins, *[empty] * (most - len(bins))) for bins in packed))

    def _take(self, epoch: int, first: int, last: int) -> tuple[IntArray, IntArray]:
        """Numbers and costs of the requests at positions [first, last) of the epoch's sequence."""
        groups, starts = self._groups(epoch)
        last = min(last, self.shards.num_requests)
        window_starts = starts[:: self.window_groups]
        parts = []
        for window in range(*_covering(window_starts, first, last)):
            numbers, costs = self._window(epoch, window, groups)
            offset = int(window_starts[window])
            span = slice(max(first - offset, 0), max(last - offset, 0))
            parts.append((numbers[span], costs[span]))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _groups(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Row groups in the epoch's order, and the position of the first request of each."""
        if self._epoch_groups is None or self._epoch_groups[0] != epoch:
            sizes = self.shards.group_sizes
            order = self._permutation(len(sizes), epoch, "groups", 0)
            self._epoch_groups = (epoch, order, np.cumsum(sizes[order]) - sizes[order])
        return self._epoch_groups[1], self._epoch_groups[2]

    def _window(self, epoch: int, window: int, groups: IntArray) -> tuple[IntArray, IntArray]:
        """Numbers and costs of a window's requests in the epoch's order."""
        key = (epoch, window)
        if key not in self._windows:
            chosen = groups[window * self.window_groups : (window + 1) * self.window_groups]
            numbers, costs = self.shards.costs(chosen)
            order = self._permutation(len(numbers), epoch, "window", window)
            self._windows[key] = (numbers[order], costs[order])
            if len(self._windows) > _CACHED_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _permutation(self, size: int, epoch: int, what: str, window: int) -> IntArray:
        if not self.settings.shuffle:
            return np.arange(size)
        return permutation(size, self.settings.seed, epoch, int(what == "window"), window)


def deal(numbers: IntArray, costs: IntArray, world_size: int) -> list[IntArray]:
    """Indices for each rank: the costliest request left goes to the rank with the least cost (LPT, Graham 1969)."""
    loads = [
        (0, 0, rank) for rank in range(world_size)
    ]  # cost, requests, rank: ties go to the rank with fewer requests
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    for index in np.lexsort((numbers, -costs)):
        cost, count, rank = heapq.heappop(loads)
        dealt[rank].append(int(index))
        heapq.heappush(loads, (cost + int(costs[index]), count + 1, rank))
    return [np.array(chosen, dtype=np.int64) for chosen in dealt]


def pack(numbers: IntArray, costs: IntArray, bound: int) -> list[IntArray]:
    """Micro-steps of at most `bound` each, by first fit in descending cost; a costlier request goes alone.

    The fullest micro-step comes first, so that the ranks' m-th micro-steps are of similar size.
    """
    bins: list[list[int]] = []
    loads: list[int] = []
    for index in np.lexsort((numbers, -costs)):
        cost = int(costs[index])
        fits = next((b for b, load in enumerate(loads) if load + cost <= bound), None)
        if fits is None:
            bins.append([])
            loads.append(0)
            fits = len(bins) - 1
        bins[fits].append(int(numbers[index]))
        loads[fits] += cost
    fullest_first = sorted(range(len(bins)), key=lambda b: (-loads[b], b))
    return [np.sort(np.array(bins[b], dtype=np.int64)) for b in fullest_first]


def permutation(size: int, *key: int) -> IntArray:
    """A permutation of range(size), the same for the same key on every machine and with every library version."""
    with np.errstate(over="ignore"):
        state = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)
        for part in key:
            state = mix(state ^ mix(np.array([part], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)))
        return np.argsort(mix(np.arange(size, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03) + state), kind="stable")


def mix(x: HashArray) -> HashArray:
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _covering(starts: IntArray, first: int, last: int) -> tuple[int, int]:
    """Range of the windows that hold positions [first, last), from the windows' first positions."""
    return int(np.searchsorted(starts, first, side="right")) - 1, int(np.searchsorted(starts, last, side="left"))
