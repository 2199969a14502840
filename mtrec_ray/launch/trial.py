"""One trial as Ray Tune sees it: a `Trainable` whose steps are the evaluations of a training that a runner carries out.

Free of torch, for every trial has a process of its own, also where the training itself is in another one.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow.fs as pafs
from ray import tune

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import copy_folder, open_fs
from mtrec_ray.search.applied import trial_run
from mtrec_ray.search.records import TrialRecord, folder_name, read_records, start_record, trial_folder, write_record

RESUME, BEST = "resume", "checkpoint"
"""Below a trial's folder: the checkpoint that it was started from, and that of its best evaluation (`train.worker`)."""


def latest(folder: str, evaluation: int) -> str:
    """Where a runner leaves the checkpoint of an evaluation, before it reports it.

    Each has a place of its own: a record that does not yet know of an evaluation still names the checkpoint before.
    """
    return f"{folder}/latest-{evaluation}"


@dataclass(frozen=True)
class Trial:
    """What a runner is to train."""

    id: str
    number: int
    run: Run
    folder: str
    """`<search>/trials/00007`, local or a URL, the same for all nodes"""


@dataclass(frozen=True)
class TrialReport:
    """One evaluation of a trial; its checkpoint is at `latest`."""

    metrics: dict[str, Any]
    """As `train.worker` reports them, with `startup_seconds`, and `accelerator_seconds` of this attempt"""

    @property
    def last(self) -> bool:
        return bool(self.metrics["last"])


def accelerators(run: Run) -> float:
    """GPUs that a trial's workers hold; CPUs where they ask for no GPU."""
    return run.cluster.workers * (run.cluster.gpus_per_worker or run.cluster.cpus_per_worker)


class TrialRunner(Protocol):
    """Carries out trials, one way or the other; picklable."""

    def run(self, trial: Trial, resume: str | None) -> Iterator[TrialReport]:
        """The trial's reports. It waits at each until it is asked for the next; closing the iterator ends the trial.

        `resume`: a checkpoint folder to go on from; None = from the start.
        """
        ...


class TuneTrial(tune.Trainable):
    """Use with `tune.with_parameters(TuneTrial, search=..., run=..., runner=...)`."""

    def setup(self, config: dict[str, Any], search: str, run: Run, runner: TrialRunner) -> None:  # type: ignore[override]
        """`config`: `{"trial": {"number", "values"}}`; `search`: the search's folder; `run`: its config.

        Nothing is written before the first step: Ray may start a process for a trial and give the trial another one.
        """
        self._search, self._run, self._runner = search, run, runner
        self._reports: Iterator[TrialReport] | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ends the trial that was here; the process goes on with another one, and saves the seconds of a start."""
        self._close()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        number, self._values = config["trial"]["number"], config["trial"]["values"]
        own = trial_run(self._run, self._values, f"{self._run.name}-{folder_name(number)}")
        self._trial = Trial(self.trial_id, number, own, trial_folder(self._search, number))
        self._loaded: str | None = None

    def _start(self) -> Iterator[TrialReport]:
        """From what was loaded, else from where the trial's record says that it was, else from the start."""
        trial, records = self._trial, read_records(self._search)
        past = next((record for record in records if record.number == trial.number), None)
        known = past or TrialRecord(trial.number, trial.id, self._values)
        self._record = replace(known, trial_id=trial.id, values=self._values, status="running", error=None)
        self._spent_before = (self._record.seconds, self._record.accelerator_seconds)
        self._started = time.monotonic()
        start_record(self._search, self._record, trial.run)
        return self._runner.run(trial, self._loaded or self._record.checkpoint)

    def step(self) -> dict[str, Any]:
        """The next evaluation, as a line of the trial's record."""
        if self._reports is None:
            self._reports = self._start()
        report = next(self._reports)
        seconds, accelerator = self._spent_before
        line = {
            **report.metrics,
            "seconds": seconds + time.monotonic() - self._started,
            "accelerator_seconds": accelerator + report.metrics["accelerator_seconds"],
        }
        before = self._record.checkpoint
        self._record = self._record.reported(line, latest(self._trial.folder, line["evaluation"]))
        write_record(self._search, self._record)
        if before not in (None, self._record.checkpoint):
            _delete(str(before))
        if report.last:
            write_record(self._search, self._record.ended("finished"))
            self._close()
        known = {key: math.nan if value is None else value for key, value in line.items()}  # Ray takes no None
        return {**known, "done": report.last}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For Ray: to start a failed trial again, or another one from this one's weights.

        The latest state and the best weights, which the state refers to: whoever goes on from it may never do better.
        """
        _copy(str(self._record.checkpoint), f"{checkpoint_dir}/{RESUME}")
        _copy(f"{self._trial.folder}/{BEST}", f"{checkpoint_dir}/{BEST}")

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        """Before the first step, or after a pause: whatever ran is replaced by what goes on from there."""
        self._close()
        for name in (RESUME, BEST):
            _delete(f"{self._trial.folder}/{name}")
            _copy(f"{checkpoint}/{name}", f"{self._trial.folder}/{name}")
        self._loaded = f"{self._trial.folder}/{RESUME}"

    def cleanup(self) -> None:
        self._close()

    def _close(self) -> None:
        reports: Any = self._reports
        self._reports = None
        if reports is not None:
            reports.close()


def _copy(source: str, destination: str) -> None:
    from_fs, from_root = open_fs(source)
    to_fs, to_root = open_fs(destination)
    copy_folder(from_fs, from_root, to_fs, to_root)


def _delete(folder: str) -> None:
    filesystem, root = open_fs(folder)
    if filesystem.get_file_info(root).type == pafs.FileType.Directory:
        filesystem.delete_dir(root)
