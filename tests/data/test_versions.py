"""Tables of items and users whose rows hold from a time on."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.config import Run, Table
from mtrec_ray.data.features.attributes import read_tables
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.tables import read_entities
from mtrec_ray.data.reading.versions import Versions
from mtrec_ray.errors import ConfigError, DataError
from tests.data.by_hand import SECOND, config
from tests.data.test_prepare import requests

START = 1_600_000_000


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=20),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-2, 12)), max_size=20),
)
def test_the_version_at_a_time_by_its_definition(rows: list[tuple[str, int]], asked: list[tuple[str, int]]) -> None:
    versions = Versions(pa.array([key for key, _ in rows], pa.string()), np.array([t for _, t in rows], dtype=np.int64))
    found = versions.at(
        pa.array([key for key, _ in asked], pa.string()), np.array([t for _, t in asked], dtype=np.int64)
    )
    expected = []
    for key, time in asked:
        valid = [(since, -place) for place, (name, since) in enumerate(rows) if name == key and since <= time]
        expected.append(-max(valid)[1] if valid else -1)
    assert found.tolist() == expected


ITEMS = """id,title,topic,price,since
7,new seven,b,9,{0}
7,old seven,a,1,{1}
8,eight,a|b,2,{1}
7,again new seven,b,9,{0}
9,nine,c,3,{2}
"""
USERS = "id,country,since\n1,no,{1}\n1,se,{0}\n"


def write(rows: list[tuple[Any, ...]]) -> None:
    times = START + 50, START, START + 1000
    Path("items.csv").write_text(ITEMS.format(*times))
    Path("users.csv").write_text(USERS.format(*times))
    lines = ["user,item,time,like", *(f"{u},{i},{START + t},{like}" for u, i, t, like in rows)]
    Path("log.csv").write_text("\n".join(lines) + "\n")


def run_of(**parts: Any) -> Run:
    topic = {"column": "topic", "separator": "|", "min_count": 1}
    items = {"path": "items.csv", "key": "id", "text": "{title}", "categories": [topic], "numbers": ["price"]}
    users = {
        "path": "users.csv",
        "key": "id",
        "categories": [{"column": "country", "min_count": 1}],
        "valid_from": "since",
    }
    settings = {"data__items": {**items, "valid_from": "since"}, "data__users": users, "features__aggregates": []}
    settings |= {
        "history": {"event_tokens": 32, "candidate_tokens": 32},
        "backbone": {"name": "nano", "vocab_size": 300},
    }
    return config(**{**settings, **parts})


def test_a_table_has_a_row_per_key_and_time() -> None:
    write([])
    run = run_of()
    table = read_entities(Table.model_validate(run.data.items), "data.items")
    assert (table.text, table.duplicates) == (["new seven", "old seven", "eight", "nine"], 1)
    times = np.array([START - 1, START, START + 49, START + 50, START + 60], dtype=np.int64) * SECOND
    assert table.lookup(["7"] * 5, times).tolist() == [-1, 1, 1, 0, 0]
    assert table.lookup(["7", "8", "6"]).tolist() == [0, 2, -1], "without a time the latest"


def test_candidates_take_what_held_at_their_time_and_events_what_held_at_theirs() -> None:
    rows = [(1, 7, 10, 1), (1, 8, 20, 0), (1, 7, 49, 0), (1, 7, 50, 1), (1, 9, 60, 0), (1, 7, 70, 1)]
    write(rows + [(2, 8, t, t % 2) for t in range(100, 130)])
    run = run_of(split={"train_until": START + 200, "valid_until": START + 200})
    prepared = prepare(run, serial_tasks)
    tables = read_tables(run)
    assert tables.items is not None
    (mine,) = [request for request in requests(prepared, "train") if request["user"] == "1"]
    names = [number.name for number in prepared.manifest.numbers]
    prices = np.reshape(mine["numbers"], (6, -1))[:, names.index("price")]
    np.testing.assert_equal(prices, [1, 2, 1, 9, np.nan, 9])
    topic, country = (
        next(entry for entry in prepared.manifest.categories if entry.name == n) for n in ("topic", "country")
    )
    codes = np.reshape(mine["categories"], (6, -1))
    topics = codes[:, topic.offset : topic.offset + topic.width]
    assert topics[0].tolist() == topics[2].tolist() != topics[3].tolist() == topics[5].tolist()
    assert topics[4].tolist() == [-1, -1], "the table knows item 9 from later on only"
    countries = codes[:, country.offset].tolist()
    assert countries[:3] == [countries[0]] * 3 != countries[3:] == [countries[3]] * 3

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{prepared.path}/tokenizer")

    def texts(ids: list[int], ends: list[int]) -> list[str]:
        return [tokenizer.decode(ids[a:b]).strip() for a, b in zip([0, *ends[:-1]], ends, strict=True)]

    shown = texts(mine["candidate_ids"], mine["candidate_ends"])
    assert [shown[i] for i in (0, 1, 2, 3, 5)] == ["old seven", "eight", "old seven", "new seven", "new seven"]
    history = texts(mine["history_ids"], mine["history_ends"])
    assert history == ["like old seven", "no like eight", "no like old seven", "like new seven", "no like"]


def test_versions_from_after_the_train_period_teach_the_tokenizer_nothing() -> None:
    rows = [(u, 7, t, t % 2) for u in range(3) for t in range(40)] + [(1, 7, 60, 1), (2, 7, 61, 0)]
    write(rows)
    split = {"train_until": START + 45, "valid_until": START + 61}
    before = prepare(run_of(split=split), serial_tasks)
    Path("items.csv").write_text(Path("items.csv").read_text().replace("new seven", "zyxw zyxw zyxw"))
    after = prepare(run_of(split=split), serial_tasks)
    assert before.path != after.path
    assert (
        Path(before.path, "tokenizer/tokenizer.json").read_text()
        == Path(after.path, "tokenizer/tokenizer.json").read_text()
    )


def test_a_table_whose_rows_hold_forever_is_one_without_times() -> None:
    write([(u, i, t, (t + i) % 2) for u in range(4) for i in (7, 8, 9) for t in range(5)])
    Path("items.csv").write_text(
        "id,title,topic,price,since\n" + "".join(f"{i},t {i},a,{i},1971-06-01\n" for i in (7, 8, 9))
    )
    items = {"path": "items.csv", "key": "id", "text": "{title}", "categories": ["topic"], "numbers": ["price"]}
    plain = prepare(run_of(data__items=items, data__users=None), serial_tasks)
    versioned = {**items, "valid_from": "since", "time_unit": "iso"}
    timed = prepare(run_of(data__items=versioned, data__users=None), serial_tasks)
    for split in ("train", "valid", "test"):
        assert str(requests(plain, split)) == str(requests(timed, split))


def test_a_row_without_a_time_is_quarantined_and_a_missing_column_refused() -> None:
    write([(1, 7, 0, 0)])
    Path("users.csv").write_text("id,country,since\n1,no,\n2,se,1600000000\n")
    users = read_tables(run_of()).users
    assert users is not None
    assert users.keys.to_pylist() == ["2"]
    assert [(row.row, row.reason) for _, row in users.bad] == [(1, "column 'since' is not a time in unit 's'")]
    with pytest.raises(DataError, match=r"data\.users\.valid_from: no column 'sinse' .*Did you mean 'since'"):
        read_tables(run_of(data__users={"path": "users.csv", "key": "id", "valid_from": "sinse"}))


def test_a_function_does_not_rewrite_texts_that_change() -> None:
    from mtrec_ray.data.streaming.augment.item_text import AUGMENTERS, publish_texts

    write([(1, 7, 0, 0)])
    if "as_is" not in AUGMENTERS:
        AUGMENTERS.register("as_is")(lambda item, text: [text])
    with pytest.raises(ConfigError, match=r"augment\.item_text\.function: the texts of data\.items change with time"):
        publish_texts(run_of(augment={"item_text": {"function": "as_is"}}), "nowhere")
