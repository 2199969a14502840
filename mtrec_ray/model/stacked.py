"""Stacked trials: one frozen backbone, and for each of several trials its own adapters, run as one packed row.

The rows of the trials are laid one after the other. The frozen weights of a layer read all of them at once; a trial's
adapter reads and changes the trial's own tokens only. Trials that read the same batch share all layers below the first
adapted one (the trunk): there the batch is in the row once, and at that layer it is repeated for each trial.

A trial's model is built as it would be alone: `slot` copies the backbone's structure without its weights and lets
`model.adapters` put the adapters in. So names and first values of the trained weights are those of a training alone.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mtrec_ray.model.adapters.injection import ADAPTER, low_rank_layers
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.dropout import DropoutContext, DropoutKey
from mtrec_ray.model.layers import layer_stack
from mtrec_ray.model.layout import RequestLayout, joined


@dataclass(frozen=True)
class Part:
    """What one trial asks the backbone to read: see `Backbone.forward`."""

    slot: "SlotBackbone"
    ids: Tensor
    layout: RequestLayout
    key: DropoutKey | None
    token_uids: Tensor | None
    history: bool


@dataclass
class _Row:
    """The row that passes through the layers: one span of tokens per part, and what the trunk needs to repeat."""

    parts: Sequence[Part] = ()
    spans: Sequence[tuple[int, int]] = ()
    """Tokens of each part, once they are repeated"""
    shared: bool = False
    """Whether the trunk holds batches that several parts read"""
    first_layer: int = 0
    """Where the tokens are repeated"""
    trunk_length: int = 0
    repeat: Tensor | None = None
    """int64 [L] place in the trunk of each token"""
    layout: RequestLayout | None = None
    """Of the row after the tokens are repeated"""


@dataclass
class _State:
    """What the layers of the shared model know of the row; see `DropoutContext`."""

    row: _Row = field(default_factory=_Row)

    @contextmanager
    def use(self, row: _Row) -> Iterator[None]:
        before, self.row = self.row, row
        try:
            yield
        finally:
            self.row = before

    def checkpoint_contexts(self) -> tuple[Any, Any]:
        return self.use(self.row), self.use(self.row)


class StackedBackbone:
    """A frozen `Backbone` without adapters of its own, in mode `packed`, read by several trials at once."""

    def __init__(self, backbone: Backbone) -> None:
        if any(p.requires_grad for p in backbone.parameters()) or next(low_rank_layers(backbone.model), None):
            raise ValueError("trials can only be stacked on a frozen backbone without adapters")
        self.backbone = backbone.train()  # all of its parts, so that one flag tells of them all
        self._state = _State()
        stack = layer_stack(backbone.model)
        self._prefix = f"{stack}."
        layers: Any = backbone.model.get_submodule(stack)
        self._depth = len(layers)
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._repeater(number), with_kwargs=True)

    def slot(self, adapt: Callable[[Backbone], None]) -> "SlotBackbone":
        """A place for one trial; `adapt` adds the trial's adapters to a backbone, as for a training alone."""
        skeleton = _without_weights(self.backbone)
        adapt(skeleton)
        trained = [name for name, parameter in skeleton.named_parameters() if parameter.requires_grad]
        if any(".lora_A." not in name and ".lora_B." not in name for name in trained):
            raise ValueError("trials that train other weights of the backbone than those of LoRA cannot be stacked")
        adapters = dict(low_rank_layers(skeleton.model))
        for name in adapters:
            self._make_stacked(name)
        return SlotBackbone(skeleton, adapters, self._lowest(adapters), self.backbone.embed)

    def forward(self, parts: Sequence[Part], training: bool) -> list[Tensor]:
        """[C, hidden_size] of each part, or [C, 2 hidden_size], as `Backbone.forward` would give it to the trial
        alone."""
        backbone = self.backbone
        if backbone.training != training:
            backbone.train(training)
        row, ids, trunk = self._row(parts)
        largest = int(ids.max()) if ids.device.type == "cpu" else None
        backbone.check_capacity(largest, trunk.largest_position)
        with self._state.use(row):
            hidden = backbone.read_packed(ids, trunk)
        assert row.layout is not None
        if row.repeat is not None and row.first_layer == self._depth:
            hidden = hidden.index_select(0, row.repeat)
        pooled = backbone.pool_packed(hidden, row.layout, any(part.history for part in parts))
        each = pooled.split([part.layout.num_candidates for part in parts])
        return [own if part.history else own[:, : backbone.hidden_size] for own, part in zip(each, parts, strict=True)]

    def kept_tokens(self, parts: Sequence[Part]) -> float:
        """Tokens whose activations a row of these parts keeps for its backward pass, in tokens through all layers.

        Below the first adapted layer nothing is kept.
        """
        share = 1 - min(part.slot.first_layer for part in parts) / self._depth
        return share * sum(part.layout.length for part in parts)

    def enable_checkpointing(self) -> None:
        """As `Backbone.enable_checkpointing`, with what the stacked layers need in the recomputation."""
        self.backbone.enable_checkpointing(self._state.checkpoint_contexts)

    def _make_stacked(self, name: str) -> None:
        model = self.backbone.model
        module = model.get_submodule(name)
        if not isinstance(module, StackedLinear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, StackedLinear(module, name, self._state))

    def _lowest(self, adapters: dict[str, LoraLayer]) -> int:
        """The first layer that an adapter changes; what lies outside the layers counts as below all of them."""
        inside = [name.removeprefix(self._prefix) for name in adapters if name.startswith(self._prefix)]
        if len(inside) < len(adapters):
            return 0
        return min((int(name.split(".")[0]) for name in inside), default=self._depth)

    def _row(self, parts: Sequence[Part]) -> tuple[_Row, Tensor, RequestLayout]:
        """The row, and token ids and layout of its trunk."""
        layout = joined(part.layout for part in parts)
        lengths = [part.layout.length for part in parts]
        ends = np.cumsum(lengths)
        spans = [(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]
        first_layer = min((part.slot.first_layer for part in parts), default=0)
        distinct, which = _distinct(parts)
        if len(distinct) == len(parts) or first_layer == 0:
            return _Row(parts, spans, layout=layout), torch.cat([part.ids for part in parts]), layout
        offsets = np.concatenate([[0], np.cumsum([part.layout.length for part in distinct])])
        repeat = np.concatenate([np.arange(offsets[d], offsets[d + 1]) for d in which])
        row = _Row(
            parts,
            spans,
            shared=True,
            first_layer=first_layer,
            trunk_length=int(offsets[-1]),
            repeat=torch.from_numpy(repeat).to(parts[0].ids.device),
            layout=layout,
        )
        return row, torch.cat([part.ids for part in distinct]), joined(part.layout for part in distinct)

    def _repeater(self, number: int) -> Any:
        """The hook of layer `number`: repeats the hidden states at `first_layer`, and from there on all else."""

        def repeat(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            row = self._state.row
            if not row.shared or number < row.first_layer:
                return None
            first = number == row.first_layer
            args = tuple(_repeated(value, row) if first or i else value for i, value in enumerate(args))
            kwargs = {
                name: value if name == "hidden_states" and not first else _repeated(value, row)
                for name, value in kwargs.items()
            }
            return args, kwargs

        return repeat


class SlotBackbone(nn.Module):
    """One trial's view of a stacked backbone: its adapters, and a `forward` that asks for a place in the next row.

    `ask` is set by whoever lets the trials meet (`train.stack`). In training the hidden states that it gives are a
    leaf of the trial's graph; `pending` holds them with those of the row, until the trial's backward pass is done.
    """

    def __init__(
        self,
        skeleton: Backbone,
        adapters: dict[str, LoraLayer],
        first_layer: int,
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        """`embed`: of the stacked backbone, whose weights the skeleton does not have."""
        super().__init__()
        self.embed = embed
        self.model = skeleton.model
        self.hidden_size = skeleton.hidden_size
        self.first_layer = first_layer
        self.dropout: DropoutContext = skeleton.dropout
        self.ask: Callable[[Part], Tensor] | None = None
        self.pending: tuple[Tensor, Tensor] | None = None
        self._adapters = adapters
        self._checksum = skeleton.checksum()

    def checksum(self) -> str:
        return self._checksum

    def adapter(self, name: str) -> LoraLayer | None:
        """The trial's adapter of the linear module `name`, if it has one there."""
        return self._adapters.get(name)

    def forward(
        self,
        ids: Tensor,
        layout: RequestLayout,
        *,
        key: DropoutKey | None = None,
        token_uids: Tensor | None = None,
        history: bool = False,
    ) -> Tensor:
        if self.ask is None:
            raise ValueError("this trial belongs to no stack")
        hidden = self.ask(Part(self, ids, layout, key, token_uids, history))
        if not hidden.requires_grad:
            return hidden
        leaf = hidden.detach().requires_grad_()
        self.pending = (hidden, leaf)
        return leaf


class StackedLinear(nn.Module):
    """A frozen linear module of the shared model, and on each trial's tokens the trial's own low-rank update."""

    def __init__(self, base: nn.Module, name: str, state: _State) -> None:
        super().__init__()
        self.base_layer = base
        self._name, self._state = name, state

    def forward(self, x: Tensor) -> Tensor:
        """[1, L, in] -> [1, L, out]"""
        out: Tensor = self.base_layer(x)
        row = self._state.row
        spans, weights = [], []
        for part, (start, stop) in zip(row.parts, row.spans, strict=True):
            adapter = part.slot.adapter(self._name)
            if adapter is not None:
                spans.append(_Span(start, stop, part, adapter))
                weights += [adapter.lora_A[ADAPTER].weight, adapter.lora_B[ADAPTER].weight]
        if not spans:
            return out  # also in the trunk, whose tokens are not those of the spans
        updated: Tensor = _LowRankUpdates.apply(out, x, spans, *weights)
        return updated


@dataclass(frozen=True)
class _Span:
    """The tokens of one trial, and its adapter of a module."""

    start: int
    stop: int
    part: Part
    adapter: LoraLayer

    @property
    def scaling(self) -> float:
        return self.adapter.scaling[ADAPTER]

    def of(self, row: Tensor) -> Tensor:
        """[L', D], a view of the row [1, L, D]"""
        return row[0, self.start : self.stop]

    def dropout(self, x: Tensor) -> Tensor:
        """With the trial's masks. It is linear and its own adjoint, so it is also its own backward pass."""
        with self.part.slot.dropout.use(self.part.key, self.part.token_uids):
            dropped: Tensor = self.adapter.lora_dropout[ADAPTER](x)
        return dropped


class _LowRankUpdates(torch.autograd.Function):
    """Adds to each trial's tokens of `out` its update, scaling · B A dropout(x), as PEFT computes it.

    One function for all trials: left to autograd, each span would be cut out of the row by tensors of the row's whole
    size, and every trial would add a dozen nodes to each module's graph, which is most of a small step's time.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, spans: Sequence[_Span], *weights: Tensor) -> Tensor:
        """`out` [1, L, out] is changed in place; `weights`: A [rank, in] and B [out, rank] of each span."""
        lows = []
        for span, down, up in zip(spans, weights[::2], weights[1::2], strict=True):
            low = span.dropout(span.of(x).to(out.dtype)) @ down.to(out.dtype).T
            span.of(out).addmm_(low, up.to(out.dtype).T, alpha=span.scaling)
            lows.append(low)
        ctx.spans = spans
        ctx.save_for_backward(x, *weights, *lows)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (of_out,) = gradients
        spans: Sequence[_Span] = ctx.spans
        x, *rest = ctx.saved_tensors
        weights, lows = rest[: 2 * len(spans)], rest[2 * len(spans) :]
        of_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        of_weights: list[Tensor] = []
        for span, down, up, low in zip(spans, weights[::2], weights[1::2], lows, strict=True):
            own = span.of(of_out)
            of_low = (own @ up.to(own.dtype)) * span.scaling
            of_down = of_low.T @ span.dropout(span.of(x).to(own.dtype))
            of_up = own.T @ (low * span.scaling)
            of_weights += [of_down.to(down.dtype), of_up.to(up.dtype)]
            if of_x is not None:
                span.of(of_x).copy_(span.dropout(of_low @ down.to(own.dtype)))
        return of_out, of_x, None, *of_weights


def _distinct(parts: Sequence[Part]) -> tuple[list[Part], list[int]]:
    """Parts with different batches, and for each part which of them is its own.

    A batch that was moved to another device keeps the host side of its layout, by which it is known.
    """
    distinct: list[Part] = []
    which = []
    for part in parts:
        same = (i for i, other in enumerate(distinct) if other.layout.host is part.layout.host)
        place = next(same, len(distinct))
        if place == len(distinct):
            distinct.append(part)
        which.append(place)
    return distinct, which


def _repeated(value: Any, row: _Row) -> Any:
    """What a layer is given, for the tokens of all parts instead of those of the trunk."""
    if isinstance(value, RequestLayout):
        return row.layout
    if isinstance(value, tuple):
        return tuple(_repeated(one, row) for one in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[1] == row.trunk_length:
        assert row.repeat is not None
        return value.index_select(1, row.repeat)
    return value


def _without_weights(backbone: Backbone) -> Backbone:
    """A copy of the structure whose weights are one number each, seen in the weights' shapes."""
    memo: dict[int, Any] = {}
    for parameter in backbone.parameters():
        stand_in = torch.zeros(1, dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)
        memo[id(parameter)] = nn.Parameter(stand_in, requires_grad=False)
    with _unhooked(backbone), _plain_linears(backbone):
        skeleton: Backbone = copy.deepcopy(backbone, memo)
    return skeleton


@contextmanager
def _unhooked(backbone: Backbone) -> Iterator[None]:
    """Hooks belong to the shared model; a copy must not hold on to it."""
    kept = [(module, module._forward_pre_hooks) for module in backbone.modules() if module._forward_pre_hooks]
    for module, _ in kept:
        module._forward_pre_hooks = type(module._forward_pre_hooks)()
    try:
        yield
    finally:
        for module, hooks in kept:
            module._forward_pre_hooks = hooks


@contextmanager
def _plain_linears(backbone: Backbone) -> Iterator[None]:
    """Adapters are put on the linear modules themselves, whatever other trials already have there."""
    stacked = [(name, m) for name, m in backbone.model.named_modules() if isinstance(m, StackedLinear)]
    for name, module in stacked:
        parent, _, last = name.rpartition(".")
        setattr(backbone.model.get_submodule(parent), last, module.base_layer)
    try:
        yield
    finally:
        for name, module in stacked:
            parent, _, last = name.rpartition(".")
            setattr(backbone.model.get_submodule(parent), last, module)
