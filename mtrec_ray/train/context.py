"""Where a training worker runs: its rank, its device, its run folder, and whom it reports to."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mtrec_ray.progress import say


class Context(Protocol):
    """What `train.worker.fit` knows of the world."""

    world_rank: int
    world_size: int
    device: torch.device
    run_folder: str
    """Path or URL, the same for all ranks."""

    def restored(self) -> AbstractContextManager[Path | None]:
        """The latest checkpoint of this run as a local folder, or None for a fresh run."""
        ...

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Hands over metrics and a checkpoint folder, which only rank 0 has. All ranks call it equally often."""
        ...

    def say(self, text: str) -> None:
        """A line for whoever started the run, wherever that is."""
        ...


class LocalContext:
    """One process, or one of a process group, without Ray: for tests, notebooks and profilers."""

    def __init__(self, run_folder: Path | str, device: str = "cpu") -> None:
        self.world_rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.device = torch.device(device)
        self.run_folder = str(run_folder)
        self.reports: list[dict[str, float]] = []
        self.latest = Path(run_folder) / "latest"

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        yield self.latest if self.latest.is_dir() else None

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        self.reports.append(dict(metrics))
        if checkpoint is not None:
            shutil.rmtree(self.latest, ignore_errors=True)
            shutil.copytree(checkpoint, self.latest)
        if self.world_size > 1:
            dist.barrier()

    def say(self, text: str) -> None:
        say(text)


class RayContext:
    """A worker of Ray Train v2, which has made the process group.

    Facts kept here: `report` is a barrier; Ray keeps metrics only where they come with a checkpoint (ray #56718), so
    nothing else is reported; a restarted worker group finds the latest checkpoint by itself.
    """

    def __init__(self, run_folder: str, say: Callable[[str], None]) -> None:
        """`say`: carries a line to the driver; a worker's own stderr is a log file that nobody looks at."""
        import ray.train
        import ray.train.torch

        self._train: Any = ray.train
        context = ray.train.get_context()
        self.world_rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.run_folder = run_folder
        self._say = say

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        checkpoint = self._train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        made = None if checkpoint is None else self._train.Checkpoint.from_directory(str(checkpoint))
        self._train.report(dict(metrics), checkpoint=made)

    def say(self, text: str) -> None:
        self._say(text)
