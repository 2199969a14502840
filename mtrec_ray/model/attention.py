"""Request attention: the attention of a packed row, request by request, without a mask over the whole row.

Registered with transformers under the name `mtrec_request`; the `RequestLayout` travels as the keyword
argument `request_layout` of `model(...)`, which every layer hands to its attention function. Per request,
history tokens attend among themselves (causal, no mask) and candidate tokens to `history[:end] + themselves`:
consecutive candidates form a block of queries against the history up to the block's last end and the block's
own tokens, under a small mask. Blocks bound both the part of a staircase that is masked away and the waste
between candidates. A small request is one block with its history, under one mask: fewer calls outweigh what is masked
away. `RequestLayout.dense_mask` is the definition this is tested against.

A layer may be handed a prefix, keys and values that every token sees (`model.adapters.prefix`): here, and by
`prefixed_attention`, which is registered as `mtrec_prefixed` for separate sequences.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mtrec_ray.errors import BackboneError
from mtrec_ray.model.layout import IntArray, RequestLayout

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
Qkv = tuple[torch.Tensor, ...]

NAME, PREFIXED = "mtrec_request", "mtrec_prefixed"
BLOCK_TOKENS = 96
"""Least candidate tokens of a block, unless the request has fewer. Measured on a CPU: 64 to 128 are alike and best."""
SMALL_REQUEST_TOKENS = 256
"""Requests of at most so many tokens are computed in one call. Measured: a third faster at 62 tokens, 6 % at 248."""

# Arguments that say nothing about which token attends to which, or with which score.
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "deterministic"}


class UnsupportedAttentionError(BackboneError):
    """The model's attention does something that request attention does not reproduce."""


@dataclass(frozen=True)
class Block:
    """Consecutive candidates of one request, or all of a small request, that are computed together."""

    tokens: int
    history: int
    """history tokens that the block's keys begin with"""
    mask: torch.Tensor | None
    """additive [tokens, prefix + history + tokens]; None = everything is seen"""


@dataclass(frozen=True)
class RequestPlan:
    """Attention of one request: its history, then its blocks of candidates."""

    history: int
    """history tokens computed apart; 0 if a block holds them"""
    history_mask: torch.Tensor | None
    """None = the plain causal or bidirectional one"""
    blocks: list[Block]

    @property
    def candidates(self) -> int:
        return sum(block.tokens for block in self.blocks)


def request_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    request_layout: RequestLayout | None = None,
    request_prefix: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, L, d], key and value [1, kv_heads, L, d] -> ([1, L, heads, d], None).

    `request_prefix`: keys and values [2, kv_heads, P, d] that every token sees; None = no such tokens.

    Raises `UnsupportedAttentionError` for any argument it would have to ignore, as a soft cap or sinks.
    """
    if request_layout is None:
        raise ValueError(f"attention '{NAME}' needs model(..., request_layout=RequestLayout)")
    _refuse_unknown(others, dropout, key.shape[2], request_layout)
    if is_causal is not None and is_causal != request_layout.causal:
        raise UnsupportedAttentionError(
            f"a layer has is_causal={is_causal} in a row with causal={request_layout.causal}"
        )
    reach = _reach(sliding_window, attention_mask, request_layout)
    prefix = None if request_prefix is None else _prefix(request_prefix, key)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        # enable_gqa would leave the fused kernels as soon as there is a mask.
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        prefix = None if prefix is None else tuple(x.repeat_interleave(groups, dim=1) for x in prefix)
    prefix_tokens = 0 if prefix is None else prefix[0].shape[2]
    plans = _plans(request_layout, reach, prefix_tokens, query.dtype, query.device)
    sizes = [size for plan in plans for size in (plan.history, plan.candidates)]
    pieces = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for plan in plans:
        outputs += _attend(plan, next(pieces), next(pieces), prefix, request_layout.causal, scaling)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def prefixed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    request_prefix: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa` for sequences whose tokens all see a prefix; arguments as for `request_attention`."""
    if request_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **others)
    if attention_mask is None:
        tokens, causal = query.shape[2], getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=query.device)
        attention_mask = attention_mask.tril() if causal else attention_mask
    prefix = tuple(x.expand(len(query), -1, -1, -1) for x in _prefix(request_prefix, key))
    seen = attention_mask.dtype == torch.bool  # in a mask of numbers it is 0 that lets a token be seen
    mask = torch.nn.functional.pad(attention_mask, (prefix[0].shape[2], 0), value=seen)
    key, value = _behind(prefix, (key, value))
    return sdpa_attention_forward(module, query, key, value, mask, **others)


def _prefix(prefix: torch.Tensor, key: torch.Tensor) -> Qkv:
    """Keys and values of a prefix [1, kv_heads, P, d] in the precision of the row's."""
    if (prefix.shape[1], prefix.shape[3]) != (key.shape[1], key.shape[3]):
        raise UnsupportedAttentionError(
            f"a layer has {key.shape[1]} heads of {key.shape[3]} features for its keys, the prefix {prefix.shape[1]} "
            f"of {prefix.shape[3]}"
        )
    return tuple(x[None] for x in prefix.to(key.dtype))


def _behind(prefix: Qkv | None, keys: Qkv) -> Qkv:
    """Keys and values with those of the prefix before them."""
    if prefix is None:
        return keys
    return tuple(torch.cat(pair, dim=2) for pair in zip(prefix, keys, strict=True))


def _attend(
    plan: RequestPlan, history: Qkv, own: Qkv, prefix: Qkv | None, causal: bool, scaling: float | None
) -> list[torch.Tensor]:
    """Outputs of one request's pieces, [1, heads, tokens, d] each, in the row's order."""
    outputs = []
    if plan.history:
        outputs.append(_attend_in_history(plan, history, prefix, causal, scaling))
    _, history_key, history_value = history
    sizes = [block.tokens for block in plan.blocks]
    for block, query, key, value in zip(plan.blocks, *(x.split(sizes, dim=2) for x in own), strict=True):
        if block.history:
            # narrow() of the whole is not free: its backward pass fills a tensor of zeros.
            whole = block.history == plan.history
            past = (history_key, history_value)
            past_key, past_value = past if whole else (x.narrow(2, 0, block.history) for x in past)
            key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        key, value = _behind(prefix, (key, value))
        outputs.append(scaled_dot_product_attention(query, key, value, attn_mask=block.mask, scale=scaling))
    return outputs


def _attend_in_history(
    plan: RequestPlan, history: Qkv, prefix: Qkv | None, causal: bool, scaling: float | None
) -> torch.Tensor:
    """[1, heads, tokens, d] of a history that is computed apart.

    The plain causal kernels take as many queries as keys, so the prefix gets queries too, whose outputs are cut off.
    """
    query, (key, value) = history[0], _behind(prefix, history[1:])
    plain = causal and plan.history_mask is None
    added = key.shape[2] - query.shape[2] if plain else 0
    if added:
        query = torch.nn.functional.pad(query, (0, 0, added, 0))
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=plan.history_mask, is_causal=plain, scale=scaling
    )
    return attended[:, :, added:] if added else attended


def _refuse_unknown(others: dict[str, Any], dropout: float, keys: int, layout: RequestLayout) -> None:
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
    if unknown:
        raise UnsupportedAttentionError(
            f"its attention takes {', '.join(unknown)}, which request attention does not know"
        )
    if dropout:
        raise UnsupportedAttentionError(f"attention dropout {dropout} is drawn from a random state; set it to 0")
    if keys != layout.length:
        raise UnsupportedAttentionError(f"{keys} keys for {layout.length} tokens: cross-attention or a cache")


def _reach(sliding_window: int | None, marker: torch.Tensor | None, layout: RequestLayout) -> int | None:
    """Largest distance in positions over which this layer attends; None = no limit within this row.

    transformers' causal windows exclude the token at the window's length, its bidirectional masks include it; a
    bidirectional layer names its window to the flash kernels in other units, so there only the mask counts.
    """
    if marker is None and sliding_window is None:
        return None
    if marker is not None and (marker.ndim != 1 or marker.numel() != 1):
        raise UnsupportedAttentionError("it builds an attention mask of its own")
    masked = None if marker is None else int(marker.item())
    if layout.causal:
        if masked is not None and sliding_window not in (None, masked):
            raise UnsupportedAttentionError(f"its mask has window {masked}, its attention {sliding_window}")
        reach = (masked or sliding_window or 0) - 1
    elif masked is None:
        raise UnsupportedAttentionError(f"its attention has window {sliding_window}, its mask none")
    else:
        reach = masked
    return reach if reach < layout.largest_position else None


def request_mask(
    *,
    config: Any = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor | None:
    """What transformers puts in the place of a mask: None, since the layout says who sees whom.

    A layer with a sliding window may tell it to the mask only, so the window is handed on as a tensor of one
    number (on the host: reading it does not wait for a GPU).
    """
    if use_vmap or attention_mask is not None:
        raise UnsupportedAttentionError("it adds conditions of its own to the causal mask")
    if local_size is None:
        return None
    if getattr(config, "attention_chunk_size", None) == local_size:
        raise UnsupportedAttentionError(f"it attends in chunks of {local_size} tokens")
    return torch.tensor([local_size])


def _plans(
    layout: RequestLayout, reach: int | None, prefix: int, dtype: torch.dtype, device: torch.device
) -> list[RequestPlan]:
    """The plans of all requests, made once per row and kept with the layout for the other layers."""
    key = (reach, prefix, dtype, device)
    if key not in layout.cache:
        requests = range(layout.num_requests)
        layout.cache[key] = [_plan_request(layout, r, reach, prefix, dtype, device) for r in requests]
    plans: list[RequestPlan] = layout.cache[key]
    return plans


def _plan_request(
    layout: RequestLayout, request: int, reach: int | None, prefix: int, dtype: torch.dtype, device: torch.device
) -> RequestPlan:
    """`prefix`: tokens that all masks let be seen, before the others."""

    def additive(allowed: BoolArray) -> torch.Tensor | None:
        return _additive(np.pad(allowed, ((0, 0), (prefix, 0)), constant_values=True), dtype, device)

    history = int(layout.host["history_length"][request])
    first, last = np.searchsorted(layout.host["candidate_request"], [request, request + 1])
    lengths = layout.host["candidate_length"][first:last]
    ends = layout.host["candidate_end"][first:last]
    if history + lengths.sum() <= SMALL_REQUEST_TOKENS:
        seen = _history_mask(history, layout.causal, reach)
        allowed = _block_mask(lengths, ends, layout.causal, reach, history)
        unseen = np.zeros((history, allowed.shape[1] - history), dtype=np.bool_)
        mask = additive(np.concatenate([np.concatenate([seen, unseen], axis=1), allowed]))
        return RequestPlan(0, None, [Block(allowed.shape[1], 0, mask)])
    blocks = []
    for a, b in _cut(lengths):
        allowed = _block_mask(lengths[a:b], ends[a:b], layout.causal, reach, int(ends[a:b].max()))
        tokens, keys = allowed.shape
        blocks.append(Block(tokens, keys - tokens, additive(allowed)))
    if reach is None:
        return RequestPlan(history, None, blocks)
    return RequestPlan(history, additive(_history_mask(history, layout.causal, reach)), blocks)


def _history_mask(history: int, causal: bool, reach: int | None) -> BoolArray:
    """bool [history, history]: what a history token sees."""
    step = np.arange(history)
    seen = np.abs(step[:, None] - step[None, :]) <= (history if reach is None else reach)
    return np.tril(seen) if causal else seen


def _cut(lengths: IntArray) -> list[tuple[int, int]]:
    """Cuts the candidates of a request into runs [a, b) of at least `BLOCK_TOKENS` tokens; the last takes the rest."""
    cuts, tokens = [0], 0
    total = int(lengths.sum())
    for c, length in enumerate(lengths.tolist()):
        tokens += length
        total -= length
        if tokens >= BLOCK_TOKENS and total > BLOCK_TOKENS // 2:
            cuts.append(c + 1)
            tokens = 0
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True)) if len(lengths) else []


def _block_mask(lengths: IntArray, ends: IntArray, causal: bool, reach: int | None, history: int) -> BoolArray:
    """bool [tokens, history + tokens]: what consecutive candidates see of their history and of themselves."""
    candidate = np.repeat(np.arange(len(lengths)), lengths)
    offset = np.arange(len(candidate)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    step = np.arange(history)[None, :]
    past = step < ends[candidate][:, None]
    own = candidate[:, None] == candidate[None, :]
    if causal:
        own &= offset[None, :] <= offset[:, None]
    if reach is not None:
        past &= (ends[candidate] + offset)[:, None] - step <= reach
        own &= np.abs(offset[:, None] - offset[None, :]) <= reach
    return np.concatenate([past, own], axis=1)


def _additive(allowed: BoolArray, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """0 where allowed, minus infinity elsewhere: what the fused kernels add without converting it in every layer."""
    if allowed.all():
        return None
    mask = torch.zeros(allowed.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(~allowed), float("-inf"))
    return mask.to(device)


AttentionInterface.register(NAME, request_attention)
AttentionMaskInterface.register(NAME, request_mask)
AttentionInterface.register(PREFIXED, prefixed_attention)
AttentionMaskInterface.register(PREFIXED, sdpa_mask)
