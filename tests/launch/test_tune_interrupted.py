"""Searches whose trials are paused, cloned and killed, with the stack or the driver under them."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump
from mtrec_ray.launch.tune import tune
from mtrec_ray.search.records import TrialRecord, read_records
from tests.conftest import ROOT
from tests.launch.actors import any_left, processes
from tests.launch.digests import REPORTED, STARTED, seen
from tests.launch.sample_runs import sample_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = [
    "backbone={name: nano, width: 16, layers: 1, heads: 2, vocab_size: 400, pretrained: false}",
    "train={max_steps: 8, epochs: 9, evaluations_per_epoch: 4, batch_requests: 16, patience: null}",
    "tune.space={train.learning_rate.towers: {loguniform: [1e-4, 1e-2]}, tasks.click.weight: {loguniform: [0.5, 2]}}",
    "tune.trials=4",
    "tune.scheduler=none",
    "plugins=[tests.launch.weights_seen]",
]


@pytest.fixture(scope="module")
def whole(place: Path) -> str:
    """A search that nothing disturbs."""
    return tune(searching(place, "whole"))


def searching(place: Path, name: str, *overrides: str) -> Run:
    return sample_config(place, name, *SMALL, "tune.searcher=random", *overrides)


def curves(folder: str) -> list[list[float]]:
    """click/auc of every trial, by evaluation."""
    return [[report["click/auc"] for report in record.reports] for record in read_records(folder)]


def check_complete(folder: str, expected: str) -> None:
    """All trials once, each to its end, with the curves of the undisturbed search; and nothing is left in Ray."""
    ours, theirs = read_records(folder), read_records(expected)
    assert [(record.number, record.status) for record in ours] == [(n, "finished") for n in range(len(theirs))]
    assert [record.values for record in ours] == [record.values for record in theirs]
    for left, right in zip(curves(folder), curves(expected), strict=True):
        assert left == pytest.approx(right, abs=1e-4)
    assert not any_left()
    assert not Path(folder, ".tune").exists()


def test_a_clone_goes_on_from_its_donors_weights_bit_by_bit(place: Path) -> None:
    settings = ["tune.scheduler=pbt", "tune.grace=2"]
    folder = tune(sample_config(place, "pbt", *SMALL, *settings))
    records = read_records(folder)
    assert [(record.number, record.status) for record in records] == [(n, "finished") for n in range(4)]
    folders = [Path(folder, "trials", record.name) for record in records]
    donors = []
    for trial in folders:
        for step, digest in seen(trial, STARTED).items():  # also those that gave way to others for a while
            found = [other for other in folders if seen(other, REPORTED).get(step) == digest]
            assert len(found) == 1, (trial, step)
            donors += [found[0]] if found[0] != trial else []
    assert donors
    for record in records:
        assert [report["evaluation"] for report in record.reports] == list(range(1, 9))
    assert not any_left()


def test_trials_that_waited_for_their_bracket_go_on_as_if_they_had_not(place: Path, whole: str) -> None:
    settings = ["tune.scheduler=hyperband", "tune.reduction=2", "train.evaluations_per_epoch=1"]
    plugins = "plugins=[tests.launch.weights_seen, tests.launch.late_reports]"
    folder = tune(searching(place, "hyperband", *settings, plugins))  # a bracket of whole trials, one that is halved
    records = read_records(folder)
    assert sorted((record.status, record.evaluations) for record in records) == [
        ("finished", 2),
        ("finished", 2),
        ("finished", 2),
        ("stopped", 1),
    ]
    assert seen(Path(folder, "trials", records[3].name), STARTED)
    for ours, theirs in zip(records, read_records(whole), strict=True):
        expected = {report["step"]: report["click/auc"] for report in theirs.reports}
        for report in ours.reports:
            assert report["click/auc"] == pytest.approx(expected[report["step"]], abs=1e-4)
    assert not any_left()


def test_a_killed_trial_and_a_killed_stack_cost_no_trial(place: Path, whole: str) -> None:
    run = searching(place, "killed", "tune.max_failures=3", "tune.stack=2")  # two stacks of two
    with ThreadPoolExecutor() as threads:
        killed = threads.submit(kill_both, str(Path(run.cluster.storage, run.name)))
        folder = tune(run)
        killed.result(timeout=1)
    check_complete(folder, whole)


def test_a_killed_driver_is_made_good_by_resume(place: Path, whole: str) -> None:
    run = searching(place, "driver", "tune.stack=2", "tune.max_concurrent=2")
    config = place / "driver.yaml"
    config.write_text(dump(run))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [Path(sys.executable).with_name("mtrec"), "tune", str(config)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = str(Path(run.cluster.storage, run.name))
    wait_for(lambda: driver.poll() is not None or any(r.status == "finished" for r in started(folder)))
    assert driver.poll() is None, driver.communicate()[0]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = [record for record in read_records(folder) if record.status == "finished"]
    assert 0 < len(kept) < 4
    wait_for(lambda: not any_left())
    tune(run, resume=True)
    check_complete(folder, whole)
    again = {record.number: record for record in read_records(folder)}
    assert all(again[record.number] == record for record in kept)


def kill_both(folder: str) -> None:
    """Kills a trial's process once it has reported, and the stack with all trials a few evaluations later."""
    for victim, evaluations in (("TuneTrial", 1), ("StackActor", 4)):
        wait_for(lambda least=evaluations: any(record.evaluations >= least for record in started(folder)))
        there = processes(alive=True)
        assert len(there["StackActor"]) == 2
        os.kill(there[victim][0], signal.SIGKILL)


def started(folder: str) -> list[TrialRecord]:
    return read_records(folder) if Path(folder).exists() else []


def wait_for(found: object, seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while not found():  # type: ignore[operator]
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.1)
