"""Progress of long steps: a bar on a terminal, plain lines at a few seconds' distance everywhere else.

All of it goes to stderr, so that stdout holds results alone (a config, a path, a table) and can be piped. Inside Ray
workers stderr is a log file; a long step is therefore tracked where the driver waits for it.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, TextIO

LINE_INTERVAL = 10.0
"""Seconds between two plain lines of one step."""


class Bar(Protocol):
    """What `track` gives: count what is done, and say in a few words how it stands."""

    def advance(self, n: float = 1) -> None: ...

    def note(self, text: str) -> None: ...


def say(text: str) -> None:
    """One line to stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def verbose() -> bool:
    """Whether the user asked to see the libraries' own output: `--verbose`, or MTREC_VERBOSE=1 for child processes."""
    return os.environ.get("MTREC_VERBOSE", "") not in ("", "0")


@contextmanager
def track(what: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """Shows how far `what` is until the block ends; of `total` units, if that is known.

    The last line gives count, duration and rate. A block that raises ends without one: its error is the message.
    """
    step = _TerminalBar(what, total, unit) if sys.stderr.isatty() else PlainLines(what, total, unit, sys.stderr)
    with step:
        yield step


class PlainLines:
    """The bar of logs, pipes and CI: `prepare: 120/400 users (30%), 24/s, 0:12 left, note`."""

    def __init__(
        self, what: str, total: float | None, unit: str, stream: TextIO, interval: float = LINE_INTERVAL
    ) -> None:
        self.what, self.total, self.unit, self.stream, self.interval = what, total, unit, stream, interval
        self.done, self.text = 0.0, ""
        self.started = self.printed = time.monotonic()

    def advance(self, n: float = 1) -> None:
        self.done += n
        self._print_if_due()

    def note(self, text: str) -> None:
        self.text = text
        self._print_if_due()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            elapsed = time.monotonic() - self.started
            self._print(summary(self.what, self.done, elapsed, self.unit, self.text))

    def _print_if_due(self) -> None:
        now = time.monotonic()
        if now - self.printed >= self.interval:
            self.printed = now
            self._print(standing(self.what, self.done, self.total, now - self.started, self.unit, self.text))

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


class _TerminalBar:
    """The bar of terminals, drawn by rich; it stays as a line when the step is done."""

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        from rich import progress
        from rich.console import Console

        self.what, self.unit, self.done, self.text = what, unit, 0.0, ""
        self.started = time.monotonic()
        self.view = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[count]}"),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self.total = total
        self.task = self.view.add_task(what, total=total, count="", note="")

    def advance(self, n: float = 1) -> None:
        self.done += n
        self.view.update(self.task, advance=n, count=count(self.done, self.total, self.unit))

    def note(self, text: str) -> None:
        self.text = text
        self.view.update(self.task, note=text)

    def __enter__(self) -> Self:
        self.view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.view.stop()
        if kind is None:
            say(summary(self.what, self.done, time.monotonic() - self.started, self.unit, self.text))


def standing(what: str, done: float, total: float | None, elapsed: float, unit: str, note: str) -> str:
    """The line of a step under way: `prepare: 120/400 users (30%), 24/s, 0:12 left, note`; `elapsed` in seconds."""
    parts = [count(done, total, unit) + (f" ({done / total:.0%})" if total else "")]
    if done and elapsed > 0:
        parts.append(f"{_number(done / elapsed)}/s")
    if done and total:
        parts.append(f"{clock(max(total - done, 0) * elapsed / done)} left")
    else:
        parts.append(clock(elapsed))
    return f"{what}: {', '.join([*parts, note] if note else parts)}"


def summary(what: str, done: float, elapsed: float, unit: str, note: str) -> str:
    """The last line of a step: `prepare: 400 users in 0:17 (24/s), note`; `elapsed` in seconds."""
    counted = f"{count(done, None, unit)} in {clock(elapsed)}" if done else f"done in {clock(elapsed)}"
    rate = f" ({_number(done / elapsed)}/s)" if done and elapsed > 0 else ""
    return f"{what}: {counted}{rate}{', ' + note if note else ''}"


def count(done: float, total: float | None, unit: str) -> str:
    """`120/400 users`, or `120 users` of an unknown total."""
    counted = _number(done) if total is None else f"{_number(done)}/{_number(total)}"
    return f"{counted} {unit}" if unit else counted


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
