"""Weights of one model for another one, by what their entries stand for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtrec_ray.engine.base import learnable
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.train.carrying import Carried, Carrying, told
from tests.model.towers.architectures import NAMES
from tests.worlds import LATER, World

NOW = World()
SETTINGS = ("features.history_dim=4", "features.id_dropout=0")
ROWS = range(40)


def model_of(world: World, *overrides: str, moved: float = 0.0) -> Recommender:
    """In evaluation mode; `moved`: how far its weights are from those of a fresh model, as if it had been trained."""
    run = world.run(*SETTINGS, *overrides)
    model = Recommender(None, world.manifest(), run).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, value in learnable(model):
            value.add_(torch.randn(value.shape, generator=generator) * moved)
    return model


def weights(model: Recommender) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learnable(model)}


def carrying(folder: Path, old: World, before: Recommender, new: World, now: Recommender) -> Carrying:
    return Carrying(old.named(folder / "old", before), new.named(folder / "new", now), "here")


def put(model: Recommender, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in learnable(model):
            value.copy_(values[name])


@pytest.mark.parametrize("kind", NAMES)
def test_where_all_has_moved_and_a_task_came_the_same_candidate_has_the_same_logits(tmp_path: Path, kind: str) -> None:
    # A new task's column takes part in what these architectures mix, so there it changes the others' logits.
    later = replace(LATER, tasks=("kind", "like", "stars")) if kind in ("cross_stitch", "ple") else LATER
    before, now = (model_of(world, f"towers.kind={kind}", moved=moved) for world, moved in ((NOW, 0.3), (later, 0.0)))
    [fresh] = now(later.batch(ROWS))
    put(now, carrying(tmp_path, NOW, before, later, now).carry(weights(before), weights(now)))
    [expected], [found] = before(NOW.batch(ROWS)), now(later.batch(ROWS))
    for task in NOW.tasks:
        assert torch.allclose(found[task], expected[task], rtol=1e-4, atol=1e-5), task
        assert not torch.allclose(found[task], fresh[task], rtol=1e-2), task


def test_rows_go_by_their_names_and_new_ones_are_those_of_a_fresh_table(tmp_path: Path) -> None:
    before, now = model_of(NOW, moved=0.3), model_of(LATER, "seed=3")
    fresh = weights(now)
    carried = carrying(tmp_path, NOW, before, LATER, now).carry(weights(before), fresh)
    old, new = (model.side.parts[0].table.weight for model in (before, now))
    table = carried["side.parts.0.table.weight"]
    assert torch.equal(table[0], old[0]), "that of the unknown"
    for row, key in enumerate(LATER.users, start=1):
        expected = old[NOW.users.index(key) + 1] if key in NOW.users else new[row]
        assert torch.equal(table[row], expected), key
    # The grown table of items is in the side features and in the history's attention; categories have changed places.
    assert torch.equal(carried["side.parts.5.items.weight"][len(LATER.items)], before.side.parts[5].items.weight[1])
    assert torch.equal(carried["side.parts.2.table.weight"][1], before.side.parts[3].table.weight[3]), "h3"
    assert torch.equal(carried["side.parts.3.table.weight"][1], fresh["side.parts.3.table.weight"][1]), "g5"


def test_what_is_told_adds_up(tmp_path: Path) -> None:
    old, new = World(users=("u1", "u2", "gone"), tasks=("like", "stars")), LATER
    before, now = model_of(old), model_of(new)
    parts = carrying(tmp_path, old, before, new, now).parts()
    by_part = {(part.part, part.unit): part for part in parts}
    assert by_part["ids.user", "rows"] == Carried("ids.user", "rows", 3, 8, 1)
    assert by_part["category.h", "rows"] == Carried("category.h", "rows", 4, 0, 0)
    assert by_part["category.g", "rows"] == Carried("category.g", "rows", 5, 1, 0)
    assert by_part["tower of buy", "numbers"].carried == by_part["tower of kind", "numbers"].carried == 0
    assert by_part["tower of like", "numbers"].fresh == by_part["tower of like", "numbers"].left == 0
    # In the values of the attention each task has two columns of features.history_dim numbers.
    assert by_part["history", "numbers"].fresh == 2 * 2 * 4
    for model, one in ((now, "fresh"), (before, "left")):
        numbers = sum(v.numel() for name, v in weights(model).items() if "table" not in name and "items" not in name)
        assert sum(p.carried + getattr(p, one) for p in parts if p.unit == "numbers") == numbers
    text = told("runs/x", 7, [by_part["ids.user", "rows"], by_part["tower of like", "numbers"]])
    assert text.startswith(
        "starts from runs/x, step 7, with a fresh optimizer; carried over: ids.user (3 rows), tower "
    )
    assert text.endswith("began fresh: ids.user (8 rows); left: ids.user (1 rows)")


def test_a_new_number_begins_fresh_and_leaves_the_columns_of_others_in_their_places(tmp_path: Path) -> None:
    new = World(numbers=("d", "a", "b", "c"))
    before, now = model_of(NOW, moved=0.3), model_of(new)
    carried = carrying(tmp_path, NOW, before, new, now).carry(weights(before), fresh := weights(now))
    first, old = carried["side.network.0.weight"], before.side.network[0].weight
    numbers = 4 + 4 + 3 + 3  # columns of the ids and categories before them
    assert torch.equal(first[:, :numbers], old[:, :numbers])
    assert torch.equal(first[:, numbers], fresh["side.network.0.weight"][:, numbers]), "the new one's value"
    assert torch.equal(first[:, numbers + 1 : numbers + 4], old[:, numbers : numbers + 3])
    assert torch.equal(carried["side.parts.4.learned.weight"][1:], before.side.parts[4].learned.weight)


def test_a_number_cut_into_other_bins_learns_them_anew(tmp_path: Path) -> None:
    before, now = model_of(NOW, moved=0.3), model_of(NOW)
    numbers = NOW.manifest().numbers
    fewer = NOW.manifest().model_copy(
        update={"numbers": [numbers[0].model_copy(update={"quantiles": [0.0, 1.0]}), *numbers[1:]]}
    )
    now = Recommender(None, fewer, NOW.run(*SETTINGS)).eval()
    carried = carrying(tmp_path, NOW, before, NOW, now).carry(weights(before), fresh := weights(now))
    name = "side.parts.4.learned.weight"  # [numbers, bins, dim]: of 4 and 2 bins before, of 1 and 2 now
    assert torch.equal(carried[name][0], fresh[name][0])
    assert torch.equal(carried[name][1], before.side.parts[4].learned.weight[1, :2])


@pytest.mark.parametrize("method", ["additive", "feature"])
def test_places_keep_their_effects(tmp_path: Path, method: str) -> None:
    def model(last: int, tasks: str, moved: float) -> tuple[World, Recommender]:
        world = World(tasks=tuple(tasks.split()))
        run = world.run(f"position.method={method}")
        manifest = world.manifest().model_copy(update={"context": ["position"], "positions": [0, last]})
        found = Recommender(None, manifest, run)
        with torch.no_grad():
            for _, value in learnable(found):
                value.add_(moved * torch.arange(value.numel()).view(value.shape))
        return world, found

    (old, before), (new, now) = model(2, "like", 1.0), model(4, "buy like", 0.0)
    carried = carrying(tmp_path, old, before, new, now).carry(weights(before), fresh := weights(now))
    name = "position.table.weight" if method == "additive" else "side.parts.5.table.weight"
    column = slice(1, 2) if method == "additive" else slice(None)
    assert torch.equal(carried[name][:4, column], weights(before)[name])
    assert torch.equal(carried[name][4:], fresh[name][4:])


def test_a_size_that_differs_without_names_is_refused(tmp_path: Path) -> None:
    before, now = model_of(NOW), model_of(NOW, "features.item_dim=7")
    with pytest.raises(ConfigError, match=r"here: ids.item has weights side.parts.1.table.weight of shape \[13, 7\]"):
        carrying(tmp_path, NOW, before, NOW, now)


def test_hashed_tables_go_row_by_row(tmp_path: Path) -> None:
    hashed = ("features.ids=hashed", "features.user_rows=20", "features.item_rows=30")
    before, now = (model_of(world, *hashed, moved=moved) for world, moved in ((NOW, 0.3), (LATER, 0.0)))
    carried = carrying(tmp_path, NOW, before, LATER, now).carry(weights(before), weights(now))
    assert torch.equal(carried["side.parts.0.table.weight"], before.side.parts[0].table.weight)
