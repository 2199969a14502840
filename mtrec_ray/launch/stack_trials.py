"""Inside a stack's process: one copy of the backbone with all its trials, each a thread."""

import contextlib
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from mtrec_ray.config import Augment, Run
from mtrec_ray.data.catalogue import Catalogue, load_catalogue
from mtrec_ray.data.streaming.chunks import RayChunks, open_order
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.data.streaming.shared import SharedSteps
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.data.vectors import load_vectors
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.launch.jobs import use_threads
from mtrec_ray.launch.trial import Trial, TrialReport, accelerators, latest
from mtrec_ray.model.probe import choose_mode
from mtrec_ray.registry import import_plugins
from mtrec_ray.train import checkpoint
from mtrec_ray.train.augmentation import open_augmenter
from mtrec_ray.train.building import BackboneBuilder, reads_causally
from mtrec_ray.train.stack import Report, Stack
from mtrec_ray.train.worker import TrainingData


class _StoppedError(Exception):
    """Ends a trial's thread where it reports."""


@dataclass
class _Slot:
    """A trial on the stack. Its thread puts reports and waits for permits, of which False ends it."""

    number: int
    trial: Trial
    started: float
    reports: "queue.Queue[TrialReport | BaseException]" = field(default_factory=queue.Queue)
    permits: "queue.Queue[bool]" = field(default_factory=queue.Queue)
    thread: threading.Thread | None = None
    startup: float | None = None
    asked: bool = False
    """Whether a report was handed over, so that the next request is the permit to go on"""
    spent: float = 0.0
    """Accelerator seconds: its share of the stack's"""


class StackTrials:
    """One backbone with the prepared data's streams, and the trials that are on it.

    The first trials wait for each other, a little, so that they read the same batches.
    """

    _GATHER_SECONDS = 20.0

    def __init__(self, run: Run, prepared: str, expected: int) -> None:
        """`run`: what all trials have in common. `expected`: how many are about to start."""
        self._run, self._prepared = run, prepared
        self._stack: Stack | None = None
        self._vectors: dict[str, Any] = {}
        self._catalogue: Catalogue | None = None
        self._streams: WeakValueDictionary[tuple[OrderSettings, str], SharedSteps] = WeakValueDictionary()
        """Of the trials that are here; a stream ends with the last of them"""
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()
        self._numbers = 0
        self._gathered = threading.Barrier(expected) if expected > 1 else None
        self._shares = time.monotonic()

    def open(self) -> None:
        """Loads the backbone, unless it is there.

        Raises:
            BackboneError: one that cannot be loaded, or whose requests cannot be packed.
        """
        run = self._run
        with self._lock:
            if self._stack is not None:
                return
            import_plugins(run.plugins)
            use_threads(run.cluster)
            manifest = load_manifest(self._prepared)
            device = torch.device("cuda" if run.cluster.gpus_per_worker else "cpu")
            backbone = BackboneBuilder(run, self._prepared, manifest).bare()
            if backbone is not None:
                backbone.to(device)
                choose_mode(backbone, "require")
            self._vectors = load_vectors(self._prepared, manifest)
            self._catalogue = load_catalogue(self._prepared, manifest, self._vectors)
            self._stack = Stack(backbone, manifest, run, device)

    def load(self) -> int:
        """How many trials are on it."""
        return len(self._slots)

    def start(self, trial: Trial, resume: str | None) -> None:
        """Gives the trial a slot and starts it; one of the same id that is still there is stopped first."""
        self.open()  # not there yet if Ray has started the process again
        self.stop(trial.id)
        with self._lock:
            self._numbers += 1
            slot = _Slot(self._numbers, trial, time.monotonic())
            self._share()
            self._slots[trial.id] = slot
        slot.thread = threading.Thread(target=self._train, args=(slot, resume), daemon=True, name=trial.id)
        slot.thread.start()

    def next(self, trial_id: str) -> TrialReport:
        """Lets the trial go on, if it waits, and waits for its next report. Raises what the trial raised."""
        slot = self._slots[trial_id]
        if slot.asked:
            slot.permits.put(True)
        slot.asked = True
        found = slot.reports.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def stop(self, trial_id: str) -> None:
        """Ends the trial at its next report, or where it waits, and frees its slot."""
        with self._lock:
            self._share()
            slot = self._slots.pop(trial_id, None)
        if slot is not None:
            slot.permits.put(False)

    def _train(self, slot: _Slot, resume: str | None) -> None:
        assert self._stack is not None
        use_threads(self._run.cluster)  # each thread has a number of its own
        try:
            self._gather()
            with contextlib.ExitStack() as stack:
                start: Path | None = None
                if resume is not None:
                    start = stack.enter_context(checkpoint.fetched(resume))
                run = slot.trial.run
                slot.startup = time.monotonic() - slot.started
                report = self._reporter(slot)
                self._stack.fit(slot.number, run, self._data(run), slot.trial.folder, report, start)
            slot.reports.put(RuntimeError("the training ended before its last report"))  # nobody asks after the last
        except _StoppedError:
            pass
        except BaseException as error:
            slot.reports.put(error)

    def _reporter(self, slot: _Slot) -> Report:
        def report(metrics: Mapping[str, Any], folder: Path | None) -> None:
            if folder is not None:
                checkpoint.publish(folder, latest(slot.trial.folder, metrics["evaluation"]))
            with self._lock:
                self._share()
            whole = {**metrics, "accelerator_seconds": slot.spent, "startup_seconds": slot.startup}
            slot.reports.put(TrialReport(whole))
            if not slot.permits.get():
                raise _StoppedError

        return report

    def _share(self) -> None:
        """Adds the time since the last call to the trials that were here, in equal parts."""
        now = time.monotonic()
        passed, self._shares = now - self._shares, now
        for slot in self._slots.values():
            slot.spent += passed * accelerators(self._run) / len(self._slots)

    def _gather(self) -> None:
        barrier = self._gathered
        if barrier is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(self._GATHER_SECONDS)
            self._gathered = None

    def _data(self, run: Run) -> TrainingData:
        train = self._stream(order_settings(run, "train", 1), run)
        valid = self._stream(order_settings(run, "valid", 1), run.model_copy(update={"augment": Augment()}))
        return TrainingData(train, valid, facts_of(valid.order.shards), self._catalogue, self._prepared)

    def _stream(self, settings: OrderSettings, run: Run) -> SharedSteps:
        """The stream of an order, one for all trials that have it and change its requests alike."""
        key = (settings, run.augment.model_dump_json())
        with self._lock:
            shared = self._streams.get(key)
            if shared is None:
                assert self._stack is not None
                causal = reads_causally(self._run)
                collator = Collator(self._stack.manifest, causal, self._vectors, self._catalogue)
                chunks = RayChunks(self._prepared, settings, 0)
                augmenter = open_augmenter(run, self._prepared, self._stack.manifest)
                stream = StepStream(open_order(self._prepared, settings), 0, collator, chunks, augmenter)
                shared = self._streams[key] = SharedSteps(stream)
            return shared
