"""A plugin for stacks: trial 2, a poor one, reports later than all others, so that these have to wait for it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrec_ray.launch.stack_trials import StackTrials

LATE, SECONDS = 2, 2.0
reporter = StackTrials._reporter


def late_reporter(self: StackTrials, slot: Any) -> Any:
    report = reporter(self, slot)

    def late(metrics: Mapping[str, Any], folder: Path | None) -> None:
        time.sleep(SECONDS if slot.trial.number == LATE else 0)
        report(metrics, folder)

    return late


StackTrials._reporter = late_reporter  # type: ignore[method-assign]
