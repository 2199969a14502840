import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.config_file import parse
from mtrec_ray.data.batch import Batch
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.model.dropout import DropoutKey, feature_uids
from mtrec_ray.model.position import check_known_positions, check_position, logit_of_product
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.multitask.losses import make_objective
from mtrec_ray.search.applied import applied
from mtrec_ray.train.evaluation import score
from tests.batches import CONFIG, TASKS, Step, make_batch, make_manifest, make_request, make_run
from tests.training import make_engine

NAN = float("nan")
KEY = DropoutKey(0, 3)
LAST = 4
METHODS = ("additive", "pal", "feature")
COLUMNS = ("data.columns.position=place", "data.columns.propensity=chance")
STILL = ("features.dropout=0", "features.id_dropout=0", "towers.dropout=0")


def with_context(batch: Batch, position: Tensor | None = None, propensity: Tensor | None = None) -> Batch:
    """Positions 0 .. `LAST` and unknown ones, in turn; propensities are unknown."""
    size = batch.num_candidates
    turn = torch.arange(size) % (LAST + 2)
    place = torch.where(turn > LAST, torch.nan, turn.float()) if position is None else position
    chance = torch.full((size,), torch.nan) if propensity is None else propensity
    return replace(batch, context=torch.stack([place, chance], dim=1))


BATCH = with_context(make_batch([make_request(n) for n in range(8)]))


def manifest(**parts: Any) -> Any:
    known = {"context": ["position", "propensity"], "positions": [0, LAST], "propensities": 9}
    return make_manifest().model_copy(update={**known, **parts})


def build(*overrides: str) -> Recommender:
    return Recommender(None, manifest(), make_run(*COLUMNS, *STILL, *overrides))


def with_effects(method: str, *overrides: str) -> Recommender:
    """A model whose effects have been learned: other ones at every place and for every task."""
    model = build(f"position.method={method}", *overrides)
    weight = (model.side.parts[-1] if method == "feature" else model.position).table.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))
    return model


def like(model: Recommender, batch: Batch = BATCH) -> Tensor:
    (logits,) = model(batch, KEY)
    return logits["like"][:, 0]


def at(place: float, batch: Batch = BATCH) -> Batch:
    return with_context(batch, torch.full((batch.num_candidates,), place))


def test_the_additive_effect_is_that_of_the_row_s_own_place() -> None:
    model, plain = with_effects("additive").train(), build().train()
    effects = model.position.table.weight[:, 0]
    place = BATCH.context[:, 0]
    row = torch.where(place.isnan(), 0, place.nan_to_num(0).long() + 1)
    torch.testing.assert_close(like(model), like(plain) + effects[row])


def test_pal_is_the_product_of_two_probabilities() -> None:
    model, plain = with_effects("pal").train(), build().train()
    effects = model.position.table.weight[:, 0]
    place = BATCH.context[:, 0]
    row = torch.where(place.isnan(), 0, place.nan_to_num(0).long() + 1)
    expected = torch.sigmoid(like(plain)) * torch.sigmoid(effects[row])
    torch.testing.assert_close(torch.sigmoid(like(model)), expected)


@pytest.mark.parametrize(("first", "second"), [(0.3, -1.2), (-5.0, 2.0), (4.0, 4.0), (-0.1, 9.0)])
def test_the_logit_of_a_product_by_hand(first: float, second: float) -> None:
    p = 1 / (1 + math.exp(-first)) / (1 + math.exp(-second))
    found = logit_of_product(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    assert found.item() == pytest.approx(math.log(p / (1 - p)))


def test_the_logit_of_a_product_is_precise_where_the_product_is_nearly_0_or_1() -> None:
    large = torch.tensor([[40.0, 40.0], [-40.0, 40.0], [-40.0, -40.0], [1e4, 3.0], [-1e4, 3.0], [1e4, 1e4]])
    values = large.clone().requires_grad_()
    found = logit_of_product(values[:, 0], values[:, 1])
    expected = torch.tensor(
        [40 - math.log(2), -40.0, -80.0, 3.0, -1e4 + math.log(1 / (1 + math.exp(-3))), 1e4 - math.log(2)]
    )
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert torch.isfinite(values.grad).all()


def test_gradients_in_float64_are_finite_differences() -> None:
    pairs = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: logit_of_product(x[:, 0], x[:, 1]), pairs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reference", [0, 3])
def test_scored_candidates_are_all_at_the_reference(method: str, reference: int) -> None:
    model = with_effects(method, f"position.reference={reference}")
    here = like(model.train(), at(reference))
    found = like(model.eval())
    torch.testing.assert_close(found, here)
    assert torch.equal(found, like(model, at(NAN)))
    assert torch.equal(found, like(model, replace(BATCH, context=torch.zeros(BATCH.num_candidates, 0))))
    assert not torch.allclose(found, like(model.train(), at(1)))


@pytest.mark.parametrize("method", METHODS)
def test_a_split_is_scored_at_the_reference_in_the_midst_of_a_training(method: str) -> None:
    run = make_run(*COLUMNS, f"position.method={method}", "position.reference=2")
    engine, kinds = make_engine(run, manifest=manifest()), make_objective(run, manifest()).kinds
    engine.model.train()
    table = (engine.model.side.parts[-1] if method == "feature" else engine.model.position).table
    torch.nn.init.normal_(table.weight)
    here, there = (score(engine, [Step(0, [batch])], kinds) for batch in (BATCH, at(2)))
    assert here is not None
    assert there is not None
    assert (here.scores["like"] == there.scores["like"]).all()


def test_places_beyond_the_last_share_its_effect_and_unknown_ones_have_their_own() -> None:
    model = with_effects("additive").train()
    assert torch.equal(like(model, at(LAST + 7)), like(model, at(LAST)))
    assert not torch.equal(like(model, at(NAN)), like(model, at(0)))
    assert model.position.table.weight.shape == (LAST + 2, 1)


def test_additive_starts_as_the_model_without_it_and_pal_near_the_base_rate() -> None:
    assert torch.equal(like(build("position.method=additive").train()), like(build().train()))
    pal = torch.sigmoid(like(build("position.method=pal").train()))
    assert pal.mean().item() == pytest.approx(0.3 * 0.88, abs=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_weights_of_all_else_do_not_depend_on_it_but_for_the_feature(method: str) -> None:
    plain, other = build().state_dict(), build(f"position.method={method}").state_dict()
    same = all(torch.equal(other[name], value) for name, value in plain.items() if value.shape == other[name].shape)
    assert same == (method != "feature")


def test_only_the_logits_of_labels_0_and_1_are_changed() -> None:
    plain, model = build().train()(BATCH, KEY)[0], with_effects("pal").train()(BATCH, KEY)[0]
    changed = [name for name in plain if not torch.equal(plain[name], model[name])]
    assert changed == ["like"]


BUY = TASKS[0].model_copy(
    update={"name": "buy", "kind": "conversion", "mean": 0.1, "parent": "like", "parent_mean": 0.3}
)


def two_binary(*overrides: str) -> Recommender:
    run = make_run(*COLUMNS, *STILL, "tasks.buy={label: buy, kind: conversion, parent: like}", *overrides)
    tasks = [*make_manifest().tasks[:1], BUY]
    run = run.model_copy(update={"tasks": {name: run.tasks[name] for name in ("like", "buy")}})
    return Recommender(None, manifest(tasks=tasks), run)


def test_position_tasks_chooses_whose_logits_are_changed() -> None:
    plain = two_binary().train()(BATCH, KEY)[0]
    for chosen in (["like"], ["buy"], ["like", "buy"]):
        model = two_binary("position.method=additive", f"position.tasks=[{', '.join(chosen)}]").train()
        torch.nn.init.normal_(model.position.table.weight)
        (found,) = model(BATCH, KEY)
        assert [name for name in plain if not torch.equal(plain[name], found[name])] == chosen


class Copies:
    """A balance point that only tells the tasks' z apart."""

    trains_below = True

    def split(self, z: Tensor, tasks: int) -> tuple[Tensor, ...]:
        return tuple(z.clone() for _ in range(tasks))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_each_copy_at_a_balance_point_has_the_logits_of_the_one_model(method: str, training: bool) -> None:
    model = two_binary(f"position.method={method}").train(training)
    torch.nn.init.normal_((model.side.parts[-1] if method == "feature" else model.position).table.weight)
    (together,) = model(BATCH, KEY)
    apart = model(BATCH, KEY, Copies())
    assert [list(view) for view in apart] == [["like"], ["buy", "like"]]
    assert all(torch.equal(view[name], together[name]) for view in apart for name in view)


@pytest.mark.parametrize("method", METHODS)
def test_dropped_places_are_unknown_and_follow_the_row_and_the_key(method: str) -> None:
    model = with_effects(method, "position.dropout=0.4").train()
    many = with_context(make_batch([make_request(n) for n in range(200)]))
    places = model.side.parts[-1].places if method == "feature" else model.position.places

    def read(batch: Batch, key: DropoutKey) -> Tensor:
        with model.context.use(key, feature_uids(batch.row_ids)):
            return places(batch)

    known = ~many.context[:, 0].isnan()
    found = read(many, KEY)
    assert (found[known] == 0).float().mean().item() == pytest.approx(0.4, abs=0.06)
    assert torch.equal(read(many, KEY), found)
    assert not torch.equal(read(many, DropoutKey(0, 4)), found)
    part = with_context(make_batch([make_request(n) for n in range(100, 200)]))
    own = many.row_ids >= part.row_ids.min()
    part = replace(part, context=many.context[own])
    assert torch.equal(read(part, KEY), found[own])
    with pytest.raises(ValueError, match="DropoutKey"):
        places(many)
    assert (places.eval()(many) == 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_its_weights_are_in_the_group_of_tables(method: str) -> None:
    model = build(f"position.method={method}")
    table = (model.side.parts[-1] if method == "feature" else model.position).table.weight
    groups = model.parameter_groups()
    assert [name for name, group in groups.items() if any(weight is table for weight in group.values())] == ["tables"]


@pytest.mark.parametrize("method", METHODS)
def test_without_candidates_every_parameter_gets_a_gradient_of_zero(method: str) -> None:
    model = build(f"position.method={method}").train()
    empty = with_context(make_batch([]))
    (logits,) = model(empty, KEY)
    torch.cat([own.flatten() for own in logits.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())


# Inverse propensity: label weights.

CHANCES = torch.tensor([0.5, 0.01, NAN, 1.0])


def weighted(*overrides: str) -> tuple[Any, Batch]:
    size = BATCH.num_candidates
    batch = with_context(BATCH, propensity=CHANCES.repeat(size)[:size])
    return make_objective(make_run(*COLUMNS, *overrides), manifest()), batch


def test_labels_count_the_inverse_of_their_propensity_up_to_the_clip() -> None:
    on, batch = weighted("position.inverse_propensity=true", "position.clip=8")
    off, _ = weighted()
    logits = [{k.task.name: torch.randn(batch.num_candidates, k.outputs) for k in on.kinds}]
    factors = torch.tensor([2.0, 8.0, 1.0, 1.0]).repeat(batch.num_candidates)[: batch.num_candidates]
    torch.testing.assert_close(on.row_losses(logits, batch, 0), factors * off.row_losses(logits, batch, 0))
    torch.testing.assert_close(on.loss_sums(logits, batch)[0], on.row_losses(logits, batch, 0).sum())
    observed = ~batch.labels[:, 0].isnan()
    assert on.counts(batch)[0].item() == pytest.approx(factors[observed].sum().item())
    assert on.counts(batch)[1:].tolist() == off.counts(batch)[1:].tolist()  # labels that are not 0 or 1
    assert (batch.label_weights == 1).all()  # the batch itself is as it was


def test_inverse_propensities_multiply_the_weights_that_labels_have() -> None:
    on, batch = weighted("position.inverse_propensity=true")
    double = replace(batch, label_weights=batch.label_weights * 2)
    assert on.counts(double)[0].item() == pytest.approx(2 * on.counts(batch)[0].item())


def test_position_tasks_chooses_whose_labels_are_weighted() -> None:
    run = make_run(*COLUMNS, "tasks.buy={label: buy}", "position.inverse_propensity=true", "position.tasks=[buy]")
    run = run.model_copy(update={"tasks": {name: run.tasks[name] for name in ("like", "buy")}})
    tasks = [*make_manifest().tasks[:1], BUY.model_copy(update={"kind": "binary", "parent": None})]
    objective = make_objective(run, manifest(tasks=tasks))
    assert objective.inverse_propensity.tasks == [1]


# Refusals.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["position.method=pal"], r"position.method: pal needs data.columns.position, which is not set"),
        (["position.inverse_propensity=true"], r"position.inverse_propensity needs data.columns.propensity"),
        (
            [COLUMNS[0], "position.method=pal", "data.numbers=[place]"],
            r"position.method: pal scores all .* by column 'place'\. Remove it from data\.numbers",
        ),
        ([COLUMNS[0], "position.method=feature", "data.categories=[place]"], r"Remove it from data\.categories"),
        ([COLUMNS[0], "position.method=pal", "position.tasks=[lik]"], r"'lik' .*no such task.*Did you mean 'like'"),
        (
            [COLUMNS[0], "position.method=pal", "position.tasks=[stars]"],
            r"'stars' .*kind 'regression' has other labels",
        ),
        (
            [COLUMNS[0], "position.method=pal", "tasks={stars: {label: stars, kind: regression}}"],
            "position: no task has labels 0 and 1",
        ),
    ],
)
def test_what_the_config_lacks_is_refused(overrides: list[str], message: str) -> None:
    text = CONFIG
    if overrides[-1].startswith("tasks="):
        text = "\n".join(line for line in CONFIG.splitlines() if not line.startswith("tasks"))
        text, overrides = text + "\ntasks: {stars: {label: stars, kind: regression}}\n", overrides[:-1]
    with pytest.raises(ConfigError, match=message):
        check_position(parse(text, overrides))
    check_position(make_run(*COLUMNS, "position.method=pal", "position.inverse_propensity=true"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["position.tasks=[like]"], "tasks belongs to the methods additive and pal and to inverse_propensity"),
        (["position.method=feature", "position.tasks=[like]"], "and method is feature"),
        (["position.method=pale"], "position.method"),
        (["position.clip=1"], "greater than 1"),
        (["position.reference=-1"], "greater than or equal to 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_run(*overrides)


def test_a_search_may_leave_settings_idle() -> None:
    run = make_run(*COLUMNS, "position.method=pal", "position.tasks=[like]")
    assert applied(run, {"position.method": "none"}).position.method == "none"


def test_what_the_data_lack_is_refused() -> None:
    pal = make_run(*COLUMNS, "position.method=pal")
    with pytest.raises(
        DataError, match=r"position\.method: pal: column 'place' \(data.columns.position\) is empty in all"
    ):
        check_known_positions(pal, manifest(positions=[]))
    with pytest.raises(
        ConfigError, match=r"position\.reference: 0 is no position of train rows, which are 1 to 20.*to 1"
    ):
        check_known_positions(pal, manifest(positions=[1, 20]))
    weighted = make_run(*COLUMNS, "position.inverse_propensity=true")
    with pytest.raises(DataError, match=r"position\.inverse_propensity: column 'chance' .* is empty in all train rows"):
        check_known_positions(weighted, manifest(propensities=0))
    for run in (pal, weighted, make_run()):
        check_known_positions(run, manifest())
    check_known_positions(make_run(), make_manifest())


def test_a_feature_of_no_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"position.method: feature reads the place as a category"):
        build("position.method=feature", "features.category_dim=0")
