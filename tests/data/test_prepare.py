import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.prepare import load_prepared, prepare
from mtrec_ray.data.preparing.fingerprint import fingerprint
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.errors import BackboneError, ConfigError, DataError
from tests.data.by_hand import config

RNG = np.random.default_rng(5)
START = 10**9
ROWS = [
    (int(RNG.integers(12)), int(RNG.integers(15)), START + int(RNG.integers(400)) * 30, int(RNG.integers(2)))
    for _ in range(300)
]
HEADER = "user,item,time,like\n"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(rows, name="log.csv"):
    with open(name, "w") as file:
        file.write(HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows))


def small(**parts):
    return config(**{"data__buckets": 3, "features__aggregates": ["user", "item"], **parts})


def requests(prepared, split):
    shards = prepared.manifest.shards[split]
    return [row for shard in shards for row in pq.read_table(f"{prepared.path}/{shard.path}").to_pylist()]


def test_counts_shards_and_sidecars_agree():
    write(ROWS)
    prepared = prepare(small(), serial_tasks)
    manifest = prepared.manifest
    assert manifest.counts["rows_read"] == manifest.counts["candidates"] == 300
    assert [sum(s.candidates for s in manifest.shards[split]) for split in SPLITS] == [240, 30, 30]
    for split in SPLITS:
        for shard in manifest.shards[split]:
            lengths = pq.read_table(f"{prepared.path}/{shard.path.replace('.parquet', '.lengths.parquet')}")
            assert (lengths.num_rows, sum(lengths["candidates"].to_pylist())) == (shard.requests, shard.candidates)
    labels = [label for r in requests(prepared, "train") for label in r["labels"]]
    assert manifest.tasks[0].mean == pytest.approx(np.mean(labels))
    names = [number.name for number in manifest.numbers]
    numbers = np.concatenate([np.reshape(r["numbers"], (-1, len(names))) for r in requests(prepared, "train")])
    entry = manifest.numbers[names.index("item.like.mean")]
    assert entry.mean == pytest.approx(np.nanmean(numbers[:, entry.index], dtype=float))
    assert entry.std == pytest.approx(np.nanstd(numbers[:, entry.index], dtype=float))
    assert (np.diff(entry.quantiles) > 0).all()
    assert not [name for name in os.listdir("prepared") if ".tmp" in name]


def test_a_second_run_reuses_and_settings_of_the_model_do_not_matter(capsys):
    write(ROWS)
    first = prepare(small(), serial_tasks)
    before = os.stat(f"{first.path}/manifest.json").st_mtime_ns
    again = small(tasks__like__weight=3, train={"epochs": 9}, features__hidden=[8], data__max_bad_share=0.5)
    assert prepare(again, serial_tasks).path == first.path
    assert os.stat(f"{first.path}/manifest.json").st_mtime_ns == before
    assert "Prepared data found" in capsys.readouterr().err
    assert load_prepared(again) == first


@pytest.mark.parametrize(
    "change",
    [
        {"history__lag": "1h"},
        {"split__by": "user"},
        {"data__buckets": 2},
        {"features__min_count": 3},
        {"features__aggregates": ["user"]},
        {"data__columns__position": "place"},
        {"data__columns__query": "place"},
        {"tasks": {"like": {"label": "1 - like", "feedback_delay": 0}}},
        {"backbone": {"name": "nano"}},
    ],
)
def test_settings_that_change_the_data_change_the_fingerprint(change):
    write(ROWS)
    assert fingerprint(small(**change)) != fingerprint(small())


def test_another_log_changes_the_fingerprint_and_load_says_what_to_do():
    write(ROWS)
    first = fingerprint(small())
    write(ROWS[:-1])
    assert fingerprint(small()) != first
    with pytest.raises(DataError, match="Run `mtrec prepare` with the same config"):
        load_prepared(small())


@pytest.mark.parametrize("by", ["time", "user"])
def test_one_bucket_and_several_hold_the_same_requests(by):
    write(ROWS[:150], "logs-1.csv")
    write(ROWS[150:], "logs-2.csv")
    settings = {"data__logs": ["logs-1.csv", "logs-2.csv"], "split__by": by, "features__aggregates": "auto"}
    one, several = (prepare(small(**settings, data__buckets=b), serial_tasks) for b in (1, 5))
    for split in SPLITS:
        ours, theirs = (sorted(requests(p, split), key=lambda r: r["request_uid"]) for p in (one, several))
        assert json.dumps(ours) == json.dumps(theirs)
    left, right = (p.manifest.model_dump(exclude={"shards", "fingerprint", "documents"}) for p in (one, several))
    assert left == right


def test_too_many_bad_rows_stop_with_reasons_and_leave_the_quarantine():
    write([*ROWS[:90], *[("", 5, START, 1)] * 8, *[(3, 5, "soon", 1)] * 2])
    with pytest.raises(DataError) as error:
        prepare(small(), serial_tasks)
    message = str(error.value)
    assert "10 of 100 rows (10.0%) cannot be used, more than data.max_bad_share 1.0%" in message
    assert "no user (column 'user') (8)" in message
    assert "For example row 91 of log.csv" in message
    path = message.split("All of them are in '")[1].split("'")[0]
    assert pq.read_table(path).num_rows == 10
    assert not [name for name in os.listdir("prepared") if ".tmp" in name]
    prepared = prepare(small(data__max_bad_share=0.2), serial_tasks)
    assert prepared.manifest.counts["rows_quarantined"] == 10
    assert pq.read_table(f"{prepared.path}/quarantine.parquet").num_rows == 10


def test_an_empty_log_is_refused():
    write([])
    with pytest.raises(DataError, match="the log is empty"):
        prepare(small(), serial_tasks)


def test_one_candidate_is_too_few_for_a_split_by_time_but_not_by_column():
    write(ROWS[:1])
    with pytest.raises(DataError, match=r"1 candidate\(s\) are too few for a split by time"):
        prepare(small(), serial_tasks)
    prepared = prepare(small(split={"by": "user"}), serial_tasks)
    (request,) = requests(prepared, "train")
    assert request["candidate_events"] == [0]
    assert request["event_item"] == []


def test_the_split_column_must_say_something_of_every_candidate():
    with open("log.csv", "w") as file:
        file.write("user,item,time,like,part\n")
        for number, row in enumerate(ROWS):
            file.write(",".join(map(str, row)) + "," + ["train", "test", "valid"][number % 3] + "\n")
    settings = {"split": {"by": "column", "column": "part"}}
    manifest = prepare(small(**settings), serial_tasks).manifest
    assert [sum(s.candidates for s in manifest.shards[split]) for split in SPLITS] == [100, 100, 100]
    assert manifest.boundaries == {}
    with open("log.csv", "a") as file:
        file.write(f"1,1,{START},1,holdout\n")
    with pytest.raises(DataError, match="1 of 301 candidates have neither train, valid nor test in column 'part'"):
        prepare(small(**settings), serial_tasks)


def test_a_candidate_event_that_no_row_has_is_refused_with_those_found():
    with open("log.csv", "w") as file:
        file.write(f"user,item,time,type\n1,2,{START},view\n1,2,{START},like\n1,3,{START},view\n")
    run = small(
        data__layout="behaviours",
        data__candidate_event="VIEW",
        data__columns__event="type",
        tasks={"like": {"event": "like"}},
    )
    with pytest.raises(DataError, match=r"no row has type 'VIEW' in column 'type'. Found: view \(2\), like \(1\)"):
        prepare(run, serial_tasks)


def test_two_features_of_one_name_are_refused():
    write(ROWS)
    with pytest.raises(ConfigError, match="two numbers are called 'like'"):
        prepare(small(data__numbers=["like", "like"]), serial_tasks)


def test_a_backbone_that_cannot_be_reached_is_refused_before_the_logs_are_read():
    write(ROWS)
    with pytest.raises(BackboneError, match=r"backbone.name: there is no folder '/nowhere/model'"):
        prepare(small(backbone={"name": "/nowhere/model"}), serial_tasks)


@pytest.mark.ray
def test_as_ray_data_jobs_the_result_is_the_same(ray_cluster):
    write(ROWS)
    here = small(data__prepared_dir=os.path.abspath("here"), data__logs=os.path.abspath("log.csv"))
    there = small(data__prepared_dir=os.path.abspath("there"), data__logs=os.path.abspath("log.csv"))
    assert prepare(here, serial_tasks).manifest == prepare(there).manifest
    write(ROWS[:1])
    with pytest.raises(DataError, match="too few for a split by time"):
        prepare(there)
