"""Vectors of users and items, and the logits made of them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.engine.tables import TableSteps
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.matching import VectorPair
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.row_table import row_tables
from mtrec_ray.multitask.losses import make_objective
from tests.batches import ITEMS, make_request
from tests.matching import (
    COLD,
    TASKS,
    catalogue,
    manifest,
    matching_batch,
    matching_model,
    matching_run,
    matching_steps,
)
from tests.training import CPU, distance

KEY = DropoutKey(0, 5)
REQUESTS = [make_request(n) for n in range(6)]
TEXT = "backbone=nano"


def model_of(
    *overrides: str, only: bool = False, train: bool = False, vectors: bool = False
) -> tuple[Recommender, Run]:
    """Every weight of the matcher is random, for zeros would hide mistakes."""
    run = matching_run(*overrides, only=only)
    model = matching_model(run, run.backbone.name != "none", vectors=vectors).train(train)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        assert model.matcher is not None
        for weight in (*model.matcher.parameters(), *(table.weight for table in row_tables(model.matcher).values())):
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model, run


def pair(model: Recommender, task: str = "next") -> VectorPair:
    assert model.matcher is not None
    return model.matcher.pair_of(task)


def users(model: Recommender, batch: Batch, task: str = "next") -> Tensor:
    model.eval()(batch)
    user = pair(model, task).user
    assert user is not None
    return user


def gradients(model: Recommender, run: Run, batches: list[Batch], key: DropoutKey = KEY) -> dict[str, Tensor]:
    objective = make_objective(run, manifest([task for task in TASKS if task.name in run.tasks]))
    model.zero_grad()
    tables = TableSteps(model, run, CPU, gradient_scale=1.0)
    for batch in batches:
        objective.loss_sums(model(batch, key), batch).sum().backward()
        tables.collect()
    tables.exchange()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None} | tables.gradients()


@pytest.mark.parametrize("backbone", ["backbone=none", TEXT])
def test_a_users_vector_is_of_the_history_alone(backbone: str) -> None:
    model, _ = model_of(backbone)
    batch = matching_batch(REQUESTS, tokens=backbone == TEXT)
    before = users(model, batch)
    other_items: dict[str, Any] = {
        "item_index": (batch.item_index + 1) % ITEMS,
        "catalogue": (batch.catalogue + 1) % ITEMS,
        "categories": batch.categories.flip(0),
        "numbers": batch.numbers + 1,
        "labels": 1 - batch.labels,
    }
    ids = batch.ids.clone()
    if backbone == TEXT:
        own = torch.cat(
            [
                torch.arange(a, a + n)
                for a, n in zip(batch.layout.candidate_start, batch.layout.candidate_length, strict=True)
            ]
        )
        ids[own] = (ids[own] + 7) % 60
    assert torch.equal(users(model, replace(batch, ids=ids, **other_items)), before)
    seen = batch.candidate_event_end > batch.candidate_event_start
    changed = users(model, replace(batch, event_catalogue=(batch.event_catalogue + 1) % ITEMS))
    assert ((changed - before).abs().amax(1) > 1e-5).tolist() == seen.tolist()


def test_candidates_of_one_history_end_have_one_vector_and_an_empty_history_has_one() -> None:
    """But for their times, which the age of an event is counted from."""
    model, _ = model_of(TEXT)
    batch = matching_batch(REQUESTS, tokens=True)
    batch = replace(batch, times=torch.full_like(batch.times, 2_000_000_000))
    found = users(model, batch)
    empty = batch.candidate_event_end == batch.candidate_event_start
    assert int(empty.sum()) > 1
    assert (found[empty] - found[empty][0]).abs().max() < 1e-6
    ends = torch.stack([batch.request, batch.candidate_event_end], 1)
    same = (ends[1:] == ends[:-1]).all(1)
    assert same.any()
    assert (found[1:] - found[:-1]).abs().amax(1)[same].max() < 1e-5


@torch.no_grad()
def test_recent_events_and_those_that_feedback_speaks_for_count_more() -> None:
    """A mean by hand of the visible events' item vectors."""
    model, _ = model_of("matching.similarity=dot")
    tower, batch = pair(model).users, matching_batch(REQUESTS)
    vectors = torch.randn(len(batch.event_item), 64, generator=torch.Generator().manual_seed(0))
    found = tower(batch, None, vectors)
    a, b = torch.nn.functional.softplus(tower.slopes)
    for c in range(batch.num_candidates):
        first, end = int(batch.candidate_event_start[c]), int(batch.candidate_event_end[c])
        weights, total = [math.exp(float(tower.null_score))], tower.null_event * math.exp(float(tower.null_score))
        for e in range(first, end):
            age = float(batch.times[c] - batch.event_time[e]) / 1e6
            observed = ~torch.isnan(batch.event_feedback[e])
            value = torch.where(observed, (batch.event_feedback[e] - tower.mean) / tower.std, 0.0)
            feedback = float(tower.feedback(torch.cat([value, observed.float()])))
            weights.append(math.exp(feedback - float(a) * math.log1p(age) - float(b) * math.log1p(end - 1 - e)))
            total = total + weights[-1] * vectors[e]
        assert torch.allclose(found[c], tower.out(total / sum(weights)), atol=1e-5)


def test_items_that_train_does_not_know_have_the_vector_of_their_categories_and_text() -> None:
    model, _ = model_of(TEXT)
    read: Any = model.backbone
    items, embed = pair(model).items, read.embed
    vectors = items(torch.arange(ITEMS + COLD), embed)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(ITEMS + COLD))
    cold = vectors[ITEMS:]
    assert torch.equal(cold[-1], cold[-2]), "the same text and categories"
    assert (cold[0] - cold[1]).norm() > 0.1, "different ones"
    # an item known to train, but for its id
    known = catalogue()
    row = int(known.text.lengths[1:ITEMS].argmax()) + 1
    ids = torch.from_numpy(known.text.values[known.text.offsets[row] : known.text.offsets[row + 1]].astype("int64"))
    genre = [value for value in known.categories[row].tolist() if value >= 0]
    table: Any = items.tables[0]
    expected = items.table.weight[row] + items.text(embed(ids).mean(0))
    expected = expected + (table.table.weight[genre].mean(0) if genre else 0)
    assert torch.allclose(vectors[row], torch.nn.functional.normalize(expected, dim=0), atol=1e-6)


def test_without_text_and_categories_cold_items_share_the_vector_of_the_unknown_one() -> None:
    model, _ = model_of()
    items = pair(model).items
    for table in items.tables:
        table.table.weight.data.zero_()  # type: ignore[union-attr,operator]
    vectors = items(torch.tensor([0, ITEMS, ITEMS + 1, 3]), None)
    assert torch.equal(vectors[1], vectors[0])
    assert torch.equal(vectors[2], vectors[0])
    assert not torch.equal(vectors[3], vectors[0])


def test_the_unknown_row_is_trained_by_id_dropout() -> None:
    trained = []
    for share in (0.0, 0.5):
        model, run = model_of(f"features.id_dropout={share}", only=True, train=True)
        batch = matching_batch(REQUESTS, only=True)
        batch = replace(
            batch, catalogue=batch.catalogue.clamp(min=1), event_catalogue=batch.event_catalogue.clamp(min=1)
        )
        batch.labels.fill_(1.0)
        trained.append(float(gradients(model, run, [batch])["matcher.pairs.0.items.table.weight"][0].norm()))
    assert trained[1] > trained[0] == 0


def test_logits_are_cosines_with_a_scale_or_plain_products() -> None:
    for similarity in ("cosine", "dot"):
        model, _ = model_of(f"matching.similarity={similarity}")
        assert model.matcher is not None
        matcher, batch = model.matcher, matching_batch(REQUESTS)
        (logits,) = model.eval()(batch)
        products = {}
        for task in ("next", "interest"):
            user = users(model, batch, task)
            products[task] = (user * pair(model, task).items(batch.catalogue, None)).sum(1)
        if similarity == "cosine":
            assert users(model, batch).norm(dim=1).detach().numpy() == pytest.approx(1.0, abs=1e-5)
            assert matcher.log_scale is not None
            scales = matcher.log_scale.exp()
        else:
            assert matcher.log_scale is None
            scales = torch.ones(2)
        assert matcher.bias is not None
        assert torch.allclose(logits["next"][:, 0], products["next"] * scales[0], atol=1e-5)
        assert torch.allclose(logits["interest"][:, 0], products["interest"] * scales[1] + matcher.bias[0], atol=1e-5)
        assert logits["next"].shape == (batch.num_candidates, 1)


@torch.no_grad()
def test_negatives_are_corrected_and_the_items_that_do_not_count_are_left_out() -> None:
    power, count = 0.5, 40
    for excludes in (False, True):
        params = f"{{negatives: {count}, power: {power}, exclude_seen: {excludes}}}"
        model, _ = model_of(f"tasks.next.params={params}", "features.id_dropout=0", train=True)
        assert model.matcher is not None
        batch = matching_batch(REQUESTS)
        times = torch.tensor(catalogue().first_seen[:ITEMS]).median() + batch.row_ids % 7
        batch = replace(batch, times=times)
        (logits,) = model(batch, KEY)
        rows, log_q = model.matcher._samplers["next"].draw(count, KEY.salt("negatives.next"))
        user = users(model, batch)
        vectors = pair(model).items(torch.from_numpy(rows), None)
        assert model.matcher.log_scale is not None
        scores = user @ vectors.T * model.matcher.log_scale[0].exp()
        counts = catalogue().shown[rows] ** power
        q = counts / (catalogue().shown[catalogue().shown > 0] ** power).sum()
        assert torch.from_numpy(q).log().numpy() == pytest.approx(log_q)
        expected = scores - torch.from_numpy(q * count).log()
        left_out, unborn = 0, 0
        for c in range(batch.num_candidates):
            seen = batch.event_catalogue[batch.candidate_event_start[c] : batch.candidate_event_end[c]].tolist()
            out = {int(batch.catalogue[c]), *(seen if excludes else [])}
            for m, row in enumerate(rows.tolist()):
                later = bool(catalogue().first_seen[row] > batch.times[c])
                unborn += later
                if row in out or later:
                    assert logits["next"][c, 1 + m] < -1e29
                    left_out += 1
                else:
                    assert float(logits["next"][c, 1 + m]) == pytest.approx(float(expected[c, m]), abs=1e-3)
        assert left_out - unborn > batch.num_candidates / 2
        assert 0 < unborn < batch.num_candidates * count


@torch.no_grad()
def test_tasks_share_their_vectors_only_if_told_to() -> None:
    apart, together = (model_of(f"matching.shared={shared}")[0] for shared in (False, True))
    batch = matching_batch(REQUESTS)
    assert pair(apart, "next") is not pair(apart, "interest")
    assert (users(apart, batch, "next") - users(apart, batch, "interest")).abs().max() > 0.1
    assert pair(together, "next") is pair(together, "interest")
    assert together.matcher is not None
    assert len(together.matcher.pairs) == 1
    with pytest.raises(KeyError):
        together.matcher.pair_of("like")


def test_a_task_trains_the_vectors_of_another_only_where_they_are_shared() -> None:
    for shared in (False, True):
        model, run = model_of(f"matching.shared={shared}", train=True)
        batch = matching_batch(REQUESTS)
        make_objective(run, manifest()).loss_sums(model(batch, KEY), batch)[1].backward()
        of_interest = [p for p in pair(model, "interest").parameters() if p.grad is not None and p.grad.norm() > 0]
        assert bool(of_interest) == shared


def losses_of(model: Recommender, run: Run, batches: list[Batch], key: DropoutKey = KEY) -> dict[int, float]:
    objective = make_objective(run, manifest())
    found: dict[int, float] = {}
    for batch in batches:
        rows = sum(objective.row_losses(model(batch, key), batch, t) for t in (1, 2))
        assert isinstance(rows, Tensor)
        found |= dict(zip(batch.row_ids.tolist(), rows.tolist(), strict=True))
    return found


@pytest.mark.parametrize(("backbone", "vectors"), [("backbone=none", False), (TEXT, False), ("backbone=none", True)])
def test_a_rows_loss_does_not_depend_on_how_the_step_is_cut_and_negatives_are_those_of_the_step(
    backbone: str, vectors: bool
) -> None:
    tokens = backbone == TEXT
    model, run = model_of(backbone, "adapter.dropout=0.2", train=True, vectors=vectors)
    whole, parts = (matching_steps(1, micro_steps=n, tokens=tokens, vectors=vectors)[0].batches for n in (1, 4))
    parts.append(matching_batch([], tokens=tokens, vectors=vectors))
    together, apart = losses_of(model, run, whole), losses_of(model, run, parts)
    assert together.keys() == apart.keys()
    assert [apart[row] for row in together] == pytest.approx(list(together.values()), abs=2e-5)
    assert distance(gradients(model, run, parts), gradients(model, run, whole)) < 1e-5
    assert losses_of(model, run, whole) == together
    assert losses_of(model, run, whole, DropoutKey(0, 6)) != together
    assert losses_of(model, run, whole, DropoutKey(1, 5)) != together


def test_packed_equals_separate() -> None:
    found = []
    for packing in ("packed", "separate"):
        model, run = model_of(TEXT, train=True)
        backbone: Any = model.backbone
        backbone.mode = packing
        found.append(gradients(model, run, [matching_batch(REQUESTS, tokens=True)]))
    assert distance(found[0], found[1]) < 1e-5
    assert found[0]["matcher.pairs.0.users.text.1.weight"].norm() > 0
    adapters = [name for name in found[0] if name.startswith("backbone.")]
    assert adapters
    assert all(found[0][name].norm() > 0 for name in adapters)


def test_in_bfloat16_the_vectors_stay_in_float32_and_near() -> None:
    batch = matching_batch(REQUESTS, tokens=True)
    exact, rounded = (users(model_of(TEXT, f"engine.precision={p}")[0], batch) for p in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05


def test_where_all_tasks_match_z_is_neither_computed_nor_trained() -> None:
    model, run = model_of(TEXT, only=True, train=True)
    names = {name for group in model.parameter_groups().values() for name in group}
    assert not any(name.startswith(("side.", "fuse.", "towers.", "text.")) for name in names)
    found = gradients(model, run, [matching_batch(REQUESTS, tokens=True, only=True)])
    names |= {name for name in row_tables(model) if name.startswith("matcher.")}
    assert found.keys() == names == model.learnable
    model.towers.forward = None  # type: ignore[assignment]
    model.fuse.forward = None  # type: ignore[assignment]
    model(matching_batch(REQUESTS, tokens=True, only=True), KEY)


def test_tables_and_towers_are_groups_of_their_own() -> None:
    model, _ = model_of(TEXT)
    groups = model.parameter_groups()
    assert {
        "matcher.pairs.0.items.table.weight",
        "matcher.pairs.0.items.tables.0.table.weight",
    } <= row_tables(model).keys()
    assert {"matcher.pairs.0.users.out.weight", "matcher.log_scale", "matcher.pairs.0.items.text.1.weight"} <= groups[
        "towers"
    ].keys()


def test_other_tasks_first_weights_and_logits_are_as_without_matching() -> None:
    model, _ = model_of()
    run = matching_run("tasks={like: {label: like}}")
    alone = Recommender(None, manifest(TASKS[:1]), run).eval()
    batch = matching_batch(REQUESTS)
    (one,) = alone(replace(batch, event_feedback=batch.event_feedback[:, :1], labels=batch.labels[:, :1]))
    assert torch.equal(model.eval()(batch)[0]["like"], one["like"])


class Copies:
    trains_below = True

    def split(self, z: Tensor, tasks: int) -> tuple[Tensor, ...]:
        return tuple(z.clone() for _ in range(tasks))


def test_with_a_balance_point_each_task_has_its_own_logits_and_those_that_match_the_same() -> None:
    model, run = model_of(train=True)
    batch = matching_batch(REQUESTS)
    (together,), apart = model(batch, KEY), model(batch, KEY, Copies())
    for t, name in enumerate(run.tasks):
        assert torch.allclose(apart[t][name], together[name], atol=1e-6)


@pytest.mark.parametrize(
    "override",
    [
        "matching.dim=8",
        "matching.similarity=dot",
        "tasks.next.params.power=0.1",
        "tasks.next.params.negatives=7",
        "tasks.next.params.exclude_seen=true",
        "features.id_dropout=0.6",
    ],
)
def test_every_setting_changes_the_loss(override: str) -> None:
    found = []
    for overrides in ((), (override,)):
        run = matching_run(*overrides)
        model = matching_model(run).train()
        found.append(losses_of(model, run, [matching_batch(REQUESTS)]))
    assert found[0] != found[1]
