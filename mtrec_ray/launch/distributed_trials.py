"""Trials that are training jobs of their own: `cluster.workers` workers each, as `mtrec train` starts them."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.launch.ingest import OrderedIngest, ordered_splits
from mtrec_ray.launch.jobs import run_workers
from mtrec_ray.launch.permits import Permits
from mtrec_ray.launch.relay import Relay, relayed
from mtrec_ray.launch.runs import RAY_FOLDER, RunFolder
from mtrec_ray.launch.trial import Trial, TrialReport, accelerators, latest
from mtrec_ray.launch.worker import Worker
from mtrec_ray.train import checkpoint as checkpoints
from mtrec_ray.train.context import RayContext
from mtrec_ray.train.worker import fit


@dataclass(frozen=True)
class DistributedRunner:
    """`TrialRunner` that gives each trial a Ray Train job, whose folder is the trial's."""

    prepared: str

    def run(self, trial: Trial, resume: str | None) -> Iterator[TrialReport]:
        started, permits = time.monotonic(), Permits()
        # What an earlier attempt's job has kept there is not newer than `resume`, and may be of other weights.
        RunFolder(trial.folder).delete(RAY_FOLDER)
        job = _Job(self.prepared, trial, resume, permits)
        while True:
            metrics = permits.take()
            if metrics is None:
                job.check()
                continue
            spent = (time.monotonic() - started) * accelerators(trial.run)
            report = TrialReport({**metrics, "accelerator_seconds": spent})
            if report.last:
                permits.permit()
                job.join()
                permits.close()
                yield report
                return
            # Where this is the end, the process of the trial ends too, and Ray with it all that it has started.
            yield report
            permits.permit()


class _Job:
    """A Ray Train job in a thread: it is waited for by nobody if the trial is stopped."""

    def __init__(self, prepared: str, trial: Trial, resume: str | None, permits: Permits) -> None:
        self._ended: queue.Queue[BaseException | None] = queue.Queue()
        arguments = {
            "run": trial.run,
            "prepared": prepared,
            "folder": trial.folder,
            "permits": permits,
            "resume": resume,
        }
        thread = threading.Thread(target=self._train, args=(trial, arguments), daemon=True, name="trial")
        thread.start()

    def check(self) -> None:
        """Raises what the job has ended with, if it has ended."""
        if not self._ended.empty():
            self.join()
            raise RuntimeError("the training ended before its last report")

    def join(self) -> None:
        """Waits for the end. Raises what the job ended with."""
        error = self._ended.get()
        if error is not None:
            raise error

    def _train(self, trial: Trial, arguments: dict[str, Any]) -> None:
        error: BaseException | None = None
        try:
            with relayed() as relay:  # one per trial: a mistake that is kept for restarted workers is the trial's own
                run_workers(
                    trial_worker,
                    arguments,
                    trial.run.cluster,
                    relay,
                    name=RAY_FOLDER,
                    storage=trial.folder,
                    datasets=ordered_splits(trial.run),
                    ingest=OrderedIngest(arguments["prepared"]),
                )
            RunFolder(trial.folder).delete(RAY_FOLDER)
        except BaseException as raised:
            error = raised
        self._ended.put(error)


def trial_worker(relay: Relay, run: Run, prepared: str, folder: str, permits: Permits, resume: str | None) -> None:
    """One worker of a trial: trains, and at each evaluation waits for the permit to go on."""
    context = _TrialContext(folder, relay, permits, resume)
    worker = Worker(relay, run, prepared, context)
    fitted = fit(run, worker.manifest, worker.training_data(), context, worker.build_backbone)
    fitted.engine.close()


class _TrialContext(RayContext):
    def __init__(self, folder: str, relay: Relay, permits: Permits, resume: str | None) -> None:
        super().__init__(folder, relay.say)
        self._permits, self._resume = permits, resume
        self._started = time.monotonic()
        self._startup: float | None = None

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        """What Ray Train has kept for workers that start again, else the checkpoint that the trial goes on from."""
        with super().restored() as kept:
            if kept is not None or self._resume is None:
                yield kept
            else:
                with checkpoints.fetched(self._resume) as found:
                    yield found
        self._startup = time.monotonic() - self._started

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            checkpoints.publish(checkpoint, latest(self.run_folder, metrics["evaluation"]))
        super().report(metrics, checkpoint)
        if self.world_rank == 0:
            self._permits.report({**metrics, "startup_seconds": self._startup})
