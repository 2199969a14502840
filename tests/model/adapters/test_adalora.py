"""Allocation of ranks: against PEFT's own, by hand, and as it must survive a checkpoint."""

import math
from itertools import pairwise

import pytest
import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import RankAllocator

from mtrec_ray.config import Adapter
from mtrec_ray.config_file import parse
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.adapters import Trained, add_adapter, trained_parts
from mtrec_ray.model.adapters.adalora import RankAllocation, triplets
from mtrec_ray.model.adapters.buffers import added_buffers
from mtrec_ray.model.adapters.injection import ADAPTER, low_rank_layers
from mtrec_ray.model.backbone import Backbone
from tests.model.models import make_model, with_adapter

STEPS = 16
"""2 of warm-up, 6 in which ranks are taken away, 8 with those that are left."""


def build(rank: int = 4, **settings) -> tuple[Backbone, RankAllocation]:
    backbone = with_adapter(make_model("nano"), "adalora", rank=rank, **settings)
    (allocation,) = trained_parts(backbone)
    return backbone, allocation


def train(backbone: Backbone, allocation: RankAllocation, first: int, last: int, after=None) -> None:
    """Steps [first, last) of `STEPS` by plain gradient descent, with gradients that depend on step and weight alone."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        weights = [p for p in backbone.parameters() if p.requires_grad]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        allocation.before_step()
        with torch.no_grad():
            for weight in weights:
                weight -= 0.05 * weight.grad
        if after is not None:
            after(step + 1)
        for weight in weights:
            weight.grad = None
        allocation.after_step(step + 1, STEPS)


def values(backbone: Backbone) -> dict[str, torch.Tensor]:
    weights = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    return {name: value.detach().clone() for name, value in (weights | added_buffers(backbone)).items()}


def test_it_is_what_peft_allocates():
    """PEFT's own allocator on a copy of the model, with gradients that it can still read and the same schedule.

    It does not look at the gradient of the last step that takes ranks away, so they are compared before that.
    """
    ours, allocation = build(targets=["q_proj", "down_proj"])
    theirs, _ = build(targets=["q_proj", "down_proj"])
    config = AdaLoraConfig(init_r=6, target_r=4, tinit=2, tfinal=8, total_step=STEPS)
    allocator = RankAllocator(theirs.model, config, ADAPTER)
    masks = []
    for step in range(7):
        generator = torch.Generator().manual_seed(step)
        weights = [p for p in theirs.parameters() if p.requires_grad]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            for weight in weights:
                weight -= 0.05 * weight.grad
        _, mask = allocator.update_and_allocate(theirs.model, step + 1)
        train(ours, allocation, step, step + 1)
        for (_, mine), (_, other) in zip(low_rank_layers(ours.model), low_rank_layers(theirs.model), strict=True):
            for name, weight in triplets(mine).items():
                torch.testing.assert_close(weight, triplets(other)[name])
        if mask is not None:
            masks.append([sum(kept) for kept in mask.values()])
            assert allocation.ranks() == masks[-1]
    assert len({tuple(mask) for mask in masks}) > 1, "no rank was taken away"


def test_ranks_of_all_modules_come_down_to_the_mean():
    backbone, allocation = build()
    ranks = []
    train(backbone, allocation, 0, STEPS, after=lambda step: ranks.append(sum(allocation.ranks())))
    ranks.append(sum(allocation.ranks()))
    start, end = 14 * 6, 14 * 4
    budgets = [int(end + (start - end) * (1 - taken / 6) ** 3) for taken in range(1, 7)]
    # ranks[i] is what was left after i steps.
    assert ranks == [start] * 3 + budgets + [end] * 8
    assert len(set(allocation.ranks())) > 1, "every module has the same rank"


def test_what_was_pruned_is_zero_and_stays_it_in_the_end():
    backbone, allocation = build()
    train(backbone, allocation, 0, 10)
    kept = [layer.lora_importance.kept.clone() for _, layer in low_rank_layers(backbone)]
    train(backbone, allocation, 10, STEPS)
    for (_, layer), before in zip(low_rank_layers(backbone), kept, strict=True):
        assert torch.equal(layer.lora_importance.kept, before)
        assert torch.equal(layer.lora_E[ADAPTER][:, 0] == 0, ~before)


def test_a_value_that_was_pruned_can_come_back():
    backbone, allocation = build()
    seen = []
    train(backbone, allocation, 0, 8, after=lambda step: seen.append(_kept(backbone)))
    seen.append(_kept(backbone))
    assert any(bool((after & ~before).any()) for before, after in pairwise(seen))


def _kept(backbone: Backbone) -> torch.Tensor:
    return torch.cat([layer.lora_importance.kept.clone() for _, layer in low_rank_layers(backbone)])


def test_importance_by_hand():
    """Equations 7 to 11 for two steps of one triplet."""
    _, allocation = build(targets=["q_proj"], top_layers=1, rank=1)
    importance = allocation._layers[0].lora_importance
    for weight, gradient in ((2.0, -0.5), (1.0, 3.0)):
        shapes = {"E": (2, 1), "A": (2, 32), "B": (32, 2)}
        for name, shape in shapes.items():
            importance.update(name, torch.full(shape, weight), torch.full(shape, gradient))
    # |w g| is 1, then 3: sensitivity .15, then .85 * .15 + .15 * 3; uncertainty .15 * (1 - .15), then likewise.
    first = 0.15 * 0.85
    sensitivity = 0.85 * 0.15 + 0.15 * 3
    uncertainty = 0.85 * first + 0.15 * (3 - sensitivity)
    assert importance.scores().tolist() == pytest.approx([3 * sensitivity * uncertainty] * 2)


def test_equal_triplets_are_kept_in_order():
    _, allocation = build(rank=2)
    allocation._allocate(5)
    assert allocation.ranks() == [3, 2] + [0] * 12


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_short_runs_end_with_the_ranks_that_were_asked_for(num_steps):
    backbone, allocation = build()
    for step in range(num_steps):
        for weight in (p for p in backbone.parameters() if p.requires_grad):
            weight.grad = torch.ones_like(weight)
        allocation.before_step()
        allocation.after_step(step + 1, num_steps)
    assert sum(allocation.ranks()) == 14 * 4


@pytest.mark.parametrize("at", [1, 5, 11])
def test_resumed_is_never_stopped(at):
    """With the weights and buffers that a checkpoint holds, in a model that is built anew."""
    straight, allocation = build()
    train(straight, allocation, 0, STEPS)
    stopped, allocation = build()
    train(stopped, allocation, 0, at)
    held = values(stopped)
    resumed = Backbone(make_model("nano"))
    add_adapter(resumed, Adapter(kind="adalora", rank=4), seed=3)
    own = dict(resumed.named_parameters()) | added_buffers(resumed)
    with torch.no_grad():
        for name, value in held.items():
            own[name].copy_(value)
    (allocation,) = trained_parts(resumed)
    train(resumed, allocation, at, STEPS)
    expected = values(straight)
    assert all(torch.equal(value, expected[name]) for name, value in values(resumed).items())


def test_buffers_are_those_of_adapters_alone():
    backbone, _ = build()
    names = added_buffers(backbone)
    assert len(names) == 14 * 7
    assert all(".lora_importance." in name for name in names)
    assert added_buffers(with_adapter(make_model("nano"), "dora")) == {}


def test_singular_vectors_are_drawn_to_orthogonal_ones():
    backbone, allocation = build(orthogonality=0.3)
    distances = []
    for _, layer in low_rank_layers(backbone):
        for vectors in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T):
            gram = (vectors.double() @ vectors.double().T).detach()
            distances.append(math.sqrt(float((gram - torch.eye(6)).square().sum())))
    loss = allocation.extra_loss()
    assert loss.item() == pytest.approx(0.3 * sum(distances) / len(distances), rel=1e-6)
    loss.backward()
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert all((p.grad is None) == ("lora_E" in name) for name, p in trained.items())
    _, off = build(orthogonality=0.0)
    assert off.extra_loss() is None


def test_orthogonal_vectors_cost_nothing_and_have_a_gradient():
    backbone, allocation = build(rank=2, targets=["q_proj"])
    with torch.no_grad():
        for _, layer in low_rank_layers(backbone):
            layer.lora_A[ADAPTER].copy_(torch.eye(3, 32))
            layer.lora_B[ADAPTER].copy_(torch.eye(32, 3))
    loss = allocation.extra_loss()
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.isfinite().all() for n, p in backbone.named_parameters() if "lora_A" in n or "lora_B" in n)


def test_it_is_found_in_the_model_and_no_other_kind_asks_for_anything():
    backbone, allocation = build()
    assert isinstance(allocation, Trained)
    assert trained_parts(torch.nn.ModuleDict({"backbone": backbone})) == [allocation]
    for kind in ("lora", "dora", "ia3", "prefix", "bottleneck"):
        assert trained_parts(with_adapter(make_model("nano"), kind)) == []


CONFIG = """
name: t
data: {logs: x.csv, columns: {user: u, item: i, time: t}}
tasks: {like: {label: like}}
adapter: {kind: adalora}
"""


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_it_is_refused_where_gradients_lie_in_parts(stage):
    with pytest.raises(ConfigError, match=rf"engine.zero_stage is {stage}, .*set engine.zero_stage: 0 or engine.name"):
        parse(CONFIG, [f"engine.zero_stage={stage}"])
    assert parse(CONFIG, ["engine.zero_stage=0"]).adapter.kind == "adalora"
    assert parse(CONFIG, [f"engine.zero_stage={stage}", "engine.name=plain"]).adapter.kind == "adalora"
    assert parse(CONFIG, [f"engine.zero_stage={stage}", "adapter.kind=dora"]).adapter.kind == "dora"
