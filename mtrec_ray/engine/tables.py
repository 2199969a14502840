"""Steps of the rows that a step has touched, in the tables that `model.row_table` reads.

A row is touched if its gradient, summed over the step, is not zero. Only touched rows, and what the optimizer remembers
of them, change; so a step costs as much in a table of a thousand rows as in one of a billion. Nothing of a table's size
is made or exchanged: the workers hand each other their rows with a gradient, and what they make of them is the same on
all. Each worker has the whole table and the whole state, at every ZeRO stage.

Gradients of a row are summed in float64. There sums of float32 numbers are exact but for the rarest cases, so it does
not show how a step's reads were dealt out to micro-steps and workers.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtrec_ray.config import Run
from mtrec_ray.engine.row_rules import make_rule
from mtrec_ray.model.row_table import row_tables

Rows = tuple[Tensor, Tensor]
"""Rows int64 [U], ascending and each once, with their gradients float64 [U, dim]."""


class TableSteps:
    """Gradients and optimizer of the trained row tables of a model. All ranks call all methods alike."""

    def __init__(self, model: nn.Module, run: Run, device: torch.device, gradient_scale: float) -> None:
        """`gradient_scale`: what gradients in the model are multiplied with (`Engine.gradient_scale`)."""
        self.tables = {name: table for name, table in row_tables(model).items() if table.is_trained}
        for table in row_tables(model).values():
            table.to(device)
        self._rate, self._decay = run.train.learning_rate.tables, run.train.weight_decay.tables
        self._rule = make_rule(run)
        self._scale, self._limit = gradient_scale, run.train.clip_norm
        self._state = {name: self._rule.first_state(table.weight) for name, table in self.tables.items()}
        self._parts: dict[str, list[Rows]] = {name: [] for name in self.tables}
        self._touched: dict[str, Rows] = {}

    def collect(self) -> None:
        """Takes the gradients of a micro-step, after its backward pass."""
        for name, table in self.tables.items():
            rows, gradients = table.take_gradients()
            self._parts[name].append(row_sums(rows, gradients.double() / self._scale))

    def exchange(self) -> None:
        """Sums up the micro-steps' gradients over all ranks."""
        own = [summed(parts) for parts in self._parts.values()]
        for parts in self._parts.values():
            parts.clear()
        if dist.is_initialized() and dist.get_world_size() > 1 and own:
            own = [summed(parts) for parts in zip(*_gathered(own), strict=True)]
        self._touched = dict(zip(self.tables, own, strict=True))

    def norm_with(self, others: Tensor) -> Tensor:
        """The norm of the tables' gradients and of others, whose norm is given."""
        norms = [torch.linalg.vector_norm(gradient).to(others.device) for _, gradient in self._touched.values()]
        return torch.linalg.vector_norm(torch.stack([others.double(), *norms])).to(others.dtype)

    @torch.no_grad()
    def step(self, lr_scale: float, norm: Tensor) -> None:
        """Moves the touched rows. `norm`: of all gradients of the model, to be clipped by."""
        for name, (rows, gradient) in self._touched.items():
            weight = self.tables[name].weight
            clipped = gradient if self._limit is None else gradient * clipping(norm.to(weight.device), self._limit)
            clipped = clipped.to(weight.dtype)
            self._rule.step(weight, self._state[name], rows, clipped, self._rate * lr_scale, self._decay)
        self._touched = {}

    def drop(self) -> None:
        """Forgets the step's gradients."""
        self._touched = {}

    def gradients(self) -> dict[str, Tensor]:
        """Whole, on the host: of the tables' own size, for tests alone."""
        return {name: _whole(self.tables[name].weight, *touched) for name, touched in self._touched.items()}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """{name: {`step`, `exp_avg`, ...}} on the host."""
        return {name: {k: v.detach().cpu().clone() for k, v in of.items()} for name, of in self._state.items()}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of `state`, from among the state of all parameters."""
        for name, own in self._state.items():
            for key, value in state.get(name, {}).items():
                own[key].copy_(value)


def clipping(norm: Tensor, limit: float) -> Tensor:
    """What gradients of this norm are multiplied with, as torch does it."""
    return (limit / (norm + 1e-6)).clamp(max=1.0)


def row_sums(rows: Tensor, gradients: Tensor) -> Rows:
    """Rows int64 [N] and float64 [N, dim] -> the sum of each row; rows whose sum is zero are left out."""
    ordered, order = torch.sort(rows, stable=True)
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    sums = torch.segment_reduce(gradients[order], "sum", lengths=counts, initial=0, unsafe=True)
    touched = (sums != 0).any(dim=1)
    return distinct[touched], sums[touched]


def summed(parts: Sequence[Rows]) -> Rows:
    """The sum of several, in their order; at least one."""
    if len(parts) == 1:
        return parts[0]
    return row_sums(torch.cat([rows for rows, _ in parts]), torch.cat([gradients for _, gradients in parts]))


def _gathered(own: Sequence[Rows]) -> list[list[Rows]]:
    """Of each rank, what it has of each table: three collectives, whatever the number of tables."""
    device, dims = own[0][0].device, [gradients.shape[1] for _, gradients in own]
    counts = [count.tolist() for count in _all(torch.tensor([len(rows) for rows, _ in own], device=device))]
    sizes = [[n * dim for n, dim in zip(count, dims, strict=True)] for count in counts]
    rows = _exchanged(torch.cat([rows for rows, _ in own]), counts)
    numbers = _exchanged(torch.cat([gradients.flatten() for _, gradients in own]), sizes)
    return [
        [(of_table, values.view(-1, dim)) for of_table, values, dim in zip(*of_rank, dims, strict=True)]
        for of_rank in zip(rows, numbers, strict=True)
    ]


def _exchanged(values: Tensor, sizes: Sequence[list[int]]) -> list[tuple[Tensor, ...]]:
    """This rank's values, of length sum(sizes[rank]) -> those of each rank, cut to its sizes."""
    most = max(map(sum, sizes))
    found = _all(torch.cat([values, values.new_zeros(most - len(values))]))
    return [part[: sum(size)].split(size) for part, size in zip(found, sizes, strict=True)]


def _all(values: Tensor) -> list[Tensor]:
    """The tensor of each rank; all have one shape."""
    found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values)
    return found


def _whole(weight: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
    return torch.zeros_like(weight).index_copy(0, rows, gradient.to(weight.dtype)).cpu()
