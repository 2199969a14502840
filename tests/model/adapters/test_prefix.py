"""The definition of prefixes in `model.adapters.prefix`; that packed equals separate is in test_kinds."""

import pytest
import torch
from torch.nn.functional import softmax

from mtrec_ray.config import Adapter
from mtrec_ray.errors import ConfigError
from mtrec_ray.model import attention
from mtrec_ray.model.adapters import add_adapter
from mtrec_ray.model.adapters.prefix import Prefix
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.model.nano import build_nano
from tests.model.models import (
    VOCABULARY,
    largest_difference,
    make_model,
    outputs_and_gradients,
    relative,
    shared_end,
    staircase,
    tiny,
    token_ids,
    with_adapter,
)


class Bare:
    """What transformers' functions ask of an attention module."""

    is_causal, num_key_value_groups = True, 2


def attended(query, key, value, prefix, seen) -> torch.Tensor:
    """The definition, in the plainest words: one softmax over the prefix and what is seen. [1, L, heads, d]"""
    key, value, (prefix_key, prefix_value) = (x.repeat_interleave(2, dim=1) for x in (key, value, prefix))
    scores = query @ torch.cat([prefix_key[None], key], dim=2).transpose(2, 3) / query.shape[3] ** 0.5
    seen = torch.cat([torch.ones(len(seen), prefix_key.shape[1], dtype=torch.bool), seen], dim=1)
    weights = softmax(scores.masked_fill(~seen, float("-inf")), dim=3)
    return (weights @ torch.cat([prefix_value[None], value], dim=2)).transpose(1, 2)


def inputs(length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, length, 8), (1, 2, length, 8), (1, 2, length, 8), (2, 2, 3, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def difference(ours: torch.Tensor, theirs: torch.Tensor, given: list[torch.Tensor]) -> float:
    """The largest one of outputs and of gradients of query, key, value and prefix."""
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    gradients = [torch.autograd.grad((out * direction).sum(), given) for out in (ours, theirs)]
    return max(float((a - b).detach().abs().max()) for a, b in [(ours, theirs), *zip(*gradients, strict=True)])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("small", [0, 256])
@pytest.mark.parametrize("layout", [shared_end(), staircase(), shared_end(causal=False)], ids=["end", "stairs", "both"])
def test_every_token_of_a_packed_row_sees_it(layout, small, window, monkeypatch):
    """Also where a window cuts off the history."""
    monkeypatch.setattr(attention, "SMALL_REQUEST_TOKENS", small)
    layout.cache.clear()
    *row, prefix = given = inputs(layout.length)
    position, seen, marker = layout.positions(), layout.dense_mask(), None
    if window:
        reach = window - 1 if layout.causal else window
        seen = seen & ((position[:, None] - position[None, :]).abs() <= reach)
        marker = attention.request_mask(local_size=window)
    ours, _ = attention.request_attention(torch.nn.Module(), *row, marker, request_layout=layout, request_prefix=prefix)
    assert difference(ours, attended(*given, seen), given) < 1e-12


@pytest.mark.parametrize("mask", ["none", "numbers", "words"])
@pytest.mark.parametrize("causal", [True, False])
def test_every_token_of_a_separate_sequence_sees_it(causal, mask):
    *row, prefix = given = inputs(7)
    seen = torch.ones(7, 7, dtype=torch.bool)
    seen = seen.tril() if causal else seen
    given_mask = {"none": None, "words": seen[None, None], "numbers": torch.zeros(1, 1, 7, 7).double()}[mask]
    if mask == "numbers":
        given_mask.masked_fill_(~seen, float("-inf"))
    ours, _ = attention.prefixed_attention(Bare(), *row, given_mask, request_prefix=prefix, is_causal=causal)
    assert difference(ours, attended(*given, seen), given) < 1e-12


def test_a_layer_without_one_attends_as_ever():
    *row, _ = given = inputs(7)
    ours, _ = attention.prefixed_attention(Bare(), *row, None)
    empty = torch.zeros(2, 2, 0, 8, dtype=torch.float64)
    expected = attended(*row, empty, torch.ones(7, 7, dtype=torch.bool).tril())
    assert difference(ours, expected, given[:3]) < 1e-12


def test_rows_with_and_without_one_keep_their_plans_apart():
    layout = staircase()
    *row, prefix = inputs(layout.length)
    calls = [prefix, None, prefix[:, :, :1], prefix]
    found = [
        attention.request_attention(torch.nn.Module(), *row, None, request_layout=layout, request_prefix=one)[0]
        for one in calls
    ]
    assert torch.equal(found[0], found[3])
    assert len(layout.cache) == 3


def test_at_the_start_it_takes_attention_and_gives_nothing():
    """With values of 0 an output is the frozen one times the share of attention that is left: 1 - lambda of He et al.
    (2022, arXiv 2110.04366), equation 7."""
    *row, _ = inputs(9)
    torch.manual_seed(0)
    prefix = Prefix(2, 3, 8).double()()
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    query, key, _ = row
    scores = [query @ k.repeat_interleave(2, dim=1).transpose(2, 3) / 8**0.5 for k in (prefix[:1], key)]
    taken, left = scores[0].exp().sum(3), scores[1].exp().masked_fill(~seen, 0).sum(3)
    empty = torch.zeros(2, 2, 0, 8, dtype=torch.float64)
    expected = attended(*row, empty, seen) * (left / (taken + left)).transpose(1, 2)[..., None]
    assert relative(attended(*row, prefix, seen), expected) < 1e-12
    assert prefix[0].std() > 0.5, "keys that are all alike stay alike"


def test_it_has_no_position():
    """A model made for 30 positions reads 30 tokens behind it, at the positions that they had."""
    backbone = with_adapter(build_nano(VOCABULARY, 32, 1, 4, max_positions=30), "prefix")
    seen = []
    backbone.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["position_ids"]), with_kwargs=True
    )
    row = shared_end()
    assert row.largest_position == 29
    backbone(token_ids(row), row)
    assert torch.equal(seen[0][0], row.positions())


@pytest.mark.parametrize("architecture", ["MistralConfig", "Gemma3TextConfig", "ModernBertConfig"])
def test_windows_of_a_model_do_not_cut_it_off(architecture):
    settings = {
        "MistralConfig": {"sliding_window": 8},
        "Gemma3TextConfig": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        "ModernBertConfig": {"local_attention": 80, "pad_token_id": 0, "num_key_value_heads": None},
    }[architecture]
    backbone = with_adapter(tiny(architecture, **settings), "prefix", prefix_tokens=3)
    row = shared_end(backbone.causal)
    packed = outputs_and_gradients(backbone, row, "packed")
    assert largest_difference(packed, outputs_and_gradients(backbone, row, "separate")) < 1e-5


def test_a_candidate_without_history_sees_it_too():
    backbone = with_adapter(make_model("nano"), "prefix", prefix_tokens=3)
    layout = RequestLayout.from_lengths([0], [[1]], [[0]])
    ids = token_ids(layout)
    alone = Backbone(make_model("nano"))(ids, layout)
    assert relative(backbone(ids, layout), alone) > 1e-2


def test_a_model_whose_own_attention_takes_none_is_refused():
    model = make_model("nano")
    model.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match=r"a LlamaModel takes no prefix: its own attention is computed by 'eager'"):
        add_adapter(Backbone(model), Adapter(kind="prefix"), seed=0)


def test_a_model_with_other_layers_than_attention_is_refused():
    model, same = (tiny("Lfm2Config", layer_types=["conv", "full_attention"], block_ff_dim=64) for _ in range(2))
    with pytest.raises(ConfigError, match="a Lfm2Model takes no prefix: it has layers of type conv"):
        add_adapter(Backbone(model), Adapter(kind="prefix"), seed=0)
    add_adapter(Backbone(same), Adapter(kind="prefix", top_layers=1), seed=0)


def test_heads_that_are_not_those_of_the_config_are_noticed():
    layout = shared_end()
    *row, prefix = inputs(layout.length)
    with pytest.raises(attention.UnsupportedAttentionError, match="2 heads of 8 features for its keys, the prefix 1"):
        attention.request_attention(torch.nn.Module(), *row, None, request_layout=layout, request_prefix=prefix[:, :1])
