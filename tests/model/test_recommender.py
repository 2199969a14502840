from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutKey, feature_uids
from mtrec_ray.model.recommender import Recommender, frozen_dtype
from mtrec_ray.model.row_table import row_tables
from mtrec_ray.model.towers import TOWERS
from tests.batches import make_batch, make_manifest, make_request, make_run
from tests.training import small_backbone

REQUESTS = [make_request(n) for n in range(8)]
BATCH = make_batch(REQUESTS, tokens=True)
HISTORY = [int(request["event_tokens"].sum()) for request in REQUESTS]
KEY = DropoutKey(0, 3)


def build(*overrides: str, backbone: bool = True) -> Recommender:
    run = make_run("features.history_dim=4", *overrides)
    return Recommender(small_backbone(run) if backbone else None, make_manifest(), run).eval()


def outputs(model: Recommender, key: DropoutKey | None = None, batch=BATCH) -> Tensor:
    (logits,) = model(batch, key)
    return torch.cat(list(logits.values()), dim=1)


def test_logits_have_the_shapes_of_their_tasks() -> None:
    (found,) = build()(BATCH)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "like": (BATCH.num_candidates, 1),
        "stars": (BATCH.num_candidates, 1),
        "kind": (BATCH.num_candidates, 3),
    }


def test_the_seed_decides_the_first_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build()
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(outputs(first), outputs(build()))
    assert not torch.equal(outputs(first), outputs(build("seed=1")))


def test_it_starts_near_the_base_rates() -> None:
    (logits,) = build()(BATCH)
    assert torch.sigmoid(logits["like"]).mean().item() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    "override",
    [
        "features.user_dim=0",
        "features.item_dim=0",
        "features.item_dim=5",
        "features.category_dim=0",
        "features.number_dim=0",
        "features.number_dim=3",
        "features.history_dim=0",
        "features.history_dim=2",
        "features.hidden=[]",
        "features.hidden=[6, 5]",
        "towers.z_dim=9",
        "towers.hidden=[]",
        "towers.hidden=[5, 4]",
        *(f"towers.kind={kind}" for kind in ("mmoe", "cgc", "ple", "cross_stitch", "mtl_lora")),
        "engine.precision=bf16",
    ],
)
def test_each_setting_changes_the_outputs(override: str) -> None:
    assert not torch.equal(outputs(build()), outputs(build(override)))


class Copies:
    """A balance point that only tells the tasks' z apart."""

    trains_below = True

    def split(self, z: Tensor, tasks: int) -> tuple[Tensor, ...]:
        return tuple(z.clone() for _ in range(tasks))


@pytest.mark.parametrize("kind", TOWERS.names())
def test_with_a_balance_point_each_task_has_the_logits_that_it_has_without(kind: str) -> None:
    run = make_run(f"towers.kind={kind}", "tasks.stars.parent=like")
    manifest = make_manifest().model_copy(update={"domains": ["", "home", "search"]})
    model = Recommender(None, manifest, run).train()
    (together,) = model(BATCH, KEY)
    apart = model(BATCH, KEY, Copies())
    assert [list(view) for view in apart] == [["like"], ["stars"], ["kind"]]
    assert all(torch.equal(view[name], together[name]) for view in apart for name in view)


def test_star_towers_are_told_the_domain() -> None:
    manifest = make_manifest().model_copy(update={"domains": ["", "home", "search"]})
    model = Recommender(None, manifest, make_run("towers.kind=star")).eval()
    found = [outputs(model, batch=replace(BATCH, domain=torch.full_like(BATCH.domain, d))) for d in range(3)]
    assert not any(torch.equal(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("setting", ["features.dropout", "features.id_dropout", "towers.dropout", "adapter.dropout"])
def test_each_dropout_acts_in_training_and_follows_its_key(setting: str) -> None:
    off = [f"{name}=0" for name in ("features.dropout", "features.id_dropout", "towers.dropout", "adapter.dropout")]
    model = build(*off, f"{setting}=0.4")
    still = outputs(model)
    with pytest.raises(ValueError, match="DropoutKey"):
        outputs(model.train())
    once = outputs(model, KEY)
    assert not torch.equal(once, still)
    assert torch.equal(outputs(model, KEY), once)
    assert not torch.equal(outputs(model, DropoutKey(0, 4)), once)
    assert not torch.equal(outputs(model, DropoutKey(1, 3)), once)
    assert torch.equal(outputs(model.eval(), KEY), still)
    assert torch.equal(outputs(build(*off).train(), KEY), outputs(build(*off).train(), None))


def test_a_candidate_is_scored_alike_in_any_batch_dropout_included() -> None:
    model = build("adapter.dropout=0.2").train()
    whole = outputs(model, KEY)
    parts = [outputs(model, KEY, make_batch(part, tokens=True)) for part in (REQUESTS[:3], REQUESTS[3:4], REQUESTS[4:])]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_unknown_ids_share_row_zero() -> None:
    model = build("features.id_dropout=0.5", "features.user_dim=1", backbone=False).train()
    table = model.side.parts[0]
    torch.nn.init.constant_(table.table.weight, 1.0)
    torch.nn.init.zeros_(table.table.weight[0])
    many = make_batch([make_request(n) for n in range(300)])
    with model.context.use(KEY, feature_uids(many.row_ids)):
        known = table(many)[many.user_index > 0].mean().item()
    assert known == pytest.approx(0.5, abs=0.06)


def test_absent_categories_do_not_count() -> None:
    model = build(backbone=False)
    table = model.side.parts[2]
    one = torch.tensor([[2, -1, 0]]).repeat(BATCH.num_candidates, 1)
    two = torch.tensor([[2, 3, 0]]).repeat(BATCH.num_candidates, 1)
    weight = table.table.weight

    def read(values: Tensor) -> Tensor:
        return table(type(BATCH)(**{**vars(BATCH), "categories": values}))[0]

    assert torch.equal(read(one), weight[2])
    torch.testing.assert_close(read(two), (weight[2] + weight[3]) / 2)
    assert read(torch.full_like(one, -1)).abs().sum() == 0


def test_without_any_event_candidates_are_scored_as_those_that_see_none() -> None:
    unseen = [{**request, "candidate_events": np.zeros_like(request["candidate_events"])} for request in REQUESTS]
    none = {"events": 0, "event_tokens": np.zeros(0, int), "event_item": np.zeros(0, int)}
    none["event_feedback"] = np.zeros((0, 3), np.float32)
    without = [{**request, **none, "tokens": request["tokens"][h:]} for request, h in zip(unseen, HISTORY, strict=True)]
    model = build()
    found = outputs(model, batch=make_batch(without, tokens=True))
    torch.testing.assert_close(found, outputs(model, batch=make_batch(unseen, tokens=True)))
    found.sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())


def test_without_candidates_every_parameter_gets_a_gradient_of_zero() -> None:
    model = build()
    outputs(model, KEY, make_batch([], tokens=True)).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() == 0, name


def test_parameter_groups_hold_everything_that_is_trained_once() -> None:
    model = build()
    groups = model.parameter_groups()
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert all("lora_" in name for name in groups["adapters"])
    assert groups["tables"] == {}  # of places alone: the others are no parameters
    assert {name.rsplit(".", 2)[-2] for name in row_tables(model)} == {"table", "items"}
    assert len(row_tables(model)) == 5
    assert model.learnable == {*names, *row_tables(model)}
    assert any(name.startswith("towers.towers.2.") for name in groups["towers"])


def test_bf16_loads_frozen_weights_in_bf16_and_trained_ones_in_float32() -> None:
    assert frozen_dtype(make_run()) == "float32"
    assert frozen_dtype(make_run("engine.precision=bf16")) == "bfloat16"
    assert frozen_dtype(make_run("engine.precision=bf16", "adapter.kind=full")) == "float32"


def test_a_model_without_any_input_is_refused() -> None:
    run = make_run("features.user_dim=0", "features.item_dim=0", "features.category_dim=0")
    manifest = make_manifest().model_copy(update={"numbers": []})
    with pytest.raises(ConfigError, match=r"backbone is 'none'.*features\.item_dim"):
        Recommender(None, manifest, run)
