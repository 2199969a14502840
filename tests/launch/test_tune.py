"""A search on generated logs: stacked, distributed, resumed, and with trials that all fail."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.config_file import load
from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.launch.tune import tune
from mtrec_ray.search.records import read_records, write_record
from mtrec_ray.train import checkpoint
from tests.launch.actors import any_left, processes
from tests.launch.sample_runs import sample_config, trained_without_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = [
    "backbone={name: nano, width: 16, layers: 1, heads: 2, vocab_size: 400, pretrained: false}",
    "train={max_steps: 6, epochs: 9, evaluations_per_epoch: 2, batch_requests: 16}",
    "tune.space={train.learning_rate.towers: {loguniform: [1e-3, 1e-2]}, adapter.rank: [2, 4]}",
    "tune.searcher=random",
    "tune.scheduler=none",
]


@pytest.fixture(scope="module")
def stacked(place: Path) -> str:
    return tune(sample_config(place, "stacked", *SMALL, "tune.trials=3", "tune.objectives=[click/auc, dwell/rmse]"))


def curve(folder: str, number: int) -> list[dict[str, Any]]:
    return [dict(report) for report in read_records(folder)[number].reports]


def test_a_stacked_search_leaves_every_trial_a_report_and_a_config_that_runs(stacked: str) -> None:
    records = read_records(stacked)
    assert [(record.number, record.status) for record in records] == [(0, "finished"), (1, "finished"), (2, "finished")]
    assert records[0].values == {"train.learning_rate.towers": 1e-3, "adapter.rank": 8}
    assert len({record.values["train.learning_rate.towers"] for record in records}) == 3
    for record in records:
        assert [report["evaluation"] for report in record.reports] == list(range(1, len(record.reports) + 1))
        assert record.reports[-1]["step"] == 6
        assert 0 < record.accelerator_seconds < record.seconds + 1
        kept = checkpoint.read(Path(stacked, "trials", record.name, "checkpoint"))
        ranks = {value.shape[0] for name, value in kept.parameters.items() if "lora_A" in name}
        assert ranks == {record.values["adapter.rank"]}
    best = load(Path(stacked, "best.yaml"))
    chosen = json.loads(Path(stacked, "tune.json").read_text())["selected"]["trial"]
    assert best.name == "stacked-best"
    assert best.train.learning_rate.towers == records[chosen].values["train.learning_rate.towers"]
    assert best.tune.space == {}
    assert best.train.metric == "click/auc"
    assert "Share of the space that the front dominates" in Path(stacked, "report.html").read_text()
    assert not Path(stacked, ".tune").exists()


def test_nothing_of_the_search_is_left_in_ray(stacked: str) -> None:
    ended = processes(alive=False)
    assert ended["StackActor"]
    assert ended["TuneTrial"]
    assert not any_left()


def test_a_distributed_trial_gives_what_the_stacked_one_gives(place: Path, stacked: str) -> None:
    folder = tune(sample_config(place, "distributed", *SMALL, "tune.trials=1", "tune.mode=distributed"))
    ours, theirs = curve(folder, 0), curve(stacked, 0)
    assert [report["step"] for report in ours] == [report["step"] for report in theirs]
    for left, right in zip(ours, theirs, strict=True):
        for name in ("click/auc", "click/logloss", "dwell/rmse"):
            assert left[name] == pytest.approx(right[name], abs=1e-4)
        assert left["startup_seconds"] > 0


def test_a_search_that_died_goes_on_where_it_was(place: Path, stacked: str) -> None:
    run = sample_config(place, "stacked", *SMALL, "tune.trials=3", "tune.objectives=[click/auc, dwell/rmse]")
    with pytest.raises(ConfigError, match="holds a finished run"):
        tune(run, resume=True)
    values = [record.values for record in read_records(stacked)]
    Path(stacked, "report.html").unlink()
    lost = read_records(stacked)[1]
    first = lost.reports[0]
    died = replace(lost, status="running", reports=(first,), checkpoint=None, seconds=first["seconds"])
    write_record(stacked, died)
    before = {n: Path(stacked, f"trials/0000{n}/result.json").stat().st_mtime_ns for n in (0, 2)}
    with pytest.raises(ConfigError, match="unfinished search"):
        tune(run)
    tune(run, resume=True)
    after = {n: Path(stacked, f"trials/0000{n}/result.json").stat().st_mtime_ns for n in (0, 2)}
    assert before == after
    records = read_records(stacked)
    assert [record.status for record in records] == ["finished", "finished", "finished"]
    assert [record.values for record in records] == values
    assert [report["evaluation"] for report in records[1].reports] == [1, 2, 3]
    assert records[1].seconds > first["seconds"]
    for name in ("click/auc", "dwell/rmse"):
        assert [r[name] for r in records[1].reports] == pytest.approx([r[name] for r in lost.reports], abs=1e-4)


def test_a_trial_that_asha_stops_takes_no_step_more_and_its_slot_is_used(place: Path) -> None:
    asha = ["tune.scheduler=asha", "tune.reduction=2", "tune.trials=6", "tune.stack=2", "tune.max_concurrent=2"]
    space = "tune.space={train.learning_rate.towers: {loguniform: [1e-6, 1e-2]}}"
    start = f"train.start_from={trained_without_ray(place, 'old', *SMALL, 'backbone=none')}"
    folder = tune(sample_config(place, "asha", *SMALL, "backbone=none", "train.log_every=1", *asha, space, start))
    records = read_records(folder)
    assert [record.number for record in records] == list(range(6))
    stopped = [record for record in records if record.status == "stopped"]
    assert stopped
    assert {record.status for record in records} == {"stopped", "finished"}
    for record in records:
        log = Path(folder, "trials", record.name, "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in log.splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "train"]
        assert steps == list(range(1, record.reports[-1]["step"] + 1))
        assert [line["from"] for line in lines if line["kind"] == "start"] == [str(place / "runs/old")]
    assert any(record.evaluations == 1 for record in stopped)
    assert not any_left()


def test_where_all_trials_fail_the_first_error_is_shown(place: Path) -> None:
    wild = ["train.learning_rate={adapters: 1e25, towers: 1e25, tables: 1e25}", "tune.max_failures=0"]
    space = "tune.space={adapter.rank: [2, 4]}"
    with pytest.raises(UserError, match=r"(?s)is not finite"):
        tune(sample_config(place, "wild", *SMALL, *wild, space, "tune.trials=2"))
    records = read_records(str(place / "runs/wild"))
    assert {record.status for record in records} == {"failed"}
    assert all("is not finite" in (record.error or "") for record in records)
