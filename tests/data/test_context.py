"""Context columns from a log by hand to the batch: values, quarantine, vocabularies, queries."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.features.attributes import read_tables
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.fitting.tokenizer import make_tokenizer
from mtrec_ray.data.manifest import FORMAT, Manifest
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.reading.logs import check_log, find_files
from mtrec_ray.data.requests.splits import Key, TimeSplit
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.shards import Shards, load_manifest
from mtrec_ray.errors import DataError
from tests.data.by_hand import SECOND, behaviours, config
from tests.data.encoding import encoded
from tests.data.log_files import read, reasons

START = 1_600_000_000
COLUMNS = {
    "row_weight": "weight",
    "sampling_rate": "kept",
    "position": "place",
    "propensity": "chance",
    "policy": "who",
    "domain": "where",
    "query": "asked",
}
ALL = {f"data__columns__{name}": column for name, column in COLUMNS.items()}
HEADER = "user,item,time,like,part,weight,kept,place,chance,who,where,asked"
LOG = f"""{HEADER}
1,10,{START},1,train,1,1,0,0.5,ranker,home,
1,11,{START},0,train,2.5,0.1,1,,ranker,search,red shoes
1,12,{START + 9},0,train,0,1,,1e-3,random, home ,
2,10,{START},1,train,1,1,7,1,,,
2,11,{START + 9},1,valid,1,1,0,1,ranker,home,
2,12,{START + 19},0,test,1,1,3,,explorer,mail,
3,10,{START},0,test,1,1,,,random,search,blue
"""
NAN = float("nan")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_of(log: str, **parts: Any) -> Run:
    Path("log.csv").write_text(log)
    settings = {"data__buckets": 2, "features__aggregates": [], "split": {"by": "column", "column": "part"}}
    return config(**{**settings, **ALL, **parts})


def batches(run: Run) -> tuple[str, Manifest, dict[str, Batch]]:
    """The prepared folder, its manifest, and each split as one batch."""
    path, manifest = (prepared := prepare(run, serial_tasks)).path, prepared.manifest
    collate = Collator(manifest)
    shards = {split: Shards(path, manifest, split) for split in manifest.shards}
    return path, manifest, {s: collate(part.rows(np.arange(part.num_requests))) for s, part in shards.items()}


def by_row(batch: Batch, values: Any) -> dict[int, Any]:
    """Row number in the file -> value."""
    rows = batch.row_ids.numpy() & ((1 << ROW_BITS) - 1)
    return dict(sorted(zip(rows.tolist(), values.tolist(), strict=True)))


def test_what_the_log_says_arrives_in_the_batch() -> None:
    _, manifest, found = batches(run_of(LOG))
    assert manifest.context == ["row_weight", "sampling_rate", "position", "propensity"]
    batch = found["train"]
    expected = [[1, 1, 0, 0.5], [2.5, np.float32(0.1), 1, NAN], [0, 1, NAN, np.float32(1e-3)], [1, 1, 7, 1]]
    np.testing.assert_array_equal(list(by_row(batch, batch.context).values()), expected)
    place = by_row(batch, batch.context[:, manifest.context.index("position")])
    np.testing.assert_array_equal(list(place.values()), [0, 1, NAN, 7])


def test_domains_and_policies_are_indices_fitted_on_train_rows_alone() -> None:
    _, manifest, found = batches(run_of(LOG))
    assert manifest.domains == ["", "home", "search"]  # the more frequent first; ` home ` is `home`; no `mail`
    assert manifest.policies == ["", "ranker", "random"]
    train, test = found["train"], found["test"]
    assert by_row(train, train.domain) == {1: 1, 2: 2, 3: 1, 4: 0}
    assert by_row(train, train.policy) == {1: 1, 2: 1, 3: 2, 4: 0}
    assert by_row(test, test.domain) == {6: 0, 7: 2}
    assert by_row(test, test.policy) == {6: 0, 7: 2}


def test_rows_keep_the_names_that_train_rows_lack() -> None:
    path, manifest, _ = batches(run_of(LOG))
    rows = Shards(path, manifest, "test").rows(np.arange(2), ["row_id", "policy_name", "domain_name"]).to_pylist()
    rows.sort(key=lambda row: row["row_id"])
    assert [(row["policy_name"], row["domain_name"]) for row in rows] == [
        (["explorer"], ["mail"]),
        (["random"], ["search"]),
    ]


def test_the_request_of_each_candidate_is_told() -> None:
    log = LOG.replace("valid", "train").replace("test", "train")
    extra = f"9,10,{START},1,valid,1,1,,,,,\n9,11,{START},1,test,1,1,,,,,\n"
    path, manifest, found = batches(run_of(log + extra))
    batch = found["train"]
    shards = Shards(path, manifest, "train")
    users = shards.rows(np.arange(shards.num_requests), ["user"])["user"].to_pylist()
    assert sorted(users) == ["1", "2", "3"]
    user = {number: users[request] for number, request in by_row(batch, batch.request).items()}
    assert user == {1: "1", 2: "1", 3: "1", 4: "2", 5: "2", 6: "2", 7: "3"}


def test_without_such_columns_there_is_no_context_and_no_index() -> None:
    parts = dict.fromkeys(ALL)
    path, manifest, found = batches(run_of(LOG, **parts))
    assert (manifest.context, manifest.domains, manifest.policies) == ([], [""], [""])
    assert found["train"].context.shape == (4, 0)
    assert not found["train"].domain.any()
    assert not found["train"].policy.any()
    assert not {"policy_name", "domain_name"} & set(Shards(path, manifest, "train").schema().names)


def test_the_order_of_the_numbers_is_fixed_whatever_the_log_has() -> None:
    parts = {"data__columns__row_weight": None, "data__columns__propensity": None}
    _, manifest, found = batches(run_of(LOG, **parts))
    assert manifest.context == ["sampling_rate", "position"]
    assert by_row(found["test"], found["test"].context[:, 1])[6] == 3


@pytest.mark.parametrize(
    ("name", "cell", "reason"),
    [
        ("weight", "", "column 'weight' is empty; data.columns.row_weight must be a number of at least 0"),
        ("weight", "-1", "column 'weight' is below 0; data.columns.row_weight must be a number of at least 0"),
        ("weight", "inf", "column 'weight' is not finite; data.columns.row_weight must be"),
        ("weight", "1e39", "column 'weight' is not finite; data.columns.row_weight must be"),
        ("weight", "much", "column 'weight' is not a number"),
        ("kept", "", "column 'kept' is empty; data.columns.sampling_rate must be a number above 0 and at most 1"),
        ("kept", "0", "column 'kept' is 0; data.columns.sampling_rate must be a number above 0 and at most 1"),
        ("kept", "10", "column 'kept' is above 1; data.columns.sampling_rate must be"),
        ("place", "-1", "column 'place' is below 0; data.columns.position must be a whole number from 0 to 16777215"),
        ("place", "1.5", "column 'place' is not whole; data.columns.position must be"),
        ("place", "16777216", "column 'place' is above 16777215; data.columns.position must be"),
        ("chance", "0", "column 'chance' is 0; data.columns.propensity must be a number above 0 and at most 1, or"),
        ("chance", "1e-50", "column 'chance' is 0; data.columns.propensity must be"),
        ("chance", "1.01", "column 'chance' is above 1; data.columns.propensity must be"),
    ],
)  # fmt: skip
def test_cells_that_cannot_be_are_quarantined_with_what_was_found_and_expected(
    name: str, cell: str, reason: str
) -> None:
    lines = LOG.splitlines()
    cells = lines[2].split(",")
    cells[HEADER.split(",").index(name)] = cell
    events = read(run_of("\n".join([lines[0], lines[1], ",".join(cells), *lines[3:]]) + "\n"))
    ((row, found),) = reasons(events)
    assert row == 2
    assert found.startswith(reason)
    assert events.table.num_rows == 6


@pytest.mark.parametrize("name", ["place", "chance", "who", "where", "asked"])
def test_what_may_be_unknown_may_be_empty(name: str) -> None:
    lines = LOG.splitlines()
    cells = lines[1].split(",")
    cells[HEADER.split(",").index(name)] = ""
    assert reasons(read(run_of("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n"))) == []


def test_json_lines_and_numbers_of_other_types() -> None:
    run = run_of(LOG, data__logs="log.jsonl")
    row = {"user": 1, "item": 2, "time": START, "like": 1, "part": "train", "weight": 2, "kept": True, "place": 4}
    Path("log.jsonl").write_text(json.dumps({**row, "where": 7}) + "\n" + json.dumps({**row, "place": "4"}) + "\n")
    table = read(run).table
    assert table["context.row_weight"].to_pylist() == [2, 2]
    assert table["context.position"].to_pylist() == [4, 4]
    assert table["context.domain"].to_pylist() == ["7", None]
    assert table["context.propensity"].is_null(nan_is_null=True).to_pylist() == [True, True]


def test_an_absent_column_is_refused_with_its_path() -> None:
    run = run_of(LOG, data__columns__propensity="chances")
    with pytest.raises(DataError, match=r"data\.columns\.propensity: no column 'chances' .*Did you mean 'chance'\?"):
        check_log(find_files(run.data), run)


BEHAVIOURS = f"""user,item,time,type,weight,place,where
1,10,{START},VIEW,2,3,home
1,10,{START + 5},LIKE,,,liked page
1,11,{START + 7},VIEW,,4,home
1,11,{START + 8},LIKE,-7,-1,
1,12,{START + 9},VIEW,1,,mail
"""


def test_in_behaviours_only_what_a_candidate_s_own_row_says_counts() -> None:
    Path("log.csv").write_text(BEHAVIOURS)
    columns = {f"data__columns__{name}": COLUMNS[name] for name in ("row_weight", "position", "domain")}
    run = behaviours(**columns, data__max_bad_share=1, split__by="user", data__buckets=1)
    events = read(run)
    assert [reason[:26] for _, reason in reasons(events)] == ["column 'weight' is empty; d"[:26]]
    path = prepare(run, serial_tasks).path
    manifest = load_manifest(path)
    (request,) = Shards(path, manifest, "train").rows(np.arange(1)).to_pylist()
    assert request["item"] == ["10", "12"]
    np.testing.assert_array_equal(np.reshape(request["context"], (2, 2)), [[2, 3], [1, NAN]])
    assert request["domain_name"] == ["home", "mail"]


# Queries: texts of candidates, not of events.

ITEMS = "item,title\n7,red fox\n8,blue whale\n9,\n"
NANO = {"name": "nano", "vocab_size": 300}


@pytest.fixture(name="items")
def _items() -> dict[str, str]:
    Path("items.csv").write_text(ITEMS)
    return {"path": os.path.abspath("items.csv"), "key": "item", "text": "{title}"}


def asked(number: int, item: int, query: str | None, user: int = 1) -> dict[str, Any]:
    return {"user": str(user), "item": str(item), "time": number * 100, "like": 1, "query": query, "row_id": number}


QUERIES = [asked(0, 7, "warm coat"), asked(1, 8, None), asked(2, 9, "warm coat"), asked(3, 8, "warm coat")]


def with_queries(items: dict[str, str], **parts: Any) -> Run:
    settings = {"data__items": items, "backbone": NANO, "features__aggregates": [], "data__columns__query": "query"}
    return config(**{**settings, **parts})


def texts(tokenizer: Any, ids: list[int], ends: list[int]) -> list[str]:
    return [tokenizer.decode(ids[a:b]).strip() for a, b in itertools.pairwise([0, *ends])]


def test_a_query_stands_before_the_candidate_s_text_and_not_in_the_history(items: dict[str, str]) -> None:
    result, tokenizer, _ = encoded(with_queries(items), QUERIES)
    (request,) = result.requests["train"].to_pylist()
    candidates = texts(tokenizer, request["candidate_ids"], request["candidate_ends"])
    assert candidates == ["warm coat red fox", "blue whale", "warm coat", "warm coat blue whale"]
    history = texts(tokenizer, request["history_ids"], request["history_ends"])
    assert history == ["like red fox", "like blue whale", "like"]
    (document,) = result.documents["ids"].to_pylist()
    assert "warm" not in tokenizer.decode(document)


def test_without_a_query_the_tokens_are_as_without_the_column(items: dict[str, str]) -> None:
    rows = [{**row, "query": None} for row in QUERIES]
    ours, _, _ = encoded(with_queries(items), rows)
    theirs, _, _ = encoded(with_queries(items, data__columns__query=None), rows)
    found = ours.requests["train"].drop_columns(["query"])
    assert json.dumps(found.to_pylist()) == json.dumps(theirs.requests["train"].to_pylist())


def test_a_long_query_leaves_half_of_the_tokens_to_the_item(items: dict[str, str]) -> None:
    query = "an endless query of many words"
    rows = [asked(0, 7, query), asked(1, 8, query)]
    run = with_queries(items, history={"candidate_tokens": 8}, backbone={"name": "nano", "vocab_size": 260})
    result, tokenizer, _ = encoded(run, rows)
    (request,) = result.requests["train"].to_pylist()
    first, second = np.split(np.array(request["candidate_ids"]), 2)
    assert [len(first), len(second)] == [8, 8]
    assert first[:4].tolist() == second[:4].tolist() == tokenizer(query, add_special_tokens=False)["input_ids"][:4]
    assert [tokenizer.decode(part[4:]) for part in (first, second)] == [" red", " blu"]
    assert result.counts["cut_candidates"] == 2


def test_a_query_cut_within_a_character_ends_before_it(items: dict[str, str]) -> None:
    run = with_queries(items, backbone={"name": "nano", "vocab_size": 260})
    tokenizer = make_tokenizer(run, read_tables(run), ["7"], [])
    assert tokenizer is not None
    size = len(tokenizer("日", add_special_tokens=False)["input_ids"])
    assert size == 4  # a space before it, and three bytes
    assert TextEncoder(tokenizer).shortened(["日本語", "日"], size + 2)[0] == ["日", "日"]


def test_the_tokenizer_learns_the_queries_of_train_rows(items: dict[str, str]) -> None:
    rows = [asked(0, 7, "warm warm warm"), asked(90, 8, "cold cold cold")]
    run = with_queries(items, backbone={"name": "nano", "vocab_size": 280})
    result, tokenizer, _ = encoded(run, rows, TimeSplit(Key(50 * 100 * SECOND), Key(60 * 100 * SECOND)))
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (" warm", " cold")]
    assert lengths[0] < lengths[1]
    assert result.requests["test"].num_rows == 1


def test_a_folder_of_another_version_is_refused_by_its_format() -> None:
    path, manifest, _ = batches(run_of(LOG))
    older = {**json.loads(manifest.to_json()), "format": 2}
    del older["context"]
    Path(path, "manifest.json").write_text(json.dumps(older))
    with pytest.raises(DataError, match=rf"context field required.*expected format {FORMAT}.*mtrec prepare"):
        load_manifest(path)
