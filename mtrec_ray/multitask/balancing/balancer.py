"""A balance method at work in the training loop: what it is told of each unit, and what its weights multiply.

All that a method is told is summed over the ranks first, so all ranks give the tasks the same weights.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.multitask.balancing.method import Method, Seen
from mtrec_ray.multitask.balancing.point import BalancePoint, Point, Probe, See
from mtrec_ray.multitask.losses import Objective

Scope = Literal["micro_step", "step"]


class Ranks(Protocol):
    """The part of `engine.base.Engine` that a balancer uses."""

    device: torch.device
    gradient_scale: float

    def sum_over_ranks(self, values: Tensor) -> Tensor: ...


def make_method(run: Run) -> Method:
    """The method of `run.balance`, for all tasks of the run, with an empty memory.

    Raises:
        ConfigError: no such method or parameter.
    """
    return METHODS[run.balance.method](list(run.tasks), run.balance.params, run.seed)


class Balancer:
    """One method over a run; `open_step` begins each optimizer step."""

    def __init__(self, method: Method, scope: Scope, objective: Objective, ranks: Ranks, conflict: bool) -> None:
        """`conflict`: whether steps that ask for it measure the tasks' Gramian, also where the method needs none."""
        self.method, self.scope, self.objective, self.ranks = method, scope, objective, ranks
        self.conflict = conflict and len(objective.tasks) > 1

    def open_step(
        self, step: int, counts: Tensor, scales: Tensor, watch: bool, see: See | None = None
    ) -> "BalancedStep":
        """`counts`, `scales` [T] of the whole step (see `Objective`); `watch`: it is logged; `see`: is told what
        arrives at the copies of z in each backward pass."""
        return BalancedStep(self, step, counts, scales, watch and self.conflict, see)

    @property
    def looks_ahead(self) -> bool:
        """Whether each step begins with a pass that only looks."""
        return self.scope == "step" and self.method.reads != "nothing"

    @property
    def looks_back(self) -> bool:
        """Whether each step ends with a forward pass over the same batches."""
        return self.method.learns == "losses_again"


class BalancedStep:
    """One optimizer step: `look` over all batches if asked for, then `loss` for each micro-step, then `close`."""

    def __init__(
        self, balancer: Balancer, step: int, counts: Tensor, scales: Tensor, watch: bool, see: See | None
    ) -> None:
        self._balancer, self._method, self._ranks = balancer, balancer.method, balancer.ranks
        self._step, self._counts, self._scales = step, counts, scales
        tasks = len(counts)
        self._measured = watch or "gramian" in (self._method.reads, self._method.learns)
        splits = self._measured or see is not None
        self.point: Point | None = BalancePoint(self._weigh, see) if splits else None
        self.gramian: Tensor | None = torch.zeros(tasks, tasks, dtype=torch.float64) if splits else None
        """Of the whole step, once all its backward passes are done; None where nothing asked for it."""
        self._unit: Seen | None = None
        self._fixed: Tensor | None = None
        """The weights of all micro-steps, where they do not differ."""
        self._weights: list[Tensor] = []
        if self._method.reads == "nothing":
            self._fixed = self._method.weights(step, None)

    def look(self, forward: Callable[[int, Point | None], Tensor], batches: int) -> None:
        """Where the unit is the step: what the method reads of all batches, before any gradient is made.

        `forward(m, point)`: this rank's loss sums [T] of micro-step m, computed with that point.
        """
        sums = torch.zeros_like(self._scales)
        gramian = torch.zeros(len(sums), len(sums), dtype=torch.float64)
        reads_gramian = self._method.reads == "gramian"
        for m in range(batches):
            probe = Probe()
            with torch.set_grad_enabled(reads_gramian):
                found = forward(m, probe if reads_gramian else None)
            if reads_gramian:
                gramian += probe.gramian(Objective.loss(found, self._scales))
            sums += found.detach()
        seen = self._seen(self._ranks.sum_over_ranks(sums), self._counts)
        if reads_gramian:
            seen = Seen(seen.losses, seen.observed, self._sum(gramian), torch.ones_like(seen.losses))
        self._fixed = self._method.weights(self._step, seen)

    def loss(self, sums: Tensor, counts: Tensor) -> Tensor:
        """This rank's loss of a micro-step, from its loss sums [T] and its own counts [T]; then comes its backward."""
        weights = self._fixed
        if weights is None:
            both = self._ranks.sum_over_ranks(torch.stack([sums.detach().double(), counts.double()]))
            self._unit = self._seen(both[0], both[1])
            if self._method.reads == "losses":
                weights = self._method.weights(self._step, self._unit)
        if self._method.place == "z" or weights is None:
            return Objective.loss(sums, self._scales)
        self._weights.append(weights)
        return Objective.loss(sums, self._scales * weights.to(self._scales.device))

    def close(self, sums: Tensor, again: Tensor | None) -> None:
        """After the update: what the method learns from the step.

        `sums`: the step's loss sums [T] over all ranks; `again`: the same after the update, if the balancer looks back.
        """
        if self._method.learns == "nothing":
            return
        seen = self._seen(sums, self._counts)
        if self._method.learns == "gramian":
            seen = Seen(seen.losses, seen.observed, self.gramian, torch.ones_like(seen.losses))
        self._method.learn(self._step, seen, None if again is None else self._seen(again, self._counts).losses)

    @property
    def conflict(self) -> Tensor | None:
        """`gramian`, where it was to be measured or the method had to; not where another only looked at the point."""
        return self.gramian if self._measured else None

    @property
    def weights(self) -> Tensor:
        """[T] what the tasks were weighed with, a mean over the micro-steps."""
        return torch.stack(self._weights).mean(0) if self._weights else self._method.ones()

    def _weigh(self, gramian: Tensor) -> Tensor:
        assert self.gramian is not None
        gramian = self._sum(gramian / self._ranks.gradient_scale**2)
        # The weights of the losses have come down with the gradients; a method looks at them without.
        placed = self._weights[-1] if self._method.place == "loss" and self._weights else None
        if placed is not None:
            inverse = torch.where(placed != 0, 1 / placed, 0.0)
            gramian = gramian * inverse[:, None] * inverse[None, :]
        self.gramian += gramian
        if self._method.place == "loss":
            return self._method.ones()
        weights = self._fixed
        if weights is None:
            assert self._unit is not None
            unit = Seen(self._unit.losses, self._unit.observed, gramian, self._unit.shares)
            weights = self._method.weights(self._step, unit)
        self._weights.append(weights)
        return weights

    def _seen(self, sums: Tensor, counts: Tensor) -> Seen:
        """Of a unit's sums and counts [T] over all ranks."""
        sums, counts, scales, all_counts = (x.double().cpu() for x in (sums, counts, self._scales, self._counts))
        task_weights = scales * all_counts
        observed = (counts > 0) & (scales > 0)
        losses = torch.where(observed, task_weights * sums / counts.clamp(min=1e-300), 0.0)
        return Seen(losses, observed, shares=torch.where(observed, counts / all_counts, 1.0))

    def _sum(self, gramian: Tensor) -> Tensor:
        return self._ranks.sum_over_ranks(gramian.to(self._ranks.device)).cpu()


def cosines(gramian: Tensor) -> dict[tuple[int, int], float]:
    """Cosine between the gradients of each pair of tasks (i < j) that both have one."""
    lengths = gramian.diagonal().clamp(min=0).sqrt()
    present = [t for t in range(len(lengths)) if float(lengths[t]) > 0]
    return {(i, j): float(gramian[i, j] / (lengths[i] * lengths[j])) for i in present for j in present if i < j}
