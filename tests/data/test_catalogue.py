"""The catalogue of items: what `prepare` writes for tasks that match users with items."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.catalogue import CatalogueRows, load_catalogue
from mtrec_ray.data.id_hashes import hash_ids
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing import catalogue as making
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.requests.rows import NEVER
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.vectors import load_vectors
from mtrec_ray.errors import DataError
from tests.data.by_hand import config

SECOND, START = 1_000_000, 10**9
LOG = [  # user, item, time, bought
    *((user, f"i{item}", START + 100 + 10 * item + user, int(item % 2 == 0)) for user in range(4) for item in range(6)),
    *((user, "late", START + 1000 + user, 1) for user in range(2)),
    (0, "last", START + 2000, 1),
]
ITEMS = "item,title,genre\n" + "".join(f"i{n},red shoe {n},{'a' if n % 2 else 'a|b'}\n" for n in range(6))


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text("user,item,time,bought\n" + "".join(",".join(map(str, r)) + "\n" for r in LOG))
    (tmp_path / "items.csv").write_text(ITEMS + "late,blue hat,c\nnever,green sock,b\n")


def run(**parts):
    items = {
        "path": "items.csv",
        "key": "item",
        "text": "{title}",
        "categories": [{"column": "genre", "separator": "|", "min_count": 1}],
    }
    tasks = {"next": {"kind": "retrieval", "label": "bought", "feedback_delay": 0}}
    split = {"by": "time", "train_until": START + 1000, "valid_until": START + 2000}
    return config(**{"data__buckets": 3, "data__items": items, "tasks": tasks, "split": split, **parts})


def test_every_item_of_the_log_and_of_the_table_is_there_with_what_is_known_of_it():
    prepared = prepare(run(backbone={"name": "nano", "vocab_size": 300}), serial_tasks)
    found = load_catalogue(prepared.path, prepared.manifest)
    assert found.items.to_pylist() == ["i0", "i1", "i2", "i3", "i4", "i5", "last", "late", "never"]
    assert prepared.manifest.catalogue.model_dump() == {
        "path": "catalogue.parquet",
        "items": 9,
        "in_train": 6,
        "categories": ["genre"],
    }
    seconds = [100, 110, 120, 130, 140, 150, 2000, 1000]
    assert found.first_seen.tolist() == [*((START + s) * SECOND for s in seconds), NEVER]
    assert found.shown.tolist() == [4] * 6 + [0] * 3
    assert found.positives["next"].tolist() == [4, 0, 4, 0, 4, 0, 0, 0, 0]
    assert sorted(found.index[:6].tolist()) == [1, 2, 3, 4, 5, 6]
    assert found.index[6:].tolist() == [0, 0, 0]
    a, b = found.categories[0].tolist()
    assert found.categories[:6].tolist() == [[a, b], [a, -1]] * 3
    assert found.categories[6:].tolist() == [[-1, -1], [0, -1], [b, -1]], "absent; unknown to train; known"
    lengths = found.text.lengths
    assert lengths[6] == 0, "the table lacks it"
    assert (found.item_row, found.vectors) == (None, None)
    assert (lengths[[0, 7, 8]] > 0).all()
    tokens = [found.text.values[found.text.offsets[n] : found.text.offsets[n + 1]].tolist() for n in range(6)]
    assert len({tuple(ids) for ids in tokens}) == 6


def test_an_item_exists_from_its_publication_on_or_from_when_the_log_first_mentions_it(tmp_path):
    published = {"i0": START + 50, "i1": START + 5000, "never": START + 7, "late": ""}
    rows = "".join(f"{item},{time}\n" for item, time in published.items())
    (tmp_path / "items.csv").write_text("item,published\n" + rows)
    prepared = prepare(run(data__items={"path": "items.csv", "key": "item", "published": "published"}), serial_tasks)
    found = load_catalogue(prepared.path, prepared.manifest)
    first_seen = dict(zip(found.items.to_pylist(), found.first_seen.tolist(), strict=True))
    expected = {"i0": START + 50, "i1": START + 110, "never": START + 7, "late": START + 1000}
    assert {item: first_seen[item] for item in expected} == {k: v * SECOND for k, v in expected.items()}


def test_items_name_their_stored_vectors(tmp_path):
    """Whatever the order of the table; items that it lacks name that of the unknown."""
    images = {"late": [1, 2, 3, 4], "i3": [4, 3, 2, 1], "i1": None, "never": [0, 0, 1, 2]}
    for order in (list(images), list(images)[::-1]):
        cells = "".join(f'{item},"{images[item] or ""}"\n' for item in order)
        (tmp_path / "items.csv").write_text("item,image\n" + cells)
        items = {"path": "items.csv", "key": "item", "vectors": ["image"]}
        prepared = prepare(run(data__items=items), serial_tasks)
        stored = load_vectors(prepared.path, prepared.manifest)
        found = load_catalogue(prepared.path, prepared.manifest, stored)
        assert found.vectors is stored["item"].values
        assert dict(zip(found.items.to_pylist(), found.item_row.tolist(), strict=True)) == {
            item: 1 + order.index(item) if item in order else 0
            for item in ("i0", "i1", "i2", "i3", "i4", "i5", "last", "late", "never")
        }
        for item, row in zip(found.items.to_pylist(), found.item_row, strict=True):
            np.testing.assert_array_equal(found.vectors[row], images.get(item) or [np.nan] * 4)
        assert load_catalogue(prepared.path, prepared.manifest).vectors is None, "who makes no model needs none"


def test_a_catalogue_that_does_not_name_the_vectors_it_should_is_refused(tmp_path):
    rows = "".join(f'i{n},"[{n}, 2, 3, 4]"\n' for n in range(6))
    (tmp_path / "items.csv").write_text("item,image\n" + rows)
    prepared = prepare(run(data__items={"path": "items.csv", "key": "item", "vectors": ["image"]}), serial_tasks)
    path = f"{prepared.path}/catalogue.parquet"
    pq.write_table(pq.read_table(path).drop_columns("item_row"), path)
    with pytest.raises(DataError, match=r"no column 'item_row', but the manifest promises vectors of items.*again"):
        load_catalogue(prepared.path, prepared.manifest)


def test_requests_name_items_by_hashes_which_are_rows_of_the_catalogue():
    prepared = prepare(run(), serial_tasks)
    found = load_catalogue(prepared.path, prepared.manifest)
    collate, seen = Collator(prepared.manifest, catalogue=found), 0
    for split in SPLITS:
        for shard in prepared.manifest.shards[split]:
            table = pq.read_table(f"{prepared.path}/{shard.path}")
            items = table["item"].combine_chunks().flatten()
            batch = collate(table)
            assert found.items.take(pa.array(batch.catalogue.numpy())).equals(items.cast(pa.string()))
            assert found.index[batch.event_catalogue.numpy()].tolist() == batch.event_item.tolist()
            assert len(batch.event_catalogue) == len(batch.event_time)
            seen += len(batch.event_time)
    assert seen > 0


def test_the_catalogue_is_the_same_whatever_the_buckets():
    one, several = (
        prepare(run(data__buckets=n, backbone={"name": "nano", "vocab_size": 300}), serial_tasks) for n in (1, 5)
    )
    tables = [pq.read_table(f"{prepared.path}/catalogue.parquet") for prepared in (one, several)]
    assert tables[0].equals(tables[1])
    assert one.manifest.catalogue == several.manifest.catalogue


def test_without_a_task_that_matches_there_is_none():
    prepared = prepare(run(tasks={"buys": {"label": "bought"}}), serial_tasks)
    assert prepared.manifest.catalogue is None
    assert load_catalogue(prepared.path, prepared.manifest) is None
    assert "item_hash" not in pq.read_schema(f"{prepared.path}/{prepared.manifest.shards['train'][0].path}").names


def test_without_an_item_table_items_have_neither_text_nor_categories():
    prepared = prepare(run(data__items=None, backbone={"name": "nano", "vocab_size": 300}), serial_tasks)
    found = load_catalogue(prepared.path, prepared.manifest)
    assert found.categories.shape == (8, 0)
    assert not found.text.lengths.any()


def test_a_catalogue_that_is_not_what_the_manifest_promises_is_refused(tmp_path):
    prepared = prepare(run(), serial_tasks)
    path = f"{prepared.path}/catalogue.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match=r"found 8 items, but the manifest promises 9 items.*run `mtrec prepare` again"):
        load_catalogue(prepared.path, prepared.manifest)
    (tmp_path / path).unlink()
    with pytest.raises(DataError, match=r"catalogue\.parquet: found .*promises 9 items"):
        load_catalogue(prepared.path, prepared.manifest)


def test_items_of_requests_that_the_catalogue_lacks_are_refused():
    prepared = prepare(run(), serial_tasks)
    rows = CatalogueRows(load_catalogue(prepared.path, prepared.manifest))
    last = hash_ids(["never", "i0"], "item")
    assert rows.of(last).tolist() == [8, 0]
    with pytest.raises(DataError, match=r"catalogue\.parquet: 2 of 3 items of requests are not in it"):
        rows.of(np.array([last[0], np.iinfo(np.int64).max, last[1] + 1]))


def test_two_items_with_one_hash_are_refused(monkeypatch):
    monkeypatch.setattr(making, "hash_ids", lambda ids, of: np.array([hash(item in ("i3", "late")) for item in ids]))
    with pytest.raises(DataError, match=r"items 'i0' and 'i1' have the same 64-bit hash.*another id"):
        prepare(run(), serial_tasks)


def test_parameters_of_the_kind_and_of_the_vectors_need_no_new_data():
    tasks = {"next": {"kind": "retrieval", "label": "bought", "feedback_delay": 0, "params": {"negatives": 2}}}
    assert prepare(run(tasks=tasks, matching={"dim": 8}), serial_tasks).path == prepare(run(), serial_tasks).path
