"""A plugin that leaves, beside a run, a digest of all that is trained wherever the run starts again or reports."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from mtrec_ray.engine.base import Engine
from mtrec_ray.train import worker

STARTED, REPORTED = "started-at", "reported-at"


def digest(engine: Engine) -> str:
    """Of adapters, towers, tables and the optimizer's state, bit by bit."""
    found = hashlib.sha256()
    state = {f"{name}/{key}": value for name, part in engine.optimizer_state().items() for key, value in part.items()}
    for name, value in sorted({**engine.parameters(), **state}.items()):
        found.update(name.encode() + value.to(torch.float64).numpy().tobytes())
    return found.hexdigest()


def seen(folder: Path, when: str) -> dict[int, str]:
    """Step -> digest."""
    return {int(path.name.rsplit("-", 1)[1]): path.read_text() for path in folder.glob(f"{when}-*")}


class Watched(worker._Fitting):
    def resume(self, *arguments: Any) -> None:
        super().resume(*arguments)
        if self.step:
            self.leave(STARTED)

    def _report(self, value: float, tasks: dict[str, Any]) -> dict[str, Any]:
        self.leave(REPORTED)
        return super()._report(value, tasks)

    def leave(self, what: str) -> None:
        Path(self.context.run_folder, f"{what}-{self.step}").write_text(digest(self.engine))


worker._Fitting = Watched  # type: ignore[misc]
