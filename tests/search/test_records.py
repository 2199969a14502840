import json
from pathlib import Path

import numpy as np
import pytest

from mtrec_ray import config_file
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.search.records import (
    TrialRecord,
    first_line,
    read_record,
    read_records,
    start_record,
    trial_folder,
    write_record,
)
from tests.search.searches import made_up, report, search_run


def started(search: str, number: int = 7) -> TrialRecord:
    record = TrialRecord(number, "a1b2", {"adapter.rank": 4, "adapter.kind": "lora"})
    start_record(search, record, search_run("adapter.rank=4"))
    return record


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_trial_is_read_back_at_every_stage(tmp_path: Path, prefix: str) -> None:
    search = f"{prefix}{tmp_path}/runs/tuned"
    record = started(search)
    assert read_records(search) == [record]
    for stage in (
        record.reported(report(1, 0.7)),
        record.reported(report(1, 0.7), "storage/checkpoint_1").ended("stopped"),
    ):
        write_record(search, stage)
        assert read_records(search) == [stage]
    folder = tmp_path / "runs/tuned/trials/00007"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "curve.jsonl", "result.json"}
    assert config_file.load(folder / "config.yaml") == search_run("adapter.rank=4")


def test_trials_come_by_number_and_one_that_never_started_is_none(tmp_path: Path) -> None:
    for record in made_up(3)[::-1]:
        start_record(str(tmp_path), record, search_run())
    (tmp_path / "trials/00009").mkdir()
    (tmp_path / "trials/00009/config.yaml").write_text("name: tuned")
    assert read_records(str(tmp_path)) == made_up(3)
    assert read_records(str(tmp_path / "absent")) == []


def test_an_evaluation_that_comes_again_replaces_what_came_after_it() -> None:
    record = TrialRecord(0, "a", {})
    for evaluation in (1, 2, 3):
        record = record.reported(report(evaluation, 0.1 * evaluation))
    again = record.ended("failed", "worker lost").reported(report(2, 0.9, seconds=500.0))
    assert [(r["evaluation"], r["like/auc"]) for r in again.reports] == [(1, 0.1), (2, 0.9)]
    assert (again.status, again.error, again.seconds) == ("running", None, 500.0)
    assert (again.evaluations, again.startup_seconds) == (2, 20.0)


def test_numbers_of_other_libraries_and_what_json_has_not(tmp_path: Path) -> None:
    record = started(str(tmp_path)).reported(report(np.int64(1), np.float32(0.5), float("nan")))
    write_record(str(tmp_path), record)
    line = json.loads((tmp_path / "trials/00007/curve.jsonl").read_text())
    assert (line["evaluation"], line["like/auc"], line["finish/auc"]) == (1, 0.5, None)
    assert read_records(str(tmp_path)) == [record]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("\n the loss is not finite \nTraceback", "the loss is not finite"),
        ("", "no message"),
        (ConfigError("adapter.rank is 0.\nmore"), "adapter.rank is 0."),
        (RuntimeError("out of memory\nat 0x1"), "RuntimeError: out of memory"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_of_an_error(error, line: str) -> None:
    assert first_line(error) == line
    assert TrialRecord(0, "a", {}).ended("failed", error).error == line


def broken(folder: Path, name: str, text: str | None) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", None, r"config\.yaml is missing"),
        ("curve.jsonl", None, r"curve\.jsonl is missing"),
        ("curve.jsonl", '{"evaluation": 1, "seco', r"curve\.jsonl, line 1 is not JSON"),
        ("curve.jsonl", '{"evaluation": 1}', r"curve\.jsonl, line 1 lacks accelerator_seconds, seconds"),
        ("curve.jsonl", "[1]", "line 1 holds a list, not a mapping"),
        ("result.json", "", r"result\.json is not JSON"),
        ("result.json", "\xff", r"result\.json is not UTF-8 text"),
        ("result.json", '{"number": 7}', r"result\.json should hold accelerator_seconds, .* differs in .*trial_id"),
    ],
)
def test_a_broken_folder_is_named_with_what_is_wrong(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    started(str(tmp_path))
    broken(tmp_path / "trials/00007", name, text)
    with pytest.raises(DataError, match=rf"trials/00007 is broken: .*{message}.*--resume"):
        read_records(str(tmp_path))


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    started(str(tmp_path))
    file = tmp_path / "trials/00007/result.json"
    file.write_text(file.read_text().replace("running", "paused"))
    with pytest.raises(DataError, match="has the status 'paused', not one of finished, stopped, failed, running"):
        read_record(trial_folder(str(tmp_path), 7))
