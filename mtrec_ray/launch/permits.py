"""Between a trial and its training in other processes: reports one way, permits to go on the other."""

import queue
from typing import Any

import ray

_POLL_SECONDS = 0.5


class _Box:
    """An actor that holds at most one report, and permits."""

    def __init__(self) -> None:
        self._reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self._permits: queue.Queue[None] = queue.Queue()

    def put(self, report: dict[str, Any]) -> None:
        self._reports.put(report)

    def take(self, seconds: float) -> dict[str, Any] | None:
        try:
            return self._reports.get(timeout=seconds)
        except queue.Empty:
            return None

    def permit(self) -> None:
        self._permits.put(None)

    def wait(self) -> None:
        self._permits.get()


class Permits:
    """Both ends of one box; picklable."""

    def __init__(self) -> None:
        self._box: Any = ray.remote(_Box).options(num_cpus=0, max_concurrency=4).remote()

    def report(self, report: dict[str, Any]) -> None:
        """Hands a report over and waits until the trial may go on."""
        ray.get(self._box.put.remote(report))
        ray.get(self._box.wait.remote())

    def take(self) -> dict[str, Any] | None:
        """The next report; None if there is none within half a second."""
        found: dict[str, Any] | None = ray.get(self._box.take.remote(_POLL_SECONDS))
        return found

    def permit(self) -> None:
        """Lets the training go on after its report."""
        ray.get(self._box.permit.remote())

    def close(self) -> None:
        ray.kill(self._box)
