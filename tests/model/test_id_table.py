"""Vectors of ids by hashes, where there is no list of ids."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.id_hashes import hashed_rows
from mtrec_ray.data.requests.ids import hash_ids
from mtrec_ray.model.dropout import DropoutKey, feature_uids
from mtrec_ray.model.features import IdTable
from mtrec_ray.model.id_table import ExactTable, HashedTable, id_table, ids_of
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.row_table import row_tables
from mtrec_ray.train.ranks import told_apart
from tests.batches import ITEMS, USERS, Step, make_batch, make_manifest, make_request, make_run, make_steps
from tests.matching import catalogue, matching_model, matching_run
from tests.training import distance, make_engine, make_objective, take_steps

HASHED = "features={ids: hashed, user_rows: 50, item_rows: 30, hashes: 3, user_dim: 4, item_dim: 4, history_dim: 4}"


def with_hashes(batch: Batch) -> Batch:
    """Every index stands for an id of that name."""
    users, items, events = (
        torch.from_numpy(hash_ids([str(i) for i in index.tolist()], of))
        for index, of in ((batch.user_index, "user"), (batch.item_index, "item"), (batch.event_item, "item"))
    )
    return replace(batch, user_hash=users, item_hash=items, event_hash=events)


def hashed_steps(count: int, **parts: int) -> list[Step]:
    steps = make_steps(count, **parts)
    return [Step(step.plan, [with_hashes(batch) for batch in step.batches]) for step in steps]


def test_a_vector_is_the_sum_of_its_rows() -> None:
    table = HashedTable("a", 50, 4, 0.05, 3)
    ids = torch.from_numpy(hash_ids([f"u{i}" for i in range(20)], "user"))
    rows = hashed_rows(ids, 50, 3)
    expected = torch.stack([sum(table.weight[row] for row in of) for of in rows.tolist()])
    torch.testing.assert_close(table(ids).detach(), expected)
    assert float(HashedTable("a", 5000, 8, 0.05, 3)(torch.arange(5000)).detach().std()) == pytest.approx(0.05, rel=0.03)


def test_a_dropped_id_has_zeros_and_changes_no_row() -> None:
    table = HashedTable("a", 50, 4, 0.05, 2)
    ids, dropped = torch.tensor([3, 4, 5]), torch.tensor([False, True, False])
    found = table.known(ids, dropped)
    assert torch.equal(found[[0, 2]], table(ids)[[0, 2]])
    assert not found[1].any()
    table.take_gradients()
    table.known(ids, dropped).sum().backward()
    rows, gradients = table.take_gradients()
    touched = set(rows[gradients.any(dim=1)].tolist())
    assert touched == set(table.rows_of(ids[[0, 2]]).flatten().tolist())


def test_what_is_read_is_as_the_config_has_it() -> None:
    exact, hashed = (
        make_run(HASHED.replace("hashed", "exact").replace(", user_rows: 50, item_rows: 30, hashes: 3", "")),
        make_run(HASHED),
    )
    batch = with_hashes(make_batch([make_request(n) for n in range(4)]))
    for run, of, shape in (
        (exact, "user", (USERS, 4)),
        (exact, "item", (ITEMS, 4)),
        (hashed, "user", (50, 4)),
        (hashed, "item", (30, 4)),
    ):
        table = id_table("a", of, USERS if of == "user" else ITEMS, 4, 0.05, run.features)
        assert tuple(table.weight.shape) == shape
        assert isinstance(table, ExactTable if run is exact else HashedTable)
        ids = {"user": (batch.user_index, batch.user_hash), "item": (batch.item_index, batch.item_hash)}[of]
        assert torch.equal(ids_of(batch, of, table), ids[run is hashed])
    assert torch.equal(ids_of(batch, "event", table), batch.event_hash)


def test_ids_that_differ_in_hashes_alone_have_vectors_of_their_own() -> None:
    """Also those that the vocabulary does not know, whose index is 0."""
    model = Recommender(None, make_manifest(), make_run(HASHED)).eval()
    batch = with_hashes(make_batch([make_request(n) for n in range(4)]))
    unknown = replace(
        batch, **{name: torch.zeros_like(getattr(batch, name)) for name in ("user_index", "item_index", "event_item")}
    )
    assert torch.equal(logits(model, unknown), logits(model, batch))
    for name in ("user_hash", "item_hash", "event_hash"):
        assert not torch.equal(logits(model, replace(batch, **{name: getattr(batch, name) + 1})), logits(model, batch))


def logits(model: Recommender, batch: Batch) -> Tensor:
    (found,) = model(batch)
    return torch.cat(list(found.values()), dim=1)


def test_items_of_a_catalogue_are_told_apart_by_their_rows() -> None:
    """Those without a row of the vocabulary too, which exact tables cannot."""
    found = {}
    for ids in ("{ids: hashed, item_rows: 5}", "{ids: exact}"):
        model = matching_model(matching_run(f"features={ids}"), False).eval()
        assert model.matcher is not None
        items = model.matcher.pair_of("next").items
        numbers, vectors = items.told_apart(), items.table.known(items.item_ids, None).detach()
        alike = (numbers[:, None] == numbers[None]).all(axis=2)
        assert alike.tolist() == [[torch.equal(a, b) for b in vectors] for a in vectors]
        first, which = told_apart(catalogue(), numbers)
        assert all(alike[i, first[which[i]]] for i in range(len(numbers)))
        found[ids] = int((catalogue().index[first] == 0).sum())
    hashed, exact = found.values()
    assert hashed > exact


def test_id_dropout_leaves_out_the_vector() -> None:
    run = make_run(HASHED, "features.id_dropout=0.5")
    model = Recommender(None, make_manifest(), run).train()
    part = model.side.parts[0]
    assert isinstance(part, IdTable)
    batch = with_hashes(make_batch([make_request(n) for n in range(200)]))
    with model.context.use(DropoutKey(0, 1), feature_uids(batch.row_ids)):
        found = part(batch)
    kept = found.any(dim=1)
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.06)
    assert torch.equal(found[kept], part.eval()(batch)[kept])


def test_training_moves_the_rows_that_were_read_and_no_others() -> None:
    run = make_run(HASHED, "train.weight_decay={adapters: 0, towers: 0, tables: 0.3}", "features.id_dropout=0")
    engine = make_engine(run)
    before = engine.parameters()
    steps = hashed_steps(2, requests=1)
    take_steps(engine, steps, make_objective(run))
    after = engine.parameters()
    table = row_tables(engine.model)["side.parts.0.table.weight"]
    read = torch.zeros(len(table.weight), dtype=torch.bool)
    for step in steps:
        read[table.rows_of(step.batches[0].user_hash).flatten()] = True
    moved = (after["side.parts.0.table.weight"] != before["side.parts.0.table.weight"]).any(dim=1)
    assert 0 < int(moved.sum()) < len(moved)
    assert not (moved & ~read).any()


def test_micro_steps_do_not_change_a_step() -> None:
    run = make_run(HASHED)
    whole, parts = (make_engine(run) for _ in range(2))
    take_steps(whole, hashed_steps(3), make_objective(run))
    take_steps(parts, hashed_steps(3, micro_steps=4), make_objective(run))
    assert distance(parts.parameters(), whole.parameters()) < 1e-4
