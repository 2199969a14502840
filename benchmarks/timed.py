"""What a trial of `search.py` does with its time and memory, kept in `times.json` of its folder.

As a plugin (`plugins: [timed]`) this module is imported where trials train, the process of a Ray Train worker or of a
stack, and has their `fit` timed. `train_warm` trains the trials of a grid one after another in the calling process.
"""

import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from turns import resident_mib

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.launch import distributed_trials
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.search.applied import trial_run
from mtrec_ray.search.records import trial_folder
from mtrec_ray.search.sources import GridSource
from mtrec_ray.search.space import Space
from mtrec_ray.train import stack
from mtrec_ray.train.building import BackboneBuilder, adapt, reads_causally
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.worker import Fitted, TrainingData, fit

TIMES = "times.json"
REPORTED = ("evaluation", "step", "click/auc", "click/logloss")
"""Of an evaluation's metrics"""


class Clock:
    """Wall seconds of a trial's training, by what for; a step ends where the next one's batch is asked for.

    `first`: the first step, which waits for the stream of data to start. `steps`: the others, logs included.
    `evaluations`: from the first batch scored until the next step, so with checkpoint, report and waiting for permits.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder, TIMES)
        self._seconds: dict[str, float] = defaultdict(float)
        self._reports: list[dict[str, Any]] = []
        self._steps = 0
        self._kind, self._since = "", 0.0

    def steps(self) -> None:
        """A step begins."""
        self._turn_to("steps" if self._steps else "first")
        self._steps += 1

    def evaluates(self) -> None:
        self._turn_to("evaluations")

    def reports(self, metrics: Any) -> None:
        """An evaluation is done, but for what its report takes; all is kept that is known so far."""
        self._turn_to("evaluations")
        # The monotonic clock is one for all processes of a machine.
        report = {"at": time.monotonic(), **{name: metrics[name] for name in REPORTED}}
        self._reports.append(report)
        kept = {"steps": self._steps, "seconds": self._seconds, "reports": self._reports, "memory": memory()}
        self._path.write_text(json.dumps(kept))

    def _turn_to(self, kind: str) -> None:
        now = time.perf_counter()
        if self._kind:
            self._seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now


def memory() -> dict[str, float]:
    """MiB of this process: its own at the most, and what it may share with others (libraries, Ray's object store).

    The peak is known for the whole resident set only; what that had more than now is taken for its own.
    """
    more = resident_mib("VmHWM") - resident_mib("VmRSS")
    return {"own": resident_mib("RssAnon") + more, "shared": resident_mib("RssFile") + resident_mib("RssShmem")}


class _Timed:
    """A stream that tells of each step, or of each time that it is read, before it is."""

    def __init__(self, stream: Any, step: Callable[[], None] | None = None, start: Callable[[], None] | None = None):
        self.order = stream.order
        self._stream, self._step, self._start = stream, step, start

    def steps(self, first: int, last: int) -> Iterator[Any]:
        if self._start is not None:
            self._start()
        with closing(self._stream.steps(first, last)) as source:
            for _ in range(first, last):
                if self._step is not None:
                    self._step()
                yield next(source)


def timed_fit(run: Run, manifest: Manifest, data: TrainingData, context: Any, *building: Any) -> Fitted:
    """`train.worker.fit`, which leaves `times.json` in the run folder."""
    clock = Clock(context.run_folder)
    report = context.report

    def reported(metrics: Any, checkpoint: Path | None) -> None:
        clock.reports(metrics)
        report(metrics, checkpoint)

    context.report = reported
    train, valid = _Timed(data.train, step=clock.steps), _Timed(data.valid, start=clock.evaluates)
    return fit(run, manifest, replace(data, train=train, valid=valid), context, *building)


def train_warm(run: Run, prepared: str, folder: str, most: int | None) -> None:
    """The grid's trials, or the first `most`, one after another in this process, on copies of one backbone."""
    torch.set_num_threads(1)
    manifest = load_manifest(prepared)
    backbone = BackboneBuilder(run, prepared, manifest).bare()
    assert backbone is not None
    for number, values in enumerate(GridSource(run, Space.parse(run)).points[:most]):
        own = trial_run(run, values, f"{run.name}-{number}")
        place = Path(trial_folder(folder, number))
        place.mkdir(parents=True)
        data = _local_data(own, prepared, manifest)
        timed_fit(own, manifest, data, LocalContext(place), partial(_adapted, backbone, own)).engine.close()


def _adapted(backbone: Backbone, run: Run) -> Backbone:
    own = copy.deepcopy(backbone)
    adapt(own, run)
    return own


def _local_data(run: Run, prepared: str, manifest: Manifest) -> TrainingData:
    """The streams of a trial of one worker, read in this process."""

    def stream(split: str) -> StepStream:
        return StepStream.local(prepared, manifest, order_settings(run, split, 1), reads_causally(run))

    valid = stream("valid")
    return TrainingData(stream("train"), valid, facts_of(valid.order.shards))


for _module in (stack, distributed_trials):
    _module.fit = timed_fit  # type: ignore[attr-defined]
