"""Declared vectors in the vectors of users and items."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.item_vectors import ItemVectors
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.multitask.losses import make_objective
from tests.batches import ITEMS, make_request
from tests.matching import (
    COLD,
    VECTORS,
    catalogue,
    manifest,
    matching_batch,
    matching_run,
    matching_steps,
    stored_vectors,
)
from tests.model.test_matching import KEY, REQUESTS, gradients, model_of, pair, users

ALL = torch.arange(ITEMS + COLD)
ROWS = catalogue(vectors=True).item_row
IMAGE, AUDIO = slice(0, 6), slice(6, 11)


def model_with(*overrides: str, train: bool = False) -> Recommender:
    return model_of("matching.similarity=dot", *overrides, train=train, vectors=True)[0]


def other_vectors(items: ItemVectors, rows: list[int]) -> None:
    """Those rows of the stored vectors change, as the model sees them."""
    assert items.declared is not None
    changed = items.declared.copy()
    changed[rows] = np.random.default_rng(8).normal(size=(len(rows), changed.shape[1]))
    items.declared = changed


@torch.no_grad()
def test_an_items_vector_is_the_sum_of_its_parts() -> None:
    """Of its id, its categories, and each of its vectors, or what stands for a missing one."""
    items, stored = pair(model_with()).items, stored_vectors()["item"]
    assert ROWS is not None
    found = items(ALL, None)
    for row in ALL.tolist():
        expected = items.table.weight[items.item_ids[row]].clone()
        genre = [value for value in items.categories[row, :2].tolist() if value >= 0]
        if genre:
            expected += items.tables[0].table.weight[genre].mean(0)  # type: ignore[union-attr,index]
        for projection, columns in zip(items.projections, (IMAGE, AUDIO), strict=True):
            own = stored[ROWS[row], columns].astype(np.float64)
            if np.isnan(own).any():
                expected += projection.missing  # type: ignore[operator]
            else:
                scaled = (own - own.mean()) / np.sqrt(own.var() + 1e-5)
                expected += projection.linear(torch.from_numpy(scaled).float())  # type: ignore[operator]
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)
    missing = np.isnan(stored[ROWS][:, [0, 6]]).sum(0)
    assert missing[0] > missing[1] > 0, "an item that the table lacks, and one without an image"


@torch.no_grad()
def test_items_are_read_alike_wherever_they_stand() -> None:
    """The vectors of one item change: so do its scores as candidate, as negative and in the whole catalogue, and the
    vectors of users that have it in their history."""
    assert ROWS is not None
    alike = torch.from_numpy(np.flatnonzero(ROWS == 5))
    model = model_with("features.id_dropout=0", "tasks.next.params.negatives=40", train=True)
    batch, matcher = matching_batch(REQUESTS, vectors=True), model.matcher
    assert matcher is not None

    def seen() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores of candidates [C] and of negatives [M, C], vectors of all items and of users."""
        (logits,) = model.train()(batch, KEY)
        own, *negatives = logits["next"].T
        return own, torch.stack(negatives), pair(model).items.all_of(ALL, None), users(model, batch)

    before = seen()
    other_vectors(pair(model).items, [5])
    after = seen()
    own, _, everything, user = (
        (now - then).abs().reshape(len(now), -1).amax(1) > 1e-6 for now, then in zip(after, before, strict=True)
    )
    drawn, _ = matcher._samplers["next"].draw(40, KEY.salt("negatives.next"))
    counts = (after[1] > -1e29) & ~user  # a negative that counts, for a user whose own vector stays
    changed = ((after[1] - before[1]).abs() > 1e-6) & counts
    assert torch.equal(changed, torch.from_numpy(np.isin(drawn, alike))[:, None] & counts)
    assert changed.any()
    assert everything.tolist() == torch.isin(ALL, alike).tolist()
    in_history = torch.isin(batch.event_catalogue, alike)
    ends = zip(batch.candidate_event_start.tolist(), batch.candidate_event_end.tolist(), strict=True)
    expected = torch.tensor([bool(in_history[first:end].any()) for first, end in ends])
    assert user.tolist() == expected.tolist()
    assert own.tolist() == (expected | torch.isin(batch.catalogue, alike)).tolist()
    assert 0 < expected.sum() < len(expected)


def test_a_users_vector_reads_those_of_the_user_and_no_others() -> None:
    """Not those of the candidate, and not those of the log, which may be of the candidate."""
    model, batch = model_with(), matching_batch(REQUESTS, vectors=True)
    before = users(model, batch)
    for entry in VECTORS:
        changed = batch.vectors.clone()
        changed[:, entry.offset : entry.offset + entry.size] = torch.randn(entry.size)
        after = users(model, replace(batch, vectors=changed))
        differs = (after - before).abs().amax(1) > 1e-6
        assert differs.all() if entry.scope == "user" else torch.equal(after, before)
    (logits,) = model(batch)
    of_others = batch.vectors[:, :15].roll(1, dims=0)
    (other,) = model(replace(batch, vectors=torch.cat([of_others, batch.vectors[:, 15:]], dim=1)))
    assert torch.equal(other["next"], logits["next"])
    assert not torch.equal(other["like"], logits["like"]), "a task that reads side features reads all of them"


def test_what_stands_for_missing_vectors_is_learned() -> None:
    model, run = model_of(train=True, vectors=True)
    batch = matching_batch([make_request(n) for n in range(30)], vectors=True)
    assert (batch.user_index == 0).any(), "of whom nothing is declared"
    found = gradients(model, run, [batch])
    for part in ("items.projections.0", "items.projections.1", "users.projections.0"):
        for weight in ("missing", "linear.weight"):
            gradient = found[f"matcher.pairs.0.{part}.{weight}"]
            assert gradient.isfinite().all()
            assert gradient.norm() > 0, f"{part}.{weight}"
    known = replace(batch, user_index=batch.user_index.clamp(min=1), vectors=batch.vectors.nan_to_num(0.5))
    assert not gradients(model, run, [known])["matcher.pairs.0.users.projections.0.missing"].any()


def test_packed_equals_separate_with_vectors() -> None:
    found = []
    for packing in ("packed", "separate"):
        model, run = model_of("backbone=nano", train=True, vectors=True)
        model.backbone.mode = packing  # type: ignore[union-attr,assignment]
        (step,) = matching_steps(1, tokens=True, vectors=True)
        found.append(gradients(model, run, step.batches))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_a_catalogue_without_the_vectors_that_data_has_is_a_mistake() -> None:
    run = matching_run()
    with pytest.raises(AssertionError, match="is loaded with them"):
        Recommender(None, manifest(vectors=True), run, catalogue())


@pytest.mark.parametrize("declared", [True, False])
def test_what_vectors_of_users_say_of_their_next_item_is_learned(declared: bool) -> None:
    """A user's vector is a turned image of the next item, of six, and no history tells it."""
    rng = np.random.default_rng(0)
    known, turn = np.arange(1, 7), rng.normal(size=(6, 4))
    stored = rng.normal(size=(1 + ITEMS + COLD, 11)).astype(np.float32)
    stored[:, IMAGE] -= stored[:, IMAGE].mean(1, keepdims=True)
    stored[:, AUDIO] = np.nan
    items = replace(catalogue(), item_row=1 + np.arange(ITEMS + COLD), vectors=stored)
    whole = manifest([task for task in manifest().tasks if task.name == "next"], vectors=True)
    kept = [entry for entry in VECTORS if declared or entry.scope != "user"]
    run = matching_run("features.id_dropout=0", only=True)
    model = Recommender(None, whole.model_copy(update={"vectors": kept}), run, items)
    objective = make_objective(run, whole)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    empty = matching_batch(REQUESTS * 4, only=True, vectors=True)

    def planted() -> tuple[Tensor, Batch]:
        target = rng.choice(known, empty.num_candidates)
        vectors = empty.vectors.clone()
        vectors[:, 15:] = torch.from_numpy(stored[1 + target, IMAGE] @ turn)
        return torch.from_numpy(target), replace(
            empty,
            vectors=vectors,
            catalogue=torch.from_numpy(target),
            times=torch.full_like(empty.times, 10**10),
            labels=torch.ones_like(empty.labels),
            candidate_event_end=empty.candidate_event_start,
        )

    for step in range(80):
        _, batch = planted()
        loss = objective.loss_sums(model.train()(batch, DropoutKey(0, step)), batch).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    target, batch = planted()
    with torch.no_grad():
        scores = users(model, batch) @ pair(model).items(torch.from_numpy(known), None).T
    right = float((known[scores.argmax(1).numpy()] == target.numpy()).mean())
    assert right > 0.9 if declared else right < 0.4, right
