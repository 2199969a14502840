"""A plugin that leaves, beside a run, a digest of all that is trained wherever the run starts again or reports."""

from pathlib import Path
from typing import Any

from mtrec_ray.train import worker
from tests.launch.digests import REPORTED, STARTED, digest


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
