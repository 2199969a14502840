import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from mtrec_ray.model import attention
from mtrec_ray.model.attention import UnsupportedAttentionError, request_attention, request_mask
from mtrec_ray.model.layout import RequestLayout
from tests.model.models import shared_end, staircase

HEADS, KV_HEADS, DIM = 4, 2, 8


def qkv(layout: RequestLayout, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, layout.length, DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def reference(query, key, value, mask):
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def compare(layout: RequestLayout, mask: torch.Tensor, window: int | None = None, marker=None) -> float:
    """Largest difference from sdpa with the dense mask, of outputs and of the gradients of query, key and value."""
    inputs = qkv(layout)
    ours, _ = request_attention(nn.Module(), *inputs, marker, request_layout=layout, sliding_window=window)
    theirs = reference(*inputs, mask)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    gradients = [torch.autograd.grad((out * direction).sum(), inputs) for out in (ours, theirs)]
    pairs = [(ours, theirs), *zip(*gradients, strict=True)]
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("small", [0, 256])
@pytest.mark.parametrize("layout", [shared_end(), staircase(), shared_end(causal=False)], ids=["end", "stairs", "both"])
def test_equals_sdpa_with_the_dense_mask(layout, small, monkeypatch):
    monkeypatch.setattr(attention, "SMALL_REQUEST_TOKENS", small)
    layout.cache.clear()
    assert compare(layout, layout.dense_mask()) < 1e-12


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equals_the_dense_mask_for_any_layout_and_block_size(data):
    histories = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    lengths = [data.draw(st.lists(st.integers(1, 5), max_size=6)) for _ in histories]
    ends = [[data.draw(st.integers(0, h)) for _ in n] for h, n in zip(histories, lengths, strict=True)]
    layout = RequestLayout.from_lengths(histories, lengths, ends)
    if layout.length == 0:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_TOKENS", data.draw(st.integers(1, 12)))
        patch.setattr(attention, "SMALL_REQUEST_TOKENS", data.draw(st.sampled_from([0, 10])))
        assert compare(layout, layout.dense_mask()) < 1e-12


def test_a_long_staircase_is_cut_into_blocks():
    layout = staircase()
    request_attention(nn.Module(), *qkv(layout), None, request_layout=layout)
    (plans,) = layout.cache.values()
    assert [(plan.history, len(plan.blocks)) for plan in plans] == [(64, 2), (0, 1)]
    first, second = plans[0].blocks
    assert first.history < second.history == 63


@pytest.mark.parametrize("small", [0, 256])
@pytest.mark.parametrize("window", [1, 5, 30])
def test_a_sliding_window_is_cut_on_positions(window, small, monkeypatch):
    monkeypatch.setattr(attention, "SMALL_REQUEST_TOKENS", small)
    layout = staircase()
    position = layout.positions()
    near = position[:, None] - position[None, :] < window
    assert compare(layout, layout.dense_mask() & near, window=window) < 1e-12
    assert compare(layout, layout.dense_mask() & near, marker=request_mask(local_size=window)) < 1e-12


def test_an_encoders_window_counts_both_ways_and_includes_its_end():
    layout = shared_end(causal=False)
    position = layout.positions()
    near = (position[:, None] - position[None, :]).abs() <= 4
    assert compare(layout, layout.dense_mask() & near, marker=request_mask(local_size=4)) < 1e-12


def test_a_window_longer_than_every_request_costs_nothing():
    layout = staircase()
    request_attention(nn.Module(), *qkv(layout), None, request_layout=layout, sliding_window=4096)
    (plans,) = layout.cache.values()
    assert all(plan.history_mask is None for plan in plans)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_keeps_the_precision_it_is_given(dtype):
    layout = staircase()
    inputs = qkv(layout, dtype)
    out, weights = request_attention(nn.Module(), *inputs, None, request_layout=layout)
    expected = reference(*(x.double() for x in inputs), layout.dense_mask())
    assert weights is None
    assert out.dtype == dtype
    assert out.shape == (1, layout.length, HEADS, DIM)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float64: 1e-14}[dtype]
    assert float((out - expected).detach().abs().max()) < tolerance


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"softcap": 50.0}, "takes softcap"),
        ({"s_aux": torch.zeros(4)}, "takes s_aux"),
        ({"position_bias": torch.zeros(1), "softcap": 1.0}, "takes position_bias, softcap"),
        ({"dropout": 0.1}, "attention dropout 0.1"),
        ({"is_causal": False}, "is_causal=False in a row with causal=True"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "mask of its own"),
        ({"attention_mask": torch.tensor([8]), "sliding_window": 4}, "mask has window 8, its attention 4"),
    ],
)
def test_whatever_it_would_have_to_ignore_is_refused(arguments, reason):
    layout = shared_end()
    settings_ = {"attention_mask": None, "request_layout": layout, **arguments}
    with pytest.raises(UnsupportedAttentionError, match=reason):
        request_attention(nn.Module(), *qkv(layout), **settings_)


def test_arguments_that_are_off_are_no_reason_to_refuse():
    layout = shared_end()
    request_attention(nn.Module(), *qkv(layout), None, request_layout=layout, softcap=None, position_ids=1)


def test_a_model_run_without_a_layout_is_our_mistake():
    with pytest.raises(ValueError, match="request_layout"):
        request_attention(nn.Module(), *qkv(shared_end()), None)


@pytest.mark.parametrize(
    "arguments", [{"use_vmap": True}, {"attention_mask": torch.ones(1, 4)}], ids=["extra conditions", "padding"]
)
def test_masks_that_say_more_than_causal_are_refused(arguments):
    with pytest.raises(UnsupportedAttentionError):
        request_mask(**arguments)


def test_chunks_are_refused():
    class Config:
        attention_chunk_size = 8

    with pytest.raises(UnsupportedAttentionError, match="chunks of 8"):
        request_mask(config=Config(), local_size=8)
