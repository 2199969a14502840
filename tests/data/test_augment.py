"""Augmentation changes train requests as it says, the same wherever they are read, and shows no candidate more than
before."""

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.config import Augment
from mtrec_ray.data.manifest import CategoryEntry, NumberEntry, TaskEntry
from mtrec_ray.data.requests.ragged import Ragged
from mtrec_ray.data.streaming.augment.augmenter import Augmenter
from mtrec_ray.data.streaming.augment.draws import Draws
from mtrec_ray.data.streaming.augment.history import cropped, shuffled, visible
from mtrec_ray.data.streaming.augment.rows import RequestRows
from mtrec_ray.data.streaming.augment.tokens import TokenNoise
from mtrec_ray.data.streaming.chunks import LocalChunks, open_order
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.tasks.groups import groups
from tests.fixtures import REQUEST_SCHEMA, VOCAB, manifest_of, write_prepared

SPECIAL = [0, 1, 2]
EVERYTHING = Augment(history_crop=0.6, history_mask=0.2, history_reorder=0.6, token_noise=0.2, negatives=0.5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    return str(folder)


def augmenter(seed=0, **switches) -> Augmenter:
    found = Augment(**switches)
    noise = TokenNoise(found.token_noise, VOCAB, SPECIAL) if found.token_noise else None
    return Augmenter(found, seed, noise=noise)


def steps(prepared, rank=0, first=0, last=10, augment=None, **order):
    settings = dataclasses.replace(OrderSettings("train", 0, 8, 60, 1, True), **order)
    source = LocalChunks(prepared, settings, rank)
    stream = StepStream(open_order(prepared, settings), rank, Collator(load_manifest(prepared)), source, augment)
    return list(stream.steps(first, last))


def request_rows(*requests):
    """Requests as (counts of tokens of the events, (events seen, label) of the candidates): all else tells who is who.

    Event e of request r has item and time 100 r + e, candidate c row id and tokens 10000 + 100 r + c.
    """
    rows = []
    for r, (events, candidates) in enumerate(requests):
        names, own = [100 * r + e for e in range(len(events))], [10_000 + 100 * r + c for c in range(len(candidates))]
        rows.append(
            {
                "request_uid": 77 * r + 5,
                "user": str(r),
                "user_index": r,
                "history_ids": [name for name, count in zip(names, events, strict=True) for _ in range(count)],
                "history_ends": np.cumsum(events).astype(int).tolist(),
                "event_item": names,
                "event_time": names,
                "event_feedback": [float(name) for name in names],
                "candidate_ids": [name for name in own for _ in range(2)],
                "candidate_ends": [2 * c + 2 for c in range(len(own))],
                "candidate_events": [seen for seen, _ in candidates],
                "item": [f"item {name}" for name in own],
                "item_index": own,
                "time": [100 * r + seen for seen, _ in candidates],
                "row_id": own,
                "categories": [value for name in own for value in (name, -1)],
                "numbers": [float(name) for name in own],
                "labels": [label for _, label in candidates],
                "context": [],
                "domain": [0] * len(own),
                "policy": [0] * len(own),
            }
        )
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def collator(causal=True):
    return Collator(manifest_of_one_task(), causal)


def manifest_of_one_task():
    counts = {"train": 1}
    return manifest_of(
        tasks=[TaskEntry(name="t", kind="binary", labels="binary", observed=counts, positives=counts, mean=0.5, std=1)],
        categories=[CategoryEntry(name="g", offset=0, width=2, size=5)],
        numbers=[NumberEntry(name="n", index=0, kind="number", mean=0, std=1, quantiles=[0.0])],
        num_users=9,
        num_items=9,
        vocab_size=20_000,
    )


def views(batch):
    """What each candidate is given: row id -> (names of its events, its history's tokens, its own, all else)."""
    found = {}
    layout = batch.layout
    for c, row_id in enumerate(batch.row_ids.tolist()):
        start, end = int(batch.candidate_event_start[c]), int(batch.candidate_event_end[c])
        first = int(layout.history_start[layout.candidate_request[c]])
        own = int(layout.candidate_start[c])
        names = batch.event_time[start:end].tolist()
        np.testing.assert_array_equal(batch.event_item[start:end], names)
        np.testing.assert_array_equal(batch.event_feedback[start:end, 0], names)
        found[row_id] = (
            names,
            batch.ids[first : first + int(layout.candidate_end[c])].tolist(),
            batch.ids[own : own + int(layout.candidate_length[c])].tolist(),
            (
                float(batch.labels[c].nan_to_num(-1)),
                float(batch.numbers[c]),
                int(batch.user_index[c]),
                int(batch.item_index[c]),
                int(batch.times[c]),
                batch.categories[c].tolist(),
            ),
        )
    return found


shares = st.floats(0, 0.99)


@st.composite
def requests(draw, shared_end):
    events = draw(st.lists(st.integers(0, 3), max_size=7))
    labels = st.sampled_from([0.0, 1.0, float("nan")])
    last = len(events)
    seen = st.just(last) if shared_end else st.integers(0, last)
    ends = draw(st.lists(st.tuples(seen, labels), min_size=1, max_size=4))
    return events, [*sorted(ends, key=lambda end: end[0])[:-1], (last, ends[-1][1])]


@pytest.mark.parametrize("shared_end", [False, True])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_candidate_sees_an_event_that_it_did_not_see_before(shared_end, data):
    table = request_rows(*data.draw(st.lists(requests(shared_end), min_size=1, max_size=4)))
    switches = Augment(
        history_crop=data.draw(shares),
        history_mask=data.draw(shares),
        history_reorder=data.draw(shares),
        negatives=data.draw(st.floats(0.3, 1)),
    )
    step = data.draw(st.integers(0, 1000))
    changed = Augmenter(switches, seed=3)(table, step)
    collate = collator(causal=not shared_end)
    before, after = views(collate(table)), views(collate(changed))
    tokens = dict(Counter(table["history_ids"].combine_chunks().flatten().to_pylist()))
    for row_id, (events, history, own, other) in after.items():
        assert len(set(events)) == len(events)
        assert set(events) <= set(before[row_id][0])
        assert history == [event for event in events for _ in range(tokens.get(event, 0))]
        assert own == before[row_id][2]
        assert other == before[row_id][3]
    kept = {row_id for row_id, (*_, other) in before.items() if other[0] != 0}
    assert kept <= after.keys() <= before.keys()
    if switches.negatives == 1:
        assert after.keys() == before.keys()


def test_of_a_shuffled_part_a_candidate_sees_what_comes_before_the_first_event_that_it_must_not_see():
    rows = RequestRows.of(request_rows(([1] * 4, [(0, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]), ([1] * 2, [(1, 1.0)])))
    order = np.array([0, 3, 1, 2, 5, 4])  # to take as many events as before would show event 3 to those of 2 and 3
    assert visible(rows, order).tolist() == [0, 1, 1, 4, 0]
    assert visible(rows, np.array([1, 0, 2, 4, 5])).tolist() == [0, 2, 3, 3, 1]
    assert visible(rows, np.array([], dtype=np.int64)).tolist() == [0, 0, 0, 0, 0]


def test_events_that_nobody_sees_any_more_are_left_out():
    table = request_rows(([2] * 6, [(1, 1.0), (6, 0.0)]))
    augment = augmenter(negatives=1e-9)
    changed = augment(table, 0)
    assert changed["row_id"].to_pylist() == [[10_000]]
    assert changed["event_item"].to_pylist() == [[0]]
    assert changed["history_ids"].to_pylist() == [[0, 0]]


def test_a_request_without_candidates_is_left_out_and_a_batch_may_lose_all():
    table = request_rows(([1, 1], [(2, 0.0)]), ([1], [(1, 1.0)]))
    changed = augmenter(negatives=1e-9)(table, 0)
    assert changed["user"].to_pylist() == ["1"]
    nothing = augmenter(negatives=1e-9)(table.slice(0, 1), 0)
    assert nothing.num_rows == 0
    assert collator()(nothing).num_candidates == 0


def test_rows_that_are_taken_apart_and_put_together_are_the_same(prepared):
    shards = open_order(prepared, OrderSettings("train", 0, 8, 60, 1, True)).shards
    table = shards.rows(np.arange(37))
    again = RequestRows.of(table).table()
    assert again.schema == table.schema
    assert str(again.to_pylist()) == str(table.to_pylist())
    with pytest.raises(ValueError, match="'odd' of the request rows is a list neither"):
        RequestRows.of(table.append_column("odd", pa.array([[1, 2, 3]] + [[]] * 36)))


def same(one, two):
    fields = dataclasses.fields(one)
    for field in fields:
        left, right = getattr(one, field.name), getattr(two, field.name)
        if field.name == "layout":
            assert all(np.array_equal(left.host[name], right.host[name]) for name in left.host)
        elif left.dtype.is_floating_point:
            assert torch.equal(left.nan_to_num(-7), right.nan_to_num(-7)), field.name
        else:
            assert torch.equal(left, right), field.name


def test_with_all_switches_off_batches_are_what_they_were(prepared):
    for plain, changed in zip(steps(prepared), steps(prepared, augment=augmenter()), strict=True):
        for one, two in zip(plain.batches, changed.batches, strict=True):
            same(one, two)


@pytest.mark.parametrize(
    "switch",
    [{"history_crop": 0.9}, {"history_mask": 0.5}, {"history_reorder": 0.9}, {"token_noise": 0.3}, {"negatives": 0.5}],
)
def test_each_switch_changes_batches_and_labels_of_what_is_left_stay(prepared, switch):
    plain, changed = steps(prepared), steps(prepared, augment=augmenter(**switch))
    pairs = [p for one, two in zip(plain, changed, strict=True) for p in zip(one.batches, two.batches, strict=True)]
    assert any(not torch.equal(one.ids, two.ids) for one, two in pairs)
    for one, two in pairs:
        rows = dict(zip(one.row_ids.tolist(), one.labels.nan_to_num(-7).tolist(), strict=True))
        for row, labels in zip(two.row_ids.tolist(), two.labels.nan_to_num(-7).tolist(), strict=True):
            assert labels == rows[row]
        assert len(two.ids) <= len(one.ids)
        assert ("negatives" in switch) or len(two.row_ids) == len(one.row_ids)


def content(found):
    """Row id -> all that a candidate is given, over all batches of a step."""
    given = {}
    for batch in found.batches:
        layout = batch.layout
        for c, row_id in enumerate(batch.row_ids.tolist()):
            first = int(layout.history_start[layout.candidate_request[c]])
            own = int(layout.candidate_start[c])
            start, end = int(batch.candidate_event_start[c]), int(batch.candidate_event_end[c])
            given[row_id] = (
                batch.ids[first : first + int(layout.candidate_end[c])].tolist(),
                batch.ids[own : own + int(layout.candidate_length[c])].tolist(),
                batch.event_item[start:end].tolist(),
                batch.event_time[start:end].tolist(),
                batch.label_weights[c].tolist(),
            )
    return given


def test_changes_depend_neither_on_packing_nor_on_ranks_nor_on_where_a_run_starts(prepared):
    augment = Augmenter(EVERYTHING, 0, noise=TokenNoise(0.2, VOCAB, SPECIAL))
    whole = [content(step) for step in steps(prepared, augment=augment)]
    packed = [content(step) for step in steps(prepared, augment=augment, micro_tokens=1000)]
    resumed = [content(step) for step in steps(prepared, first=6, augment=augment)]
    ranks = [steps(prepared, rank, augment=augment, world_size=3) for rank in range(3)]
    dealt = [{k: v for found in together for k, v in content(found).items()} for together in zip(*ranks, strict=True)]
    assert packed == whole == dealt
    assert resumed == whole[6:]


def test_epochs_and_seeds_differ(prepared):
    def epochs(augment):
        found = [content(step) for step in steps(prepared, augment=augment)]
        return [{k: v for step in part for k, v in step.items()} for part in (found[:5], found[5:])]

    first, second = epochs(augmenter(token_noise=0.3, history_mask=0.3))
    assert first.keys() == second.keys()
    assert sum(first[row] != second[row] for row in first) > len(first) / 2
    other, _ = epochs(augmenter(seed=1, token_noise=0.3, history_mask=0.3))
    assert sum(first[row] != other[row] for row in first) > len(first) / 2
    plain = epochs(None)
    assert plain[0] == plain[1]


def many(count, events=20):
    return request_rows(*[([1] * events, [(events, 1.0)])] * count)


def test_a_cropped_history_is_a_part_in_a_row_of_any_length_and_place():
    rows = RequestRows.of(many(400))
    kept = cropped(rows, 0.5, Draws(0, 0)).reshape(400, 20)
    lengths = kept.sum(axis=1)
    edges = np.abs(np.diff(kept.astype(int), axis=1)).sum(axis=1) + kept[:, 0] + kept[:, -1]
    assert (edges == 2).all()  # one part in a row, which goes in and out once
    whole = (lengths == 20).mean()
    assert 0.5 - 0.1 < whole < 0.5 + 1 / 40 + 0.1
    short = lengths[lengths < 20]
    assert set(range(1, 20)) <= set(short.tolist())
    assert abs(short.mean() - 10) < 1
    firsts = kept.argmax(axis=1)[lengths < 20]
    assert firsts.min() == 0
    assert len(set(firsts.tolist())) > 15
    assert cropped(rows, 0.0, Draws(0, 0)).all()


def test_the_masked_share_of_events_is_left_out():
    changed = augmenter(history_mask=0.3)(many(400), 5)
    share = 1 - len(changed["event_item"].combine_chunks().flatten()) / (400 * 20)
    assert abs(share - 0.3) < 0.02


def test_reordering_shuffles_a_part_of_the_share_and_nothing_else():
    counts = np.full(300, 20)
    order = shuffled(counts, 0.3, np.arange(300) * 13, Draws(0, 0))
    places = (order - np.repeat(np.arange(300) * 20, 20)).reshape(300, 20)
    np.testing.assert_array_equal(np.sort(places, axis=1), np.tile(np.arange(20), (300, 1)))
    moved = places != np.arange(20)
    first, last = moved.argmax(axis=1), 20 - moved[:, ::-1].argmax(axis=1)
    span = np.where(moved.any(axis=1), last - first, 0)
    assert span.max() == 6  # floor(0.3 * 20)
    assert (span > 1).mean() > 0.95
    assert len(set(first[span == 6].tolist())) == 15  # every start from 0 to 14
    assert (shuffled(np.array([1, 3, 0]), 0.5, np.arange(3), Draws(0, 0)) == np.arange(4)).all()  # no part of two


def test_noise_is_of_the_share_and_knows_no_special_tokens():
    table = many(300)
    rows = RequestRows.of(table)
    tokens = np.tile(np.array([0, 1, 2, *range(3, 20)]), 300)  # every history has the special ones
    rows = dataclasses.replace(rows, event_tokens=Ragged(tokens.astype(np.int32), rows.event_tokens.offsets))
    found = TokenNoise(0.4, VOCAB, SPECIAL)(rows, Draws(0, 0)).event_tokens.values
    special = np.isin(tokens, SPECIAL)
    np.testing.assert_array_equal(found[special], tokens[special])
    assert not np.isin(found[~special], SPECIAL).any()
    changed = (found != tokens)[~special].mean()
    assert abs(changed - 0.4 * (1 - 1 / 47)) < 0.03
    new = found[found != tokens]
    assert set(new.tolist()) == set(range(3, VOCAB))


def test_kept_negatives_count_for_those_that_are_not():
    labels = [(5, 0.0)] * 8 + [(5, 1.0), (5, float("nan"))]
    table = request_rows(*[([1] * 5, labels)] * 5)
    collate, weights, rows = collator(), defaultdict(float), 0
    for step in range(200):
        batch = collate(augmenter(negatives=0.25)(table, step))
        for row_id, weight in zip(batch.row_ids.tolist(), batch.label_weights[:, 0].tolist(), strict=True):
            weights[row_id % 100] += weight / (200 * 5)
            assert weight == (4.0 if row_id % 100 < 8 else 1.0)
        rows += batch.num_candidates
    assert (weights[8], weights[9]) == pytest.approx((1, 1))
    negatives = [weights[c] for c in range(8)]
    assert np.mean(negatives) == pytest.approx(1, abs=0.1)  # 8000 draws of deviation sqrt(3): 0.02
    assert min(negatives) > 0.75
    assert max(negatives) < 1.25
    assert rows / (200 * 5) == pytest.approx(2 + 8 / 4, abs=0.15)


def test_of_the_negatives_of_a_request_as_many_stay_as_the_share_says_whichever_they_are():
    table = request_rows(*[([1], [(1, 0.0)] * 7 + [(1, 1.0)] * 2)] * 3)
    stay, pairs = np.zeros(7), set()
    for step in range(400):
        batch = collator()(augmenter(negatives=0.25)(table, step))
        for request in range(3):
            of_request = batch.row_ids[batch.request == request].numpy() % 100
            kept = of_request[of_request < 7]
            assert len(kept) in (1, 2)  # 7 / 4 is 1.75
            stay[kept] += 1 / 1200
            pairs |= {tuple(kept)} if len(kept) == 2 else set()
    assert stay == pytest.approx(np.full(7, 0.25), abs=0.05)  # of deviation 0.0125
    assert len(pairs) == 7 * 6 / 2


def test_a_row_is_kept_for_any_task_with_a_label_that_is_not_0(prepared):
    for step in steps(prepared, augment=augmenter(negatives=0.01), last=5):
        for batch in step.batches:
            rare = batch.label_weights[:, 0] > 1
            observed = batch.labels[rare].nan_to_num(0.0)
            assert (observed == 0).all()
            assert (batch.label_weights[:, 0] == batch.label_weights[:, 1]).all()
    plain = [b.labels for step in steps(prepared, last=5) for b in step.batches]
    left = [b.labels for step in steps(prepared, augment=augmenter(negatives=1e-9), last=5) for b in step.batches]
    wanted = sum(int((~((x == 0) | x.isnan()).all(1) | x.isnan().all(1)).sum()) for x in plain)
    assert sum(len(x) for x in left) == wanted < sum(len(x) for x in plain)


def test_rows_weigh_by_their_weight_over_the_rate_at_which_they_were_kept():
    manifest = manifest_of_one_task().model_copy(update={"context": ["row_weight", "sampling_rate", "position"]})
    table = request_rows(([1], [(1, 0.0), (1, 1.0)]), ([], [(0, 0.0)]))
    context = pa.array([[2.0, 0.1, 7.0, 1.0, 1.0, 7.0], [0.5, 0.25, 7.0]], pa.list_(pa.float32()))
    table = table.set_column(table.schema.get_field_index("context"), "context", context)
    collate = Collator(manifest)
    assert collate(table).label_weights[:, 0].tolist() == pytest.approx([20, 1, 2])
    found = [collate(augmenter(negatives=0.5)(table, step)) for step in range(20)]
    expected = {10_000: 40, 10_001: 1, 10_100: 4}
    for batch in found:
        for row_id, weight in zip(batch.row_ids.tolist(), batch.label_weights[:, 0].tolist(), strict=True):
            assert weight == pytest.approx(expected[row_id])
    assert {row for batch in found for row in batch.row_ids.tolist()} == set(expected)


def test_more_tokens_than_planned_are_a_defect():
    table = request_rows(([1], [(1, 1.0)]))

    def longer(rows, draws):
        return dataclasses.replace(rows, candidate_tokens=Ragged.of([np.arange(3)], np.int32))

    with pytest.raises(AssertionError, match="request 5 has 4 tokens after augmentation, 3 before"):
        Augmenter(Augment(), 0, noise=longer)(table, 0)


def test_who_was_shown_together_is_known_after_ends_have_become_the_same():
    table = request_rows(([1] * 4, [(1, 1.0), (1, 0.0), (3, 1.0), (4, 0.0)]))
    changed = augmenter(history_mask=0.9)
    for step in range(10):
        batch = collator()(changed(table, step))
        assert batch.shown.tolist() == [1, 1, 3, 4]
        assert groups(batch, "shown").tolist() == [0, 0, 2, 3]
    assert collator()(table).shown.tolist() == [1, 1, 3, 4]
