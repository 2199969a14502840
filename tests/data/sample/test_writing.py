import itertools
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mtrec_ray import cli, config_file, progress
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.logs import find_files, read_events
from mtrec_ray.data.sample import SCENARIOS, Size, write_sample, write_scenario
from mtrec_ray.errors import DataError
from mtrec_ray.evaluate.candidates import read_candidates

pytestmark = pytest.mark.slow

SMALL = Size(users=60, items=120, days=6)
PLAIN = ["backbone=none", "history.max_events=0", "features.aggregates=[]"]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return folder, write_scenario(str(folder), SCENARIOS["ecommerce"], SMALL, figures=False)


def test_the_seed_decides_every_byte(shop, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    write_scenario(str(again), SCENARIOS["news"], SMALL, feedback_files=True, figures=False)
    write_scenario(str(again), SCENARIOS["ecommerce"], SMALL, figures=False)
    write_scenario(str(other), SCENARIOS["ecommerce"], Size(users=60, items=120, days=6, seed=1), figures=False)
    assert bytes_of(again) == bytes_of(shop[0]), "files of an earlier sample must be gone too"
    assert bytes_of(other) != bytes_of(again)


def test_writing_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    ticks = itertools.count(step=2 * progress.LINE_INTERVAL)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    generated = write_scenario(str(tmp_path), SCENARIOS["ecommerce"], SMALL, figures=False)
    said = capsys.readouterr().err
    for day in range(1, 7):
        assert re.search(rf"^Writing days: {day}/6 days \(\d+%\), .* left, ([\d,]+) rows$", said, re.MULTILINE), day
    assert f"left, {generated.rows:,} rows\n" in said


def test_partitions_are_hours_and_rows_ordered_in_them(shop):
    folder, generated = shop
    files = sorted((folder / "logs").rglob("*.parquet"))
    rows = 0
    for path in files:
        place = re.fullmatch(
            r"dt=(\d{4}-\d\d-\d\d)/hr=(\d\d)/part-\d{5}\.parquet", str(path.relative_to(folder / "logs"))
        )
        table = pq.ParquetFile(path).read()
        time = table.column("time").to_numpy()
        hours = np.unique(time.astype("datetime64[s]").astype("datetime64[h]"))
        assert [str(hour) for hour in hours] == [f"{place[1]}T{place[2]}"]
        assert (np.diff(time) >= 0).all()
        rows += len(time)
    assert rows == generated.rows
    assert len(files) > 6 * 5


def test_the_truth_is_by_row_id_and_apart_from_the_logs(shop):
    folder, _ = shop
    run = config_file.load(folder / "run.yaml")
    files = find_files(run.data)
    tables = [batch.table for file in files for batch in read_events(file, file.number, run)]
    truth = pq.read_table(folder / "truth.parquet")
    assert np.concatenate([t["row_id"].to_numpy() for t in tables]).tolist() == truth["row_id"].to_pylist()
    clicks = np.concatenate([t["label.click"].to_numpy() for t in tables])
    p = truth["click"].to_numpy()
    assert p[clicks == 1].mean() > p[clicks == 0].mean() + 0.1
    assert not [path for path in (folder / "logs").rglob("*") if "truth" in path.name]
    names = set(pq.ParquetFile(next((folder / "logs").rglob("*.parquet"))).schema_arrow.names)
    assert not names & {"quality", "taste", "intent", "bot", "truth"}
    told = json.loads((folder / "truth.json").read_text())
    assert told["scenario"]["name"] == "ecommerce"
    assert told["size"]["users"] == 60


@pytest.mark.parametrize(
    ("name", "config"), [*((name, "run.yaml") for name in SCENARIOS), ("social", "run_random.yaml")]
)
def test_every_scenario_is_prepared_without_quarantine(name, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generated = write_scenario("log", SCENARIOS[name], SMALL, figures=False)
    run = config_file.load(Path("log") / config, PLAIN)
    prepared = prepare(run, serial_tasks)
    counts = prepared.manifest.counts
    assert counts["rows_read"] == generated.rows
    assert counts["rows_quarantined"] == 0
    test = sum(shard.candidates for shard in prepared.manifest.shards["test"])
    log = pq.read_table("log/logs", partitioning=None).to_pandas()
    late = log[log["time"] >= SMALL.valid_until]
    assert test == (len(late) if config == "run.yaml" else (late["policy"] == "random").sum())
    assert prepared.manifest.policies[1:] == ["logged", "random"]
    assert set(prepared.manifest.domains[1:]) == {domain.name for domain in SCENARIOS[name].domains}


@pytest.mark.parametrize(
    ("name", "graph", "table", "column"),
    [
        ("social", "user_graph", "users", {"key": "user_id", "list": "friends", "end": "user_id"}),
        ("item_to_item", "item_graph", "items", {"key": "item_id", "list": "linked_from", "end": "other_item_id"}),
    ],
)
def test_the_tables_list_the_edges_of_the_graph(name, graph, table, column, tmp_path):
    write_scenario(str(tmp_path), SCENARIOS[name], SMALL, figures=False)
    edges = pq.read_table(tmp_path / f"{graph}.parquet").to_pandas()
    other = next(end for end in edges.columns if end != column["end"])
    listed = pq.read_table(tmp_path / f"{table}.parquet").to_pandas().set_index(column["key"])[column["list"]]
    found = {(key, int(value)) for key, text in listed.items() for value in text.split()}
    assert found == set(zip(edges[column["end"]], edges[other], strict=True))
    assert len(found) > 100


def test_edges_and_likeness_to_the_page_are_numbers_of_the_candidates(tmp_path):
    write_scenario(str(tmp_path), SCENARIOS["item_to_item"], SMALL, figures=False)
    data = prepare(config_file.load(tmp_path / "run.yaml", PLAIN), serial_tasks)
    names = [entry.name for entry in data.manifest.numbers]
    numbers = {}
    for split in ("train", "valid", "test"):
        for part in read_candidates(data.path, data.manifest, split):
            numbers |= dict(zip(part.row_id.tolist(), part.numbers, strict=True))
    log = pq.read_table(tmp_path / "logs", partitioning=None).to_pandas()
    log["row_id"] = pq.read_table(tmp_path / "truth.parquet")["row_id"].to_numpy()
    edges = set(map(tuple, pq.read_table(tmp_path / "item_graph.parquet").to_pandas().to_numpy()))
    linked = [(page, item) in edges for page, item in zip(log["seed_item_id"], log["item_id"], strict=True)]
    column = names.index("seed_item_id * linked_from")
    assert [numbers[row_id][column] == 1 for row_id in log["row_id"]] == linked
    assert 0.01 < np.mean(linked) < 0.2
    likeness = np.array([numbers[row_id][names.index("seed_title ~ title")] for row_id in log["row_id"]])
    assert np.nanmax(np.abs(likeness)) <= 1 + 1e-6


def test_feedback_in_files_of_its_own_is_the_same_feedback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = SCENARIOS["video"]
    write_scenario("beside", video, SMALL, figures=False)
    write_scenario("apart", video, SMALL, feedback_files=True, figures=False)
    beside = pq.read_table("beside/logs", partitioning=None).to_pandas()
    views = pq.read_table("apart/logs", partitioning=None).to_pandas()
    told = pq.read_table("apart/feedback", partitioning=None).to_pandas()
    assert not {"click", "like", "dwell_s"} & set(views.columns)
    assert views["impression_id"].is_unique
    assert (views["time"] == beside["time"]).all()
    for stage in video.stages:
        rows = told[told["event"] == stage.name]
        place = rows["impression_id"].to_numpy()
        np.testing.assert_array_equal(np.sort(place), np.flatnonzero(beside[stage.name] == 1))
        np.testing.assert_array_equal(rows["item_id"], beside["item_id"].to_numpy()[place])
        if stage.parent is not None:
            np.testing.assert_array_equal(rows["time"], beside[f"{stage.name}_time"].to_numpy()[place])
    spent = told[told["event"] == "dwell"]
    np.testing.assert_allclose(np.exp(spent["value"]), beside["dwell_s"].to_numpy()[spent["impression_id"]])
    one, other = (labels_of(f"{folder}/run.yaml") for folder in ("beside", "apart"))
    assert one.keys() == other.keys()
    pairs = np.array([[one[row_id], other[row_id]] for row_id in one])
    known = ~np.isnan(pairs).any(1)
    np.testing.assert_allclose(pairs[:, 0][known], pairs[:, 1][known], rtol=1e-6)
    only_one = np.isnan(pairs).sum(1) == 1  # the two logs end within minutes of each other, and so do their windows
    assert only_one.mean() < 0.02


def test_the_judged_rows_are_those_that_prepare_has_labels_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = Size(users=200, items=120, days=10)
    figures = write_scenario("log", SCENARIOS["ecommerce"], size).figures
    labels = np.array(list(labels_of("log/run.yaml").values()))
    assert [found.rows for found in figures.values()] == (~np.isnan(labels)).sum(0).tolist()
    assert [found.positives for found in figures.values()] == np.nansum(labels, 0).tolist()


def labels_of(config: str) -> dict[int, list[float]]:
    """Of the test rows, as they are prepared."""
    prepared = prepare(config_file.load(config, PLAIN), serial_tasks)
    assert prepared.manifest.counts["rows_quarantined"] == 0
    found = {}
    for shard in prepared.manifest.shards["test"]:
        for request in pq.read_table(f"{prepared.path}/{shard.path}", columns=["row_id", "labels"]).to_pylist():
            tasks = len(prepared.manifest.tasks)
            labels = np.reshape(request["labels"], (-1, tasks)).tolist()
            found |= dict(zip(request["row_id"], labels, strict=True))
    return found


def test_the_command_prints_what_can_be_known(tmp_path):
    run = CliRunner().invoke(
        cli.app, ["sample", str(tmp_path / "ads"), "--scenario", "ads", "--users", "250", "--days", "10", "--worth"]
    )
    assert run.exit_code == 0, run.output
    for word in ("conversion", "oracle", "observer", "trees", "gap", "worth of history"):
        assert word in run.output
    looks = 4  # with all senses, and without each of three
    assert f"Judging: {looks + len(SCENARIOS['ads'].stages)} steps in" in run.output
    assert run.output.rstrip().endswith("run.yaml")
    figures = json.loads((tmp_path / "ads/truth.json").read_text())["generated"]["figures"]["click"]
    assert f"{figures['oracle'][0]:.3f}" in run.output
    observer = pq.read_table(tmp_path / "ads/observer.parquet")
    truth = pq.read_table(tmp_path / "ads/truth.parquet")
    assert observer["row_id"].equals(truth["row_id"])
    assert 0.5 < np.corrcoef(observer["click"].to_numpy(), truth["click"].to_numpy())[0, 1] < 0.99


def test_nobodys_own_logs_are_touched(shop, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.parquet").touch()
    with pytest.raises(DataError, match="not a generated sample"):
        write_scenario(str(tmp_path), SCENARIOS["ads"], SMALL)
    assert (tmp_path / "logs" / "mine.parquet").exists()
    write_sample(str(shop[0]), users=10, items=20, days=2, shards=1)
    assert sorted(path.name for path in (shop[0] / "logs").iterdir()) == ["part-00000.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bots", "0.1"], "belong to a scenario"),
        (["--scenario", "ads", "--shards", "3"], "partitioned by hour"),
        (["--scenario", "adds"], "Did you mean 'ads'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, tmp_path):
    run = CliRunner().invoke(cli.app, ["sample", str(tmp_path / "x"), *options])
    assert message in str(run.exception)
    assert not (tmp_path / "x").exists()
