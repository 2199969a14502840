"""A plugin that ends a training worker's process before two of its steps, each once, as a lost node would."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtrec_ray.launch import worker
from mtrec_ray.train.worker import StepSource

RUN = "stopped"
"""Only runs of this name are stopped."""
BEFORE = (3, 5)
fit = worker.fit


class Stopping:
    """A stream that does not survive."""

    def __init__(self, stream: StepSource, marks: Path) -> None:
        self.stream, self.marks = stream, marks

    @property
    def order(self) -> Any:
        return self.stream.order

    def steps(self, first: int, last: int) -> Iterator[Any]:
        for number, step in enumerate(self.stream.steps(first, last), first):
            mark = self.marks / f"stopped-before-{number}"
            if number in BEFORE and not mark.exists():
                self.wait_for_checkpoint(number - 1)
                mark.write_text(f"started at {first}")
                os._exit(1)
            yield step

    def wait_for_checkpoint(self, step: int) -> None:
        """Ray's controller asks the workers for what they reported every two seconds; these steps take milliseconds."""
        snapshot = self.marks / ".ray" / "checkpoint_manager_snapshot.json"
        for _ in range(300):
            if snapshot.is_file() and re.search(rf'"step":\s*{step}\b', snapshot.read_text()):
                return
            time.sleep(0.1)
        raise TimeoutError(f"the checkpoint of step {step} never reached the controller")


def fit_until_stopped(run: Any, manifest: Any, data: Any, context: Any, build_backbone: Any) -> Any:
    if run.name == RUN and context.world_rank == 0:
        data = replace(data, train=Stopping(data.train, Path(context.run_folder)))
    return fit(run, manifest, data, context, build_backbone)


worker.fit = fit_until_stopped
