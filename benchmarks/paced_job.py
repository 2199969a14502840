"""One side of `peers.py`: the job of `mtrec train`, its stream of train steps held back between its turns."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sampled import Enough
from turns import SIDES, Pace

from mtrec_ray.config import Run
from mtrec_ray.config_file import load


def train_ours(folder: str, port: int) -> None:
    """The job of `mtrec train` (Ray Data, Ray Train, DeepSpeed), ended when the peer is done."""
    from mtrec_ray.launch.relay import relayed
    from mtrec_ray.launch.runs import RunFolder
    from mtrec_ray.launch.session import ray_session
    from mtrec_ray.launch.train import run_training_job

    side = json.loads(Path(folder, "side.json").read_text())
    run = load(f"{folder}/run.yaml")
    run_folder = RunFolder.of(run)
    with ray_session(run.cluster):
        run_folder.open(run, overwrite=False)
        arguments = {"run": run, "prepared": side["prepared"], "run_folder": run_folder.path, "title": ""}
        pacing = {"port": port, "seconds": side["seconds"]}
        with relayed() as relay:
            run_training_job(paced_worker, arguments | pacing, run, run_folder, relay)


def paced_worker(relay: Any, port: int, seconds: float, **arguments: Any) -> None:
    """`launch.worker.train_worker` with a stream of train steps that waits for its turns."""
    import deepspeed  # noqa: F401  # so that what there is before the model holds all libraries

    from mtrec_ray.launch import worker

    pace = Pace(SIDES[0], port, seconds)
    fit = worker.fit

    def paced_fit(run: Run, manifest: Any, data: Any, context: Any, build_backbone: Any) -> Any:
        return fit(run, manifest, replace(data, train=Paced(data.train, pace)), context, build_backbone)

    with patch.object(worker, "fit", paced_fit):
        try:
            worker.train_worker(relay, **arguments)
        except Enough:
            return


class Paced:
    """A stream of train steps, each counted when the next is asked for: then it is done and logged."""

    def __init__(self, stream: Any, pace: Pace) -> None:
        self.order = stream.order
        self._stream, self._pace = stream, pace

    def steps(self, first: int, last: int) -> Iterator[Any]:
        self._pace.ready()
        with closing(self._stream.steps(first, last)) as source:
            for step in source:
                yield step
                candidates = sum(batch.num_candidates for batch in step.batches)
                if not self._pace.step(candidates, sum(len(batch.ids) for batch in step.batches)):
                    raise Enough
