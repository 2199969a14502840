"""Columns of vectors: how they are read, refused, stored once, and looked up for each candidate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import Augment, Run, Table
from mtrec_ray.data.catalogue import load_catalogue
from mtrec_ray.data.inspection.inspect import propose_config
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading import tables
from mtrec_ray.data.reading.tables import EntityTable, read_entities
from mtrec_ray.data.reading.vectors import with_sizes
from mtrec_ray.data.requests.ids import hash_ids
from mtrec_ray.data.streaming.augment.augmenter import Augmenter
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.data.vectors import load_vectors
from mtrec_ray.errors import ConfigError, DataError, UserError
from tests.data.by_hand import config
from tests.data.log_files import read

START = 1_600_000_000
IMAGES: list[Any] = [[0.5, -1.0, 2.0, 0.25], None, [3.0, 0.0, 0.0, 0.125], []]
READ = [IMAGES[0], [np.nan] * 4, IMAGES[2], [np.nan] * 4]
ARROW = {
    "list": pa.list_(pa.float64()),
    "large_list": pa.large_list(pa.float32()),
    "fixed": pa.list_(pa.float32(), 4),
    "half": pa.list_(pa.float16()),
    "fixed_half": pa.list_(pa.float16(), 4),
}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_items(kind: str, images: list[Any] = IMAGES) -> str:
    ids = [str(i) for i in range(len(images))]
    if kind == "jsonl":
        lines = [json.dumps({"id": i, "image": image}) for i, image in zip(ids, images, strict=True)]
        Path("items.jsonl").write_text("\n".join(lines) + "\n")
        return "items.jsonl"
    if kind == "csv":
        cells = ["" if image is None else f'"{json.dumps(image)}"' for image in images]
        Path("items.csv").write_text(
            "id,image\n" + "".join(f"{i},{cell}\n" for i, cell in zip(ids, cells, strict=True))
        )
        return "items.csv"
    values = [None if image == [] and "fixed" in kind else image for image in images]
    if "half" in kind:
        values = [None if image is None else np.array(image, np.float16) for image in values]
    pq.write_table(pa.table({"id": ids, "image": pa.array(values, ARROW[kind])}), "items.parquet")
    return "items.parquet"


def read_items(path: str, **parts: Any) -> EntityTable:
    return read_entities(Table.model_validate({"path": path, "key": "id", "vectors": ["image"], **parts}))


@pytest.mark.parametrize("kind", ["csv", "jsonl", *ARROW])
def test_every_format_gives_the_same_vectors(kind: str) -> None:
    table = read_items(write_items(kind))
    np.testing.assert_array_equal(table.vectors["image"], np.array(READ, np.float32))
    assert (table.vectors["image"].dtype, table.bad) == (np.float32, [])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "list"])
def test_cells_that_are_no_such_vectors_are_bad_rows(kind: str) -> None:
    """The first vector says how long the others are, or the config does."""
    images = [None, [1, 2, 3, 4], [1.0, 2.0, 3.0], [1, 2, float("inf"), 4], [1, 2, None, 4], [1e300, 2, 3, 4], [4] * 4]
    path = write_items(kind, images)
    table = read_items(path)
    assert table.keys.to_pylist() == ["0", "1", "6"]
    assert [(Path(file).name, row.row) for file, row in table.bad] == [(path, row) for row in (3, 4, 5, 6)]
    reasons = [row.reason for _, row in table.bad]
    assert reasons[0] == "column 'image' holds 3 numbers, not 4 as the others"
    assert reasons[1:] == ["column 'image' holds numbers that are missing or not finite"] * 3
    assert len(read_items(path, vectors=[{"column": "image", "dim": 5}]).bad) == 6


@pytest.mark.parametrize("cell", ["0.5", "[0.5", "a", '[""0.5"", 1, 2, 3]', "[true, 1, 2, 3]", '{""a"": 1}'])
def test_text_that_is_no_list_of_numbers_is_a_bad_row(cell: str) -> None:
    Path("items.csv").write_text(f'id,image\n0,"[0.5, 1, 2, 3]"\n1,"{cell}"\n')
    table = read_items("items.csv")
    assert (table.keys.to_pylist(), [row.row for _, row in table.bad]) == (["0"], [2])
    assert "'image' is no list of numbers" in table.bad[0][1].reason


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([None, [1.0, 2.0]], "data.items.vectors[0]: column 'image' holds 2 number(s) in row 2 of"),
        ([None, []], "data.items.vectors[0]: column 'image' holds no list of numbers in 1 file(s)"),
    ],
)
def test_columns_without_vectors_are_refused(images: list[Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        read_items(write_items("list", images))
    assert message in str(error.value)


def log(rows: list[tuple[Any, ...]], kind: pa.DataType = ARROW["list"], name: str = "log.parquet") -> None:
    """(user, item, seconds, audio)"""
    columns = [list(column) for column in zip(*rows, strict=True)]
    like = [n % 2 for n in range(len(rows))]
    times = [START + t for t in columns[2]]
    audio = pa.array(columns[3], kind)
    table = {"user": columns[0], "item": columns[1], "time": times, "like": like, "audio": audio}
    pq.write_table(pa.table(table), name)


def vector(*parts: float) -> list[float]:
    return [float(part) for part in parts]


ITEMS = {7: vector(1, 2, 3, 4, 5), 8: vector(5, 4, 3, 2, 1), 9: None}
USERS = {(1, 0): vector(1, 0, 0, 0), (1, 50): vector(0, 1, 0, 0), (2, 0): None}
"""By user and the second from which on it holds"""


def run_of(**parts: Any) -> Run:
    images = {"id": list(ITEMS), "image": list(ITEMS.values())}
    pq.write_table(pa.table(images), "items.parquet")
    graphs = {
        "id": [user for user, _ in USERS],
        "since": [START + since for _, since in USERS],
        "graph": list(USERS.values()),
    }
    pq.write_table(pa.table(graphs), "users.parquet")
    settings = {
        "data__logs": "log*.parquet",
        "data__items": {"path": "items.parquet", "key": "id", "vectors": ["image"]},
        "data__users": {"path": "users.parquet", "key": "id", "vectors": ["graph"], "valid_from": "since"},
        "data__vectors": ["audio"],
        "data__buckets": 2,
        "features__aggregates": [],
        "split": {"by": "user"},
    }
    return config(**{**settings, **parts})


def collated(prepared: Prepared) -> dict[tuple[str, str, int], list[float]]:
    """(user, item, seconds) -> what the model is given."""
    stored = load_vectors(prepared.path, prepared.manifest)
    collate = Collator(prepared.manifest, True, stored, load_catalogue(prepared.path, prepared.manifest))
    found = {}
    for shards in prepared.manifest.shards.values():
        for shard in shards:
            table = pq.read_table(f"{prepared.path}/{shard.path}")
            users = [user for user, items in zip(table["user"].to_pylist(), table["item"], strict=True) for _ in items]
            items = table["item"].combine_chunks().flatten().to_pylist()
            batch = collate(table)
            for user, item, time, row in zip(users, items, batch.times.tolist(), batch.vectors.tolist(), strict=True):
                found[user, item, time // 10**6 - START] = row
    return found


def test_a_candidate_has_the_vectors_of_its_row_its_item_and_its_user() -> None:
    nothing = [np.nan] * 4
    rows = [
        (u, i, t, None if t == 3 else vector(u, i, t, 0.5)) for u in (1, 2, 3) for i in (7, 8, 9, 6) for t in (3, 60)
    ]
    rows = [(u, i, t + i, audio) for u, i, t, audio in rows]
    log(rows)
    prepared = prepare(run_of(), serial_tasks)
    assert [(v.name, v.scope, v.offset, v.size) for v in prepared.manifest.vectors] == [
        ("audio", "log", 0, 4),
        ("image", "item", 4, 5),
        ("graph", "user", 9, 4),
    ]
    found = collated(prepared)
    assert len(found) == len(rows)
    for user, item, seconds, audio in rows:
        image = ITEMS.get(item) or [np.nan] * 5
        graph = USERS.get((user, 50 if seconds >= 50 else 0)) or USERS.get((user, 0)) or nothing
        expected = np.array([*(audio or nothing), *image, *graph], np.float32)
        np.testing.assert_array_equal(np.array(found[str(user), str(item), seconds], np.float32), expected)


def test_vectors_of_tables_are_stored_once() -> None:
    """Requests hold numbers of rows, and the file the vectors: a row for each of the table's, and one for unknown."""
    log([(u, 7 + t % 3, t, vector(0, 1, 2, 3)) for u in (1, 2) for t in range(50)])
    prepared = prepare(run_of(), serial_tasks)
    shard = pq.read_table(f"{prepared.path}/{prepared.manifest.shards['train'][0].path}")
    named = shard["item_vector"].combine_chunks().flatten().to_numpy()
    assert set(named.tolist()) == set(hash_ids(["7", "8", "9"], "item").tolist())
    assert not {"image", "graph"} & set(shard.column_names)
    items, users = (load_vectors(prepared.path, prepared.manifest)[scope] for scope in ("item", "user"))
    np.testing.assert_array_equal(items.values[1:3], [ITEMS[7], ITEMS[8]])
    assert np.isnan(items.values[[0, 3]]).all()
    assert users.values.shape == (1 + len(USERS), 4)
    assert isinstance(items.values, np.memmap), "of many items only those of a batch are read"


def test_rows_of_the_log_with_bad_vectors_are_quarantined() -> None:
    """All files have the size of the first vector of the first file that has one."""
    good, day = vector(1, 2, 3, 4), 86_400
    log([(1, 7, 0, None), (1, 8, 1, good)], name="log-1.parquet")
    log([(1, 7, day, good), (2, 7, day, good[:3]), (2, 8, day, [1.0, 2, 3, np.nan])], name="log-2.parquet")
    events = read(with_sizes(run_of()))
    assert events.table.num_rows == 3
    assert [(Path(row["file"]).name, row["row"]) for row in events.quarantine.to_pylist()] == [
        ("log-2.parquet", 2),
        ("log-2.parquet", 3),
    ]
    assert "holds 3 numbers, not 4" in events.quarantine["reason"][0].as_py()
    with pytest.raises(DataError, match="2 of 5 rows"):
        prepare(run_of(), serial_tasks)


def test_lists_of_any_kind_are_one_type_of_column() -> None:
    rows = [(u, 7, t, vector(u, t, 0.5, 1)) for u in range(6) for t in range(9)]
    log(rows[:20], name="log-1.parquet")
    log(rows[20:], ARROW["fixed"], name="log-2.parquet")
    assert len(collated(prepare(run_of(), serial_tasks))) == len(rows)
    texts = pa.array(["[0.5, 1, 2, 3]"] * (len(rows) - 20))
    pq.write_table(pq.read_table("log-2.parquet").set_column(4, "audio", texts), "log-2.parquet")
    with pytest.raises(DataError, match="column 'audio' changes its type"):
        prepare(run_of(), serial_tasks)


def test_declared_vectors_change_what_is_prepared() -> None:
    log([(u, 7 + t % 3, t, vector(u, t, 0.5, 1)) for u in range(4) for t in range(9)])
    with_all = prepare(run_of(), serial_tasks)
    without = prepare(run_of(data__vectors=[]), serial_tasks)
    assert with_all.path != without.path
    assert [v.name for v in without.manifest.vectors] == ["image", "graph"]
    assert all(np.array(row).shape == (9,) for row in collated(without).values())


def test_a_damaged_file_of_vectors_is_refused() -> None:
    log([(u, 7, t, vector(u, t, 0.5, 1)) for u in range(4) for t in range(9)])
    prepared = prepare(run_of(), serial_tasks)
    stored = load_vectors(prepared.path, prepared.manifest)["item"]
    assert stored.rows(np.append(stored.hashes[::-1], 0)).tolist() == [3, 2, 1, 0, 0]
    with pytest.raises(DataError, match=r"vectors/item.hashes.npy: the vectors of 2 of 3 candidates are not in it"):
        stored.rows(np.array([0, 1, np.iinfo(np.int64).max]))
    np.save(f"{prepared.path}/vectors/user.hashes.npy", np.zeros(3, np.int64))
    with pytest.raises(DataError, match=r"vectors/user.hashes.npy: found an array of shape \(3,\).*promises 4 hashes"):
        load_vectors(prepared.path, prepared.manifest)
    np.save(f"{prepared.path}/vectors/user.npy", np.zeros((3, 3), np.float32))
    with pytest.raises(DataError, match=r"vectors/user.npy: found an array of shape \(3, 3\)"):
        load_vectors(prepared.path, prepared.manifest)
    Path(prepared.path, "vectors/item.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"vectors/item.npy.* run `mtrec prepare` again"):
        load_vectors(prepared.path, prepared.manifest)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"data__vectors": ["sound"]}, DataError, "data.vectors[0]: no column 'sound' in"),
        ({"data__vectors": ["like"]}, DataError, "data.vectors[0]: column 'like' holds no list of numbers"),
        ({"data__vectors": ["audio", "audio"]}, ConfigError, "two vectors are called 'audio'"),
        (
            {"tasks": {"like": {"kind": "retrieval", "label": "like"}}},
            ConfigError,
            "data.vectors: 'audio' is a vector of each row of the log, which tasks of kind interest_match",
        ),
    ],
)
def test_vectors_that_nothing_could_read_are_refused(
    parts: dict[str, Any], error: type[UserError], message: str
) -> None:
    log([(u, 7, t, vector(u, t, 0.5, 1)) for u in range(4) for t in range(9)])
    with pytest.raises(error) as found:
        prepare(run_of(**parts), serial_tasks)
    assert message in str(found.value)


def test_where_all_tasks_match_vectors_of_items_and_users_are_prepared() -> None:
    log([(u, 7 + t % 3, t, vector(u, t, 0.5, 1)) for u in range(4) for t in range(9)])
    matching = {"like": {"kind": "retrieval", "label": "like", "feedback_delay": 0}}
    prepared = prepare(run_of(data__vectors=[], tasks=matching), serial_tasks)
    assert [(v.name, v.scope) for v in prepared.manifest.vectors] == [("image", "item"), ("graph", "user")]
    assert all(len(row) == 9 for row in collated(prepared).values())


def test_init_proposes_columns_of_embeddings() -> None:
    """And no other lists: whole numbers are ids of something."""
    Path("logs").mkdir()
    log([(u, 7 + t % 3, t, vector(u, t, 0.5, 1)) for u in range(4) for t in range(9)], name="logs/log.parquet")
    items = {
        "item": ["7", "8", "9"],
        "image": [[0.5] * 8] * 3,
        "topics": [[1, 2, 3, 4]] * 3,
        "shot": ["[0.5, 1, 2, 3]"] * 3,
    }
    pq.write_table(pa.table(items), "items.parquet")
    text, notes = propose_config(["logs"], items="items.parquet")
    assert "  vectors: [audio]\n" in text
    assert "    vectors: [image, shot]\n" in text
    assert "    categories: [topics]\n" in text
    assert any("['audio'] holds lists of numbers" in note for note in notes)
    columns = pq.read_table("logs/log.parquet")
    for zone, proposed in (("Europe/Oslo", True), ("Oslo", False)):
        pq.write_table(columns.append_column("tz", pa.array([zone] * columns.num_rows)), "logs/log.parquet")
        assert ("time_zone: tz" in propose_config(["logs"])[0]) == proposed


def test_a_table_in_another_order_gives_the_same_vectors_to_the_same_shards() -> None:
    log([(u, 7 + t % 3, t, vector(u, t, 0.5, 1)) for u in range(3) for t in range(9)])
    run = run_of()
    first = prepare(run, serial_tasks)
    before = collated(first)
    pq.write_table(pq.read_table("items.parquet").take([2, 1, 0]), "items.parquet")
    second = prepare(run, serial_tasks)
    assert not np.array_equal(*(load_vectors(p.path, p.manifest)["item"].values[1] for p in (first, second)))
    assert first.path != second.path
    assert first.manifest.shards == second.manifest.shards
    after = collated(second)
    assert before.keys() == after.keys()
    for key, row in before.items():
        np.testing.assert_array_equal(row, after[key])


def test_a_version_that_holds_since_another_time_is_another_one() -> None:
    """Though the same candidates see it, with the same vectors."""
    log([(u, 7 + t % 3, 5 + t, vector(u, t, 0.5, 1)) for u in range(3) for t in range(9)])
    run = run_of()
    before = collated(prepare(run, serial_tasks))
    table = pq.read_table("users.parquet")
    pq.write_table(table.set_column(1, "since", pc.add(table["since"], 1)), "users.parquet")
    after = collated(prepare(run, serial_tasks))
    assert before.keys() == after.keys()
    for key, row in before.items():
        np.testing.assert_array_equal(row, after[key])


def test_two_rows_with_one_hash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log([(u, 7 + t % 3, t, vector(u, t, 0.5, 1)) for u in range(3) for t in range(9)])
    monkeypatch.setattr(tables, "hash_ids", lambda ids, of: np.array([min(int(key), 8) for key in ids]))
    with pytest.raises(DataError, match=r"data.items: rows of '8' and '9' have the same 64-bit hash.*another id"):
        prepare(run_of(data__users=None), serial_tasks)


def test_in_training_candidates_keep_their_vectors() -> None:
    """Also where others are left out (`augment.negatives`); of row t of user u the log's vector says so."""
    log([(u, 7 + t % 3, t, vector(u, t, 0.5, 1)) for u in range(1, 4) for t in range(9)])
    prepared = prepare(run_of(), serial_tasks)
    settings, half = OrderSettings("train", 0, 2, 60, 1, True), Augmenter(Augment(negatives=0.5), 0)
    stream = StepStream.local(prepared.path, prepared.manifest, settings, augmenter=half)
    batches = [batch for step in stream.steps(0, stream.order.steps_per_epoch) for batch in step.batches]
    assert 0 < sum(b.num_candidates for b in batches) < sum(s.candidates for s in prepared.manifest.shards["train"])
    for batch in batches:
        seconds = batch.times.numpy() // 10**6 - START
        assert batch.vectors[:, 1].tolist() == seconds.tolist()
        images = [ITEMS[7 + int(t) % 3] or [np.nan] * 5 for t in seconds]
        np.testing.assert_array_equal(batch.vectors[:, 4:9].numpy().reshape(-1, 5), np.reshape(images, (-1, 5)))
