import itertools

import numpy as np
import pytest

from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.features.item_past import answered
from mtrec_ray.data.features.side_features import number_names
from mtrec_ray.data.fitting.texts import feedback_words
from mtrec_ray.data.preparing.encode import encode
from mtrec_ray.data.requests.splits import Key, TimeSplit
from tests.data.by_hand import SECOND, behaviours, bucket, config
from tests.data.encoding import encoded

ITEMS = "item,title,genres,year\n7,red fox,a|b,1990\n8,blue whale,b,2000\n9,,,\n"
FEW = {"history__max_events": 4, "features__aggregates": ["user", "genres"]}
HOUR = 3600


@pytest.fixture(name="items")
def _items(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text(ITEMS)
    return {
        "path": str(path),
        "key": "item",
        "text": "{title}",
        "categories": [{"column": "genres", "separator": "|", "min_count": 1}],
        "numbers": ["year"],
    }


def row(user, item, time, like=None, **more):
    return {"user": str(user), "item": str(item), "time": time, "like": like, **more}


LOG = [row(1, 7, 0, 1), row(1, 8, HOUR, 0), row(1, 9, HOUR, 1), row(1, 7, 3 * HOUR, 1), row(2, 8, 5)]


def test_one_row_in_all_its_columns(items):
    run = config(data__items=items, backbone={"name": "nano", "vocab_size": 300}, **FEW)
    result, tokenizer, fitted = encoded(run, LOG)
    first, second = result.requests["train"].to_pylist()
    assert (first["user"], first["request_uid"]) == ("1", 0)
    assert first["user_index"] == fitted.users.lookup(["1"])[0]
    assert first["item"] == ["7", "8", "9", "7"]
    assert first["candidate_events"] == [0, 1, 1, 3]
    assert first["event_item"] == fitted.items.lookup(["7", "8", "9"]).tolist()
    assert first["event_time"] == [0, HOUR * SECOND, HOUR * SECOND]
    assert first["event_feedback"] == [1, 0, 1]
    ends = [0, *first["history_ends"]]
    texts = [tokenizer.decode(first["history_ids"][a:b]).strip() for a, b in itertools.pairwise(ends)]
    assert texts == ["like red fox", "no like blue whale", "like"]
    ends = [0, *first["candidate_ends"]]
    texts = [tokenizer.decode(first["candidate_ids"][a:b]).strip() for a, b in itertools.pairwise(ends)]
    assert texts == ["red fox", "blue whale", tokenizer.eos_token, "red fox"]
    assert np.reshape(first["categories"], (4, 2)).tolist() == [
        fitted.categories["genres"].lookup(["a", "b"]).tolist(),
        [fitted.categories["genres"].lookup(["b"])[0], -1],
        [-1, -1],
        fitted.categories["genres"].lookup(["a", "b"]).tolist(),
    ]
    names = [name for name, _ in number_names(run)]
    numbers = np.reshape(first["numbers"], (4, len(names)))
    np.testing.assert_array_equal(numbers[:, names.index("year")], [1990, 2000, np.nan, 1990])
    np.testing.assert_allclose(
        numbers[:, names.index("time.gap")], [np.nan, np.log1p(HOUR), np.log1p(HOUR), np.log1p(2 * HOUR)], rtol=1e-6
    )
    np.testing.assert_array_equal(first["labels"], [1, 0, 1, 1])
    assert second["candidate_events"] == [0]
    assert second["history_ids"] == second["event_item"] == []
    assert np.isnan(second["labels"]).all()


def test_lengths_are_those_of_the_rows(items):
    run = config(data__items=items, backbone={"name": "nano", "vocab_size": 300}, **FEW)
    result, _, _ = encoded(run, LOG)
    rows = result.requests["train"].to_pylist()
    tokens = [len(r["history_ids"]) + len(r["candidate_ids"]) for r in rows]
    assert result.lengths["train"]["tokens"].to_pylist() == tokens
    assert result.lengths["train"]["candidates"].to_pylist() == [len(r["item"]) for r in rows]
    assert result.longest["request"] == max(tokens)
    positions = []
    for r in rows:
        ends, own = [0, *r["history_ends"]], np.diff([0, *r["candidate_ends"]])
        positions += [ends[seen] + n for seen, n in zip(r["candidate_events"], own, strict=True)]
    assert result.longest["position"] == max(positions)


def test_long_texts_are_cut_and_counted(items):
    run = config(
        data__items=items,
        backbone={"name": "nano", "vocab_size": 260},
        history={"event_tokens": 3, "candidate_tokens": 2},
        features__aggregates=[],
    )
    result, _, _ = encoded(run, LOG)
    rows = result.requests["train"].to_pylist()
    assert max(np.diff([0, *r["history_ends"]], append=0).max() for r in rows) <= 3
    assert all(max(np.diff([0, *r["candidate_ends"]])) <= 2 for r in rows)
    assert result.counts["cut_candidates"] == 4  # all but the one without text
    assert result.counts["cut_events"] > 0


def test_without_a_backbone_there_are_no_tokens(items):
    result, tokenizer, _ = encoded(config(data__items=items, **FEW), LOG)
    assert tokenizer is None
    first = result.requests["train"].to_pylist()[0]
    assert first["history_ids"] == first["candidate_ids"] == []
    assert first["history_ends"] == [0, 0, 0]
    assert first["candidate_ends"] == [0, 0, 0, 0]
    assert result.documents.num_rows == 0


def test_requests_of_a_split_hold_only_its_candidates_and_what_they_may_see():
    boundaries = TimeSplit(Key(10 * SECOND), Key(15 * SECOND))
    rows = [row(1, t, t, 1) for t in range(20)]
    result, _, _ = encoded(config(**{**FEW, "features__aggregates": []}), rows, boundaries)
    for split, times in (("train", range(10)), ("valid", range(10, 15)), ("test", range(15, 20))):
        requests = result.requests[split].to_pylist()
        assert sorted(t // SECOND for r in requests for t in r["time"]) == list(times)
        for r in requests:
            assert max(r["event_time"], default=-1) < max(r["time"])
            assert len(r["event_time"]) == max(r["candidate_events"])
            for time, seen in zip(r["time"], r["candidate_events"], strict=True):
                assert sum(event < time for event in r["event_time"]) == seen


def test_shared_end_requests_have_candidates_that_see_the_whole_history():
    result, _, _ = encoded(config(**{**FEW, "features__aggregates": []}), LOG, shared_end=True)
    for r in result.requests["train"].to_pylist():
        assert set(r["candidate_events"]) == {len(r["event_time"])}


@pytest.mark.parametrize("shared_end", [False, True])
def test_without_history_the_lists_of_events_are_empty_and_all_else_is_as_ever(items, shared_end):
    settings = {"data__items": items, "backbone": {"name": "nano", "vocab_size": 300}, "features__aggregates": ["user"]}
    with_history, _, _ = encoded(config(**settings), LOG)
    without, _, _ = encoded(config(**settings, history__max_events=0), LOG, shared_end=shared_end)
    rows = without.requests["train"].to_pylist()
    assert [len(r["item"]) for r in rows] == [4, 1]  # a request per user
    for row, other in zip(rows, with_history.requests["train"].to_pylist(), strict=True):
        of_history = ("history_ids", "history_ends", "event_item", "event_time", "event_feedback")
        assert all(row[name] == [] for name in of_history)
        assert row["candidate_events"] == [0] * len(row["item"])
        for name in row.keys() - {*of_history, "candidate_events"}:
            np.testing.assert_array_equal(row[name], other[name])
    assert without.lengths["train"]["tokens"].to_pylist() == [len(r["candidate_ids"]) for r in rows]
    assert without.longest["position"] == max(max(np.diff([0, *r["candidate_ends"]])) for r in rows)
    assert without.documents == with_history.documents


def test_documents_are_the_histories_of_the_train_period(items):
    run = config(data__items=items, backbone={"name": "nano", "vocab_size": 300}, **FEW)
    boundaries = TimeSplit(Key(2 * HOUR * SECOND), Key(4 * HOUR * SECOND))
    result, tokenizer, _ = encoded(run, LOG, boundaries)
    documents = [tokenizer.decode(ids).strip() for ids in result.documents["ids"].to_pylist()]
    assert documents == ["like red fox no like blue whale like", "blue whale"]


def test_an_empty_bucket_gives_empty_tables():
    run = config()
    result, _, fitted = encoded(run, LOG)
    built = bucket(run, [])
    empty = encode(built, run, Tables(None, None), fitted, None, False, answered(built, run))
    for split in ("train", "valid", "test"):
        assert empty.requests[split].num_rows == 0
        assert empty.requests[split].schema == result.requests[split].schema
    assert empty.documents.num_rows == 0


def test_feedback_words():
    tasks = {
        "like": {"label": "like"},
        "stars": {"kind": "regression", "label": "stars"},
        "kind": {"kind": "multiclass", "classes": 3, "label": "kind"},
    }
    run = config(tasks=tasks)
    assert feedback_words([1, 4.5, 2], run) == "like stars 4.5 kind 2"
    assert feedback_words([0, np.nan, np.nan], run) == "no like"
    assert feedback_words([np.nan, np.nan, np.nan], run) == ""
    assert feedback_words([0], behaviours()) == ""
