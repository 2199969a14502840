"""Hashed ids: which rows they have, and how many share theirs."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mtrec_ray.config import Features, Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.fitting.fitted_files import id_collisions
from mtrec_ray.data.id_hashes import collision_notes, collisions, hashed_rows, table_collisions
from mtrec_ray.data.prepare import Prepared, prepare
from mtrec_ray.data.preparing.fingerprint import fingerprint
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.requests.ids import hash_ids
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.errors import ConfigError
from tests.batches import make_run
from tests.data.by_hand import config


def rows_of(ids: list[str], rows: int, hashes: int) -> list[tuple[int, ...]]:
    found = hashed_rows(torch.from_numpy(hash_ids(ids, "user")), rows, hashes)
    return [tuple(of) for of in found.tolist()]


def by_hand(ids: list[str], rows: int, hashes: int) -> tuple[float, float]:
    """Shares of the ids that have some row, and all rows, in common with another: pair by pair."""
    own = rows_of(ids, rows, hashes)
    some = [any(set(own[i]) & set(own[j]) for j in range(len(ids)) if j != i) for i in range(len(ids))]
    alike = Counter(own)
    return sum(some) / len(ids), sum(alike[of] > 1 for of in own) / len(ids)


@pytest.mark.parametrize(("rows", "hashes", "n"), [(50, 1, 30), (20, 2, 30), (200, 2, 40), (30, 3, 12), (3, 4, 8)])
def test_collisions_are_those_counted_pair_by_pair(rows: int, hashes: int, n: int) -> None:
    ids = [f"user {i}" for i in range(n)]
    found = collisions(hash_ids(ids, "user"), "user", rows, hashes)
    assert (found.some, found.all) == pytest.approx(by_hand(ids, rows, hashes))
    assert (found.of, found.ids, found.rows, found.hashes) == ("user", n, rows, hashes)


def test_planted_collisions() -> None:
    """Two ids with the same two rows, one that shares one of them, and one that shares nothing."""
    rows = 40
    own = {name: of for name in (f"u{i}" for i in range(3000)) for of in rows_of([name], rows, 2) if of[0] != of[1]}
    first = next(iter(own))
    twin = next(name for name, of in own.items() if of == own[first] and name != first)
    half = next(name for name, of in own.items() if len({*of} & {*own[first]}) == 1)
    alone = next(name for name, of in own.items() if not {*of} & {*own[first], *own[half]})
    found = collisions(hash_ids([first, twin, half, alone], "user"), "user", rows, 2)
    assert (found.some, found.all) == (0.75, 0.5)
    apart = collisions(hash_ids([first, half, alone], "user"), "user", rows, 2)
    assert (apart.some, apart.all) == pytest.approx((2 / 3, 0))


@pytest.mark.parametrize(("rows", "hashes"), [(1000, 1), (1000, 2), (4000, 3), (60, 2)])
def test_what_is_expected_is_the_mean_of_what_is_found(rows: int, hashes: int) -> None:
    found = [
        collisions(hash_ids([f"{draw}/{i}" for i in range(300)], "item"), "item", rows, hashes) for draw in range(40)
    ]
    assert np.mean([f.some for f in found]) == pytest.approx(found[0].expected_some, abs=0.012)
    assert np.mean([f.all for f in found]) == pytest.approx(found[0].expected_all, abs=0.012)
    assert found[0].expected_all <= found[0].expected_some


def test_expected_by_hand() -> None:
    found = collisions(hash_ids(["a", "b", "c"], "user"), "user", 10, 2)
    assert found.expected_some == pytest.approx(1 - 0.8**4)  # of two others with two rows each, all beside one's own
    assert found.expected_all == pytest.approx(1 - (1 - 2 / 100) ** 2)
    assert [collisions(hash_ids(ids, "user"), "user", 5, 2).some for ids in ([], ["a"])] == [0.0, 0.0]


def test_rows_are_spread_evenly_and_independently() -> None:
    ids = torch.from_numpy(hash_ids([str(i) for i in range(20_000)], "user"))
    rows = hashed_rows(ids, 100, 2)
    assert tuple(rows.shape) == (20_000, 2)
    assert torch.equal(rows, rows.sort(dim=1).values)
    counts = torch.bincount(rows.flatten(), minlength=100)
    assert len(counts) == 100
    assert float(((counts - 400.0) ** 2 / 400).sum()) < 160  # chi square with 99 degrees: mean 99, deviation 14
    assert float((rows[:, 0] == rows[:, 1]).float().mean()) == pytest.approx(0.01, abs=0.004)
    assert set(hashed_rows(ids[:50], 100, 1).flatten().tolist()) <= set(range(100))


def test_hashes_are_the_same_everywhere_and_differ_between_users_and_items() -> None:
    assert hash_ids(["u1", "é", "u1"], "user").tolist() == [
        -9004997049487820200,
        4072602829918440254,
        -9004997049487820200,
    ]
    assert hash_ids(["u1"], "item") != hash_ids(["u1"], "user")
    assert hash_ids(["u1"], "user").dtype == np.int64


def test_what_is_told() -> None:
    run = make_run("features={ids: hashed, user_rows: 20, item_rows: 1000, hashes: 3}")
    users, items = [f"u{i}" for i in range(30)], [f"i{i}" for i in range(9)]
    entries = table_collisions(users, items, run)
    assert [(e.of, e.ids, e.rows, e.hashes) for e in entries] == [("user", 30, 20, 3), ("item", 9, 1000, 3)]
    note = collision_notes(entries)[1]
    assert note.startswith("9 items in 1,000 rows, 3 for each: ")
    assert f"{entries[1].some:.2%} share some of them with another ({entries[1].expected_some:.2%} expected)" in note
    assert table_collisions(users, items, make_run()) == []


@pytest.mark.parametrize("key", ["user_rows", "item_rows", "hashes"])
def test_settings_of_hashed_tables_are_refused_for_exact_ones(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} does nothing with ids: exact; set ids: hashed, or remove {key}"):
        make_run(f"features.{key}=3")
    assert getattr(make_run("features.ids=hashed", f"features.{key}=3").features, key) == 3
    assert Features().ids == "exact"


def prepared_run(**features: Any) -> Run:
    """A log of six users and five items, three of which appear in the last rows alone."""
    rows = [f"u{n % 3},i{n % 4},{10**9 + 60 * n},{n % 2}" for n in range(60)]
    rows += [f"u{n % 6},i{n % 5},{10**9 + 60 * n},{n % 2}" for n in range(60, 100)]
    if not Path("log.csv").exists():
        Path("log.csv").write_text("user,item,time,like\n" + "\n".join(rows) + "\n")
    parts = {f"features__{name}": value for name, value in features.items()}
    return config(**{"data__buckets": 2, "features__aggregates": [], "split": {"valid": 0.2, "test": 0.2}, **parts})


def batches(prepared: Prepared) -> Iterator[tuple[list[dict[str, Any]], Batch]]:
    for shards in prepared.manifest.shards.values():
        for shard in shards:
            table = pq.read_table(f"{prepared.path}/{shard.path}")
            yield table.to_pylist(), Collator(prepared.manifest)(table)


def test_requests_hold_the_hashes_of_all_ids_known_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(prepared_run(ids="hashed", item_rows=7), serial_tasks)
    unknown = 0
    for requests, batch in batches(prepared):
        users = [request["user"] for request in requests for _ in request["item"]]
        items = [item for request in requests for item in request["item"]]
        assert batch.user_hash.tolist() == hash_ids(users, "user").tolist()
        assert batch.item_hash.tolist() == hash_ids(items, "item").tolist()
        unknown += int((batch.user_index == 0).sum())
        named = {int(i): int(h) for i, h in zip(batch.item_index, batch.item_hash, strict=True) if i}
        known = [(int(i), int(h)) for i, h in zip(batch.event_item, batch.event_hash, strict=True) if int(i) in named]
        assert known
        assert all(named[i] == h for i, h in known)
    assert unknown, "planted: users that train does not know"
    entries = prepared.manifest.id_collisions
    assert [(e.of, e.ids, e.rows) for e in entries] == [("user", 3, 100_000), ("item", 4, 7)]
    assert entries == table_collisions(
        ["u0", "u1", "u2"], ["i0", "i1", "i2", "i3"], prepared_run(ids="hashed", item_rows=7)
    )


def test_prepared_data_serves_hashed_tables_of_any_size_and_exact_ones_have_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hashed, larger, exact = (
        fingerprint(prepared_run(**features))
        for features in ({"ids": "hashed"}, {"ids": "hashed", "user_rows": 9, "item_rows": 9, "hashes": 3}, {})
    )
    assert hashed == larger != exact
    prepared = prepare(prepared_run(ids="hashed"), serial_tasks)
    run = prepared_run(ids="hashed", user_rows=9, item_rows=9, hashes=3)
    at_first, found = prepared.manifest.id_collisions, id_collisions(prepared.path, prepared.manifest, run)
    assert found == table_collisions(["u0", "u1", "u2"], ["i0", "i1", "i2", "i3"], run) != at_first
    assert id_collisions(prepared.path, prepared.manifest, prepared_run(ids="hashed")) == at_first
    for requests, batch in batches(prepare(prepared_run(), serial_tasks)):
        assert not {"user_hash", "item_hash", "event_hash"} & requests[0].keys()
        assert len(batch.user_hash) == len(batch.item_hash) == len(batch.event_hash) == 0
