import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mtrec_ray.model.dropout import DropoutContext, DropoutKey, StatelessDropout, dropped_elements
from tests.model.models import largest_difference, make_model, outputs_and_gradients, shared_end, staircase, with_lora

KEY = DropoutKey(seed=1, step=7)


def uids_of(layout) -> torch.Tensor:
    return 1000 * layout.token_requests() + layout.request_offsets()


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5])
def test_the_rate_is_right_for_every_token_and_feature(p):
    dropped = dropped_elements(torch.arange(3000), 256, KEY.salt("a"), p).double()
    spread = (p * (1 - p)) ** 0.5
    assert dropped.mean() == pytest.approx(p, abs=4 * spread / dropped.numel() ** 0.5)
    for dim, n in ((0, 3000), (1, 256)):
        assert dropped.mean(dim).std() == pytest.approx(spread / n**0.5, rel=0.15)


def test_masks_of_neighbouring_tokens_features_steps_and_modules_are_unrelated():
    uids = torch.arange(2000)

    def mask(key, name, uids=uids):
        return dropped_elements(uids, 128, key.salt(name), 0.5).double() - 0.5

    base = mask(KEY, "a")
    others = [
        mask(DropoutKey(1, 8), "a"),
        mask(DropoutKey(2, 7), "a"),
        mask(DropoutKey(1, 7, trial=1), "a"),
        mask(KEY, "b"),
        mask(KEY, "a", uids + 1),
        base.roll(1, dims=1),
    ]
    for other in others:
        assert abs(float((base * other).mean() / 0.25)) < 4 / base.numel() ** 0.5


def test_a_token_keeps_its_mask_in_any_company():
    uids = torch.tensor([5, 9, 2**62, -3])
    whole = dropped_elements(uids, 64, KEY.salt("a"), 0.3)
    assert torch.equal(whole[[2, 0]], dropped_elements(uids[[2, 0]], 64, KEY.salt("a"), 0.3))
    assert torch.equal(whole.view(2, 2, 64), dropped_elements(uids.view(2, 2), 64, KEY.salt("a"), 0.3))


def test_kept_elements_are_scaled_and_evaluation_drops_nothing():
    context = DropoutContext()
    layer = StatelessDropout(0.25, "a", context)
    x = torch.ones(50, 40)
    with context.use(KEY, torch.arange(50)):
        assert layer(x).unique().tolist() == [0.0, pytest.approx(4 / 3)]
        assert torch.equal(layer.eval()(x), x)


def test_training_without_a_key_or_uids_is_a_mistake():
    context = DropoutContext()
    layer = StatelessDropout(0.25, "a", context)
    with pytest.raises(ValueError, match="needs a DropoutKey"):
        layer(torch.ones(3, 2))
    with context.use(KEY, torch.arange(4)), pytest.raises(ValueError, match=r"uids of shape \(3,\), not \(4,\)"):
        layer(torch.ones(3, 2))


def test_checkpointing_recomputes_with_the_key_of_the_forward_pass():
    """Two forward passes with different keys before any backward pass: what a gradient over two micro-steps does."""
    context = DropoutContext()
    layer = StatelessDropout(0.5, "a", context)
    inputs, outputs = [], []
    for step in (1, 2):
        x = torch.ones(20, 30, requires_grad=True)
        with context.use(DropoutKey(0, step), torch.arange(20)):
            out = checkpoint(lambda x: layer(x) * x, x, use_reentrant=False, context_fn=context.checkpoint_contexts)
        inputs.append(x)
        outputs.append(out)
    sum(out.sum() for out in outputs).backward()
    for x, out in zip(inputs, outputs, strict=True):
        assert torch.equal(x.grad, 2 * out)


@pytest.mark.parametrize("layout", [shared_end(), staircase()], ids=["shared end", "staircase"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_separate_with_dropout_on(layout, checkpointing):
    backbone = with_lora(make_model("nano"), dropout=0.3)
    off = with_lora(make_model("nano"))
    if checkpointing:
        backbone.enable_checkpointing()
    dropout = {"key": KEY, "token_uids": uids_of(layout)}
    packed = outputs_and_gradients(backbone, layout, "packed", **dropout)
    assert largest_difference(packed, outputs_and_gradients(backbone, layout, "separate", **dropout)) < 1e-5
    without = outputs_and_gradients(off, layout, "packed")
    assert largest_difference(packed, without) > 1e-2, "dropout did nothing"


def test_the_same_key_gives_the_same_result_and_another_step_another():
    backbone, layout = with_lora(make_model("nano"), dropout=0.3), shared_end()
    first, again, other = (
        outputs_and_gradients(backbone, layout, "packed", key=DropoutKey(1, step), token_uids=uids_of(layout))[0]
        for step in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
