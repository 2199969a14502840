"""Candidates that were shown together, and sums over them that are the same in every run.

A group is named by its first element, and what is summed over a group stands at that element's place. So nothing has
to know how many groups there are, for which the host would have to wait for the device.

Sums are over sorted segments, each added up in one order and in float64, and so are the gradients of what is handed to
all elements of a group. (`index_add_` and `scatter_add_` on a GPU, and `index_put_` on several CPU threads, add in the
order in which threads come, so that two runs differ in the last digits; `x[index]` may do so in its backward pass.)
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtrec_ray.tasks.kind import Candidates

GroupBy = Literal["shown", "request"]
"""`shown`: what was shown together, which is, in one request, what sees the same history. Impressions that follow one
another without an event between them that the history holds (`history.lag`, `history.exposures: false`,
`history.max_events: 0`) cannot be told apart and are one group. `request`: all candidates of one packed request, as
the later events of a user in a log without impressions. Neither goes beyond `history.max_candidates`."""

_NUMBERS_AT_ONCE = 1 << 22
"""Products of weights and values that are there at a time."""


def groups(candidates: Candidates, by: GroupBy) -> Tensor:
    """int64 [C]: the first candidate of each one's group."""
    if by == "request":
        return first_alike(candidates.request)
    return first_alike(candidates.request, candidates.shown)


def first_alike(*keys: Tensor) -> Tensor:
    """int64 [n]: the first element with the same keys (each int64 [n])."""
    size, device = len(keys[0]), keys[0].device
    order = torch.arange(size, device=device)
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    begins = torch.zeros(size, dtype=torch.bool, device=device)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[order][1:] != key[order][:-1]
    places = torch.arange(size, device=device)
    starts = torch.where(begins, places, 0).cummax(0).values
    first = torch.empty_like(order)
    first[order] = order[starts]
    return first


def group_sums(values: Tensor, group: Tensor, size: int | None = None) -> Tensor:
    """[n], group int64 [n] -> [size]: at i the sum over the elements of group i, 0 where there is none.

    `size`: by default n, as for groups that are named by their first element.
    """
    found: Tensor = _Sums.apply(values, group, len(values) if size is None else size)
    return found


def handed_out(values: Tensor, group: Tensor) -> Tensor:
    """[m], group int64 [n] -> [n]: `values[group]`."""
    found: Tensor = _HandedOut.apply(values, group)
    return found


def weighted_sums(values: Tensor, weight: Tensor, place: Tensor, group: Tensor, size: int) -> Tensor:
    """[n, d] -> [size, d]: at i the sum of weight [P] times `values[place]` over the P pairs of group i.

    The same as `group_sums` of that product, of which never more than a few columns are there at a time, also in the
    backward pass: the pairs of candidates and visible events are many more than either.
    """
    found: Tensor = _WeightedSums.apply(values, weight, place, group, size)
    return found


def group_log_softmax(scores: Tensor, group: Tensor, takes_part: Tensor) -> Tensor:
    """[n]: log of each element's share of the sum of exp(score) over its group's elements that take part, bool [n].

    Finite for all elements of groups in which one takes part; the others have their score.
    """
    kept = torch.where(takes_part, scores, -torch.inf)
    peaks = torch.full_like(scores, -torch.inf).scatter_reduce(0, group, kept.detach(), "amax")[group]
    peaks = torch.where(torch.isfinite(peaks), peaks, 0.0)
    total = group_sums(torch.exp(kept - peaks), group)
    return scores - peaks - handed_out(torch.log(torch.where(total > 0, total, 1.0)), group)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(group)
        return _segment_sums(values, group, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (group,) = ctx.saved_tensors
        return gradients[0][group], None, None


class _HandedOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Tensor) -> Tensor:
        ctx.save_for_backward(group)
        ctx.size = len(values)
        return values[group]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (group,) = ctx.saved_tensors
        return _segment_sums(gradients[0], group, ctx.size), None


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, place: Tensor, group: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(values, weight, place, group)
        segments = _Segments(group, size)
        parts = [segments.sums(weight[:, None] * part[place]) for part in _columns(values, len(place))]
        return torch.cat(parts, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        values, weight, place, group = ctx.saved_tensors
        segments = _Segments(place, len(values))
        of_values, of_weight = [], torch.zeros_like(weight)
        for part, own in zip(_columns(gradient, len(place)), _columns(values, len(place)), strict=True):
            of_pairs = part[group]
            of_weight += (of_pairs * own[place]).sum(1)
            of_values.append(segments.sums(weight[:, None] * of_pairs))
        return torch.cat(of_values, dim=1), of_weight, None, None, None


def _columns(values: Tensor, pairs: int) -> tuple[Tensor, ...]:
    """[n, d] in parts of as many columns as `pairs` may have at a time."""
    return values.split(max(1, _NUMBERS_AT_ONCE // max(1, pairs)), dim=1)


class _Segments:
    """The elements of each group, side by side."""

    def __init__(self, group: Tensor, size: int) -> None:
        ordered, self._order = torch.sort(group, stable=True)
        self._offsets = torch.searchsorted(ordered, torch.arange(size + 1, device=group.device))

    def sums(self, values: Tensor) -> Tensor:
        """[n, ...] -> [size, ...]"""
        ordered = values[self._order].double()
        sums = torch.segment_reduce(ordered, "sum", offsets=self._offsets, initial=0, unsafe=True)
        return sums.to(values.dtype)


def _segment_sums(values: Tensor, group: Tensor, size: int) -> Tensor:
    return _Segments(group, size).sums(values)
