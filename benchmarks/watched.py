"""The memory of a process and of all below it over time, beside how far its passes were, and the plot of both.

A side tells of its passes in a file (`tell_of_passes`): one JSON line whenever something is done.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import psutil

from mtrec_ray import progress
from mtrec_ray.data.preparing import parallel

matplotlib.use("Agg")
SECONDS_BETWEEN = 0.5
LEAST_SAMPLES = 10
"""In each third of a pass, below which nothing is said of it."""
FLAT = 1.10
"""Peak of the last third of a pass over that of the second, up to which memory counts as flat."""


class Sample(NamedTuple):
    at: float
    """Seconds of the monotonic clock, which is one for all processes of a machine"""
    worker: dict[int, float]
    """MiB resident in each worker process, Ray's object store included as far as it was touched"""
    private: float
    """MiB of the largest worker without shared pages"""
    driver: float


def tell_of_passes(path: Path) -> None:
    """From now on every pass of `prepare` in this process writes how far it is."""
    shown = progress.track

    class Telling:
        def __init__(self, what: str, total: float | None, unit: str) -> None:
            self._what, self._total, self._bar, self._done = what, total, shown(what, total, unit), 0.0

        def __enter__(self) -> "Telling":
            self._inner = self._bar.__enter__()
            self._write()
            return self

        def __exit__(self, *raised: Any) -> None:
            self._bar.__exit__(*raised)

        def advance(self, n: float = 1) -> None:
            self._inner.advance(n)
            self._done += n
            self._write()

        def _write(self) -> None:
            line = {"at": time.monotonic(), "pass": self._what, "done": self._done, "of": self._total}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    parallel.track = Telling  # type: ignore[assignment]


def watch(pid: int) -> Callable[[], list[Sample]]:
    """Samples from now on, until the function that comes back is called."""
    samples: list[Sample] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SECONDS_BETWEEN):
            try:
                driver = psutil.Process(pid)
                family = driver.children(recursive=True)
                workers = {p.pid: _resident(p.pid) for p in family if p.name().startswith("ray::")}
                private = max((_resident(worker, "RssAnon") for worker in workers), default=0.0)
                samples.append(Sample(time.monotonic(), workers, private, _resident(pid)))
            except (psutil.NoSuchProcess, FileNotFoundError, StopIteration):
                continue  # one of them has just ended

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()

    def finish() -> list[Sample]:
        ended.set()
        thread.join()
        return samples

    return finish


def _resident(pid: int, field: str = "VmRSS") -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def read_passes(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Pass -> (time, share of it that is done), in the order of the passes."""
    passes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in map(json.loads, path.read_text().splitlines()):
        passes[line["pass"]].append((line["at"], line["done"] / max(line["of"] or 1, 1)))
    return dict(passes)


def thirds(samples: list[Sample], passes: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Peak memory of a worker in each third of each pass, by the share of the pass that was done."""
    rows = []
    for name, told in passes.items():
        peaks, counts = [0.0] * 3, [0] * 3
        for sample in samples:
            if sample.worker and told[0][0] <= sample.at <= told[-1][0]:
                share = max(done for at, done in told if at <= sample.at)
                third = min(int(3 * share), 2)
                peaks[third] = max(peaks[third], *sample.worker.values())
                counts[third] += 1
        enough = min(counts[1:]) >= LEAST_SAMPLES
        rows.append(
            {
                "pass": name,
                "seconds": told[-1][0] - told[0][0],
                "peak_mib_by_third": peaks,
                "samples_by_third": counts,
                "last_over_second": peaks[2] / peaks[1] if enough else None,
            }
        )
    return rows


def draw(samples: list[Sample], passes: dict[str, list[tuple[float, float]]], path: Path, title: str) -> None:
    """PNG: one line a worker process, the driver, and where passes begin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes, began = figure.subplots(), samples[0].at
    lines: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        for pid, mib in sample.worker.items():
            lines[pid].append((sample.at - began, mib))
    for line in lines.values():
        axes.plot(*zip(*line, strict=True), linewidth=1)
    axes.plot([s.at - began for s in samples], [s.driver for s in samples], "k--", linewidth=1, label="driver")
    top = axes.get_ylim()[1]
    for name, told in passes.items():
        axes.axvline(told[0][0] - began, color="0.7", linewidth=0.8)
        axes.text(told[0][0] - began, top, f" {name}", rotation=90, va="top", fontsize=7, color="0.4")
    axes.set(xlabel="seconds", ylabel="resident memory of each worker, MiB", title=title, ylim=(0, top))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
