"""Two processes that have the machine to themselves in turns, and what each did in its turns and with its memory.

The driver accepts both sides and alternates (`accept`, `take_turns`); a side counts its steps and waits (`Pace`).
"""

import subprocess
import sys
import threading
import time
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import psutil

SIDES = ("mtrec train", "Trainer + PEFT")
KEY = b"benchmark"


def accept(listener: Listener, processes: list[subprocess.Popen[bytes]]) -> dict[str, Connection]:
    """The sides' connections, when both are ready."""
    found: dict[str, Connection] = {}
    watched = threading.Event()

    def give_up() -> None:
        while not watched.wait(1.0):
            if any(process.poll() is not None for process in processes):
                Client(listener.address, authkey=KEY).close()  # wakes up the one that waits
                return

    threading.Thread(target=give_up, daemon=True).start()
    try:
        while len(found) < len(SIDES):
            connection = listener.accept()
            found[connection.recv()] = connection
    except EOFError:
        raise SystemExit("one side ended before it was ready; see above") from None
    finally:
        watched.set()
    return found


def take_turns(ours: Connection, peer: Connection) -> dict[str, list[dict[str, Any]]]:
    """Alternates until the peer is done; the first turn of ours warms up and is dropped."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    one_turn(ours)
    while not (turns[SIDES[1]] and turns[SIDES[1]][-1]["done"]):
        for side, connection in zip(SIDES, (ours, peer), strict=True):
            turns[side].append(one_turn(connection))
            last = turns[side][-1]
            print(f"{side}: {last['candidates']} candidates in {last['wall']:.1f} s", file=sys.stderr, flush=True)
    ours.send(False)
    return turns


def one_turn(connection: Connection) -> dict[str, Any]:
    connection.send(True)
    found: dict[str, Any] = connection.recv()
    return found


class Pace:
    """A side's end: steps are counted, and after each turn it waits until it may go on.

    Processor time is of the whole process, from the end of one turn to the end of the next, so that nothing that a
    side does ahead while it waits is free.
    """

    def __init__(self, side: str, port: int, seconds: float) -> None:
        self._seconds, self._rss_before = seconds, resident_mib("VmRSS")
        self._connection = Client(("localhost", port), authkey=KEY)
        self._side = side

    def ready(self) -> None:
        self._connection.send(self._side)
        self._cpu = time.process_time()
        self._go()

    def step(self, candidates: int, tokens: int) -> bool:
        """Counts an optimizer step; false if it was the last."""
        self._candidates += candidates
        self._tokens += tokens
        if time.perf_counter() - self._start < self._seconds:
            return True
        self.report(done=False)
        return self._go()

    def report(self, done: bool) -> None:
        wall, cpu = time.perf_counter() - self._start, time.process_time()
        self._connection.send(
            {
                "candidates": self._candidates,
                "tokens": self._tokens,
                "wall": wall,
                "cpu": cpu - self._cpu,
                "peak_rss_mib": resident_mib("VmHWM"),
                "rss_before_mib": self._rss_before,
                "done": done,
            }
        )
        self._cpu = cpu

    def _go(self) -> bool:
        go: bool = self._connection.recv()
        self._candidates = self._tokens = 0
        self._start = time.perf_counter()
        return go


def resident_mib(field: str) -> float:
    """`VmRSS` now, or `VmHWM`, the most so far, of this process (unlike `ru_maxrss` without what its parent had)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def watch_memory(processes: dict[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """The largest proportional set size in MiB of each side's processes, sampled once a second from now on."""
    peaks = dict.fromkeys(processes, 0.0)

    def watch() -> None:
        while True:
            for side, process in processes.items():
                peaks[side] = max(peaks[side], tree_pss(process.pid))
            time.sleep(1.0)

    threading.Thread(target=watch, daemon=True).start()
    return peaks


def tree_pss(pid: int) -> float:
    """MiB of a process and all below it; 0 when it has ended."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total / 2**20


def totals(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Rates over all turns of a side; its memory at the end."""
    candidates, tokens, wall, cpu = (
        sum(turn[name] for turn in turns) for name in ("candidates", "tokens", "wall", "cpu")
    )
    return {
        "candidates": candidates,
        "candidates_per_s_wall": candidates / wall,
        "candidates_per_s_cpu": candidates / cpu,
        "tokens_per_candidate": tokens / candidates,
        "wall_s": wall,
        "cpu_s": cpu,
        "rss_before_mib": turns[-1]["rss_before_mib"],
        "peak_rss_mib": turns[-1]["peak_rss_mib"],
    }
