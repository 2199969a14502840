import numpy as np
import pyarrow as pa
import pytest
import torch

from mtrec_ray.data.streaming.chunks import open_order
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.errors import BackboneError
from tests.fixtures import REQUEST_SCHEMA, write_prepared


def rows_of(folder, **options):
    manifest = write_prepared(folder, **options)
    shards = open_order(str(folder), OrderSettings("train", 0, 8, 60, 1, True)).shards
    return manifest, shards.rows(np.array([5, 0, 30, 7]))


def test_equals_a_plain_loop_over_requests(tmp_path):
    manifest, rows = rows_of(tmp_path)
    batch = Collator(manifest)(rows)
    token = candidate = event = 0
    for number, row in enumerate(rows.to_pylist()):
        history = row["history_ids"]
        assert batch.layout.history_start[number] == token
        assert batch.layout.history_length[number] == len(history)
        expected = history + row["candidate_ids"]
        assert batch.ids[token : token + len(expected)].tolist() == expected
        own = token + len(history)
        for c, end in enumerate(row["candidate_ends"]):
            start = row["candidate_ends"][c - 1] if c else 0
            seen = row["candidate_events"][c]
            assert batch.layout.candidate_request[candidate] == number
            assert batch.layout.candidate_start[candidate] == own + start
            assert batch.layout.candidate_length[candidate] == end - start
            assert batch.layout.candidate_end[candidate] == (row["history_ends"][seen - 1] if seen else 0)
            assert batch.candidate_event_start[candidate] == event
            assert batch.candidate_event_end[candidate] == event + seen
            assert batch.user_index[candidate] == row["user_index"]
            assert batch.row_ids[candidate] == row["row_id"][c]
            assert batch.times[candidate] == row["time"][c]
            assert batch.item_index[candidate] == row["item_index"][c]
            assert batch.categories[candidate].tolist() == row["categories"][3 * c : 3 * c + 3]
            np.testing.assert_allclose(batch.numbers[candidate], row["numbers"][2 * c : 2 * c + 2])
            np.testing.assert_allclose(batch.labels[candidate], row["labels"][2 * c : 2 * c + 2])
            assert batch.request[candidate] == number
            np.testing.assert_array_equal(batch.context[candidate], row["context"][2 * c : 2 * c + 2])
            assert batch.domain[candidate] == row["domain"][c]
            assert batch.policy[candidate] == row["policy"][c]
            candidate += 1
        count = len(row["event_item"])
        assert batch.event_item[event : event + count].tolist() == row["event_item"]
        assert batch.event_time[event : event + count].tolist() == row["event_time"]
        np.testing.assert_allclose(batch.event_feedback[event : event + count].ravel(), row["event_feedback"])
        token, event = token + len(expected), event + count
    assert (token, candidate, event) == (len(batch.ids), batch.num_candidates, len(batch.event_item))


@pytest.mark.parametrize("causal", [True, False])
def test_requests_without_any_event(tmp_path, causal):
    manifest, rows = rows_of(tmp_path)
    candidates = [len(items) for items in rows["item"].to_pylist()]
    for name in ("history_ids", "history_ends", "event_item", "event_time", "event_feedback"):
        column = pa.array([[]] * rows.num_rows, REQUEST_SCHEMA.field(name).type)
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    seen = pa.array([[0] * count for count in candidates], REQUEST_SCHEMA.field("candidate_events").type)
    rows = rows.set_column(rows.schema.get_field_index("candidate_events"), "candidate_events", seen)
    batch = Collator(manifest, causal)(rows)
    assert batch.ids.tolist() == [i for ids in rows["candidate_ids"].to_pylist() for i in ids]
    assert batch.layout.num_candidates == batch.num_candidates == sum(candidates)
    assert not batch.layout.history_length.any()
    assert not batch.layout.candidate_end.any()
    assert len(batch.event_item) == len(batch.event_time) == len(batch.event_feedback) == 0
    assert not batch.candidate_event_start.any()
    assert not batch.candidate_event_end.any()


def test_token_uids_do_not_depend_on_packing(tmp_path):
    manifest, rows = rows_of(tmp_path)
    collate = Collator(manifest)
    together = collate(rows).token_uids
    assert torch.equal(together, torch.cat([collate(rows.slice(i, 1)).token_uids for i in range(rows.num_rows)]))
    assert len(together.unique()) == len(together)


@pytest.mark.parametrize("tokens", [True, False])
def test_no_rows(tmp_path, tokens):
    manifest, _ = rows_of(tmp_path, tokens=tokens)
    batch = Collator(manifest)(REQUEST_SCHEMA.empty_table())
    assert (batch.num_candidates, len(batch.ids), len(batch.event_item)) == (0, 0, 0)
    assert batch.labels.shape == (0, 2)
    assert batch.categories.shape == (0, 3)
    assert batch.context.shape == (0, 2)
    assert batch.layout.num_requests == 0


def test_without_tokens_the_layout_is_empty_and_the_features_are_not(tmp_path):
    manifest, rows = rows_of(tmp_path, tokens=False)
    batch = Collator(manifest)(rows)
    assert batch.layout.length == 0
    candidates = sum(len(ids) for ids in rows["row_id"].to_pylist())
    assert batch.labels.shape[0] == batch.user_index.shape[0] == candidates


def test_an_encoder_refuses_a_staircase_and_takes_a_shared_end(tmp_path):
    manifest, rows = rows_of(tmp_path / "staircase")
    with pytest.raises(BackboneError, match="shared_end"):
        Collator(manifest, causal=False)(rows)
    manifest, rows = rows_of(tmp_path / "shared", shared_end=True)
    assert not Collator(manifest, causal=False)(rows).layout.causal
