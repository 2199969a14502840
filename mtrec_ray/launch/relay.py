"""Progress that a remote worker makes, shown where the driver waits for it."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray

from mtrec_ray.errors import UserError
from mtrec_ray.progress import Bar, say, track

_POLL_SECONDS = 0.5


class _Mailbox:
    """An actor that keeps messages until the driver asks for them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, tuple[Any, ...]]] = []
        self._refusal: UserError | None = None

    def refuse(self, error: UserError) -> None:
        self._refusal = error

    def refusal(self) -> UserError | None:
        return self._refusal

    def put(self, name: str, *arguments: Any) -> None:
        self._messages.append((name, arguments))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        taken, self._messages = self._messages, []
        return taken


class Relay:
    """The worker's end, picklable: the same calls as `progress`, carried to the driver without waiting for it."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def say(self, text: str) -> None:
        self._mailbox.put.remote("say", text)

    @contextmanager
    def track(self, what: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        self._mailbox.put.remote("start", what, total, unit)
        try:
            yield self
        except GeneratorExit:  # steps that stopped early are done all the same
            self._mailbox.put.remote("end")
            raise
        self._mailbox.put.remote("end")

    def advance(self, n: float = 1) -> None:
        self._mailbox.put.remote("advance", n)

    def note(self, text: str) -> None:
        self._mailbox.put.remote("note", text)

    def refuse(self, error: UserError) -> None:
        """Keeps a mistake of the user for workers that are started again."""
        ray.get(self._mailbox.refuse.remote(error))

    def raise_refusal(self) -> None:
        """Raises the mistake that was kept, if any."""
        error = ray.get(self._mailbox.refusal.remote())
        if error is not None:
            raise error


@contextmanager
def relayed() -> Iterator[Relay]:
    """A relay whose messages are shown on this machine until the block ends."""
    mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0).remote()
    done = threading.Event()
    display = _Display()
    thread = threading.Thread(target=_show, args=(mailbox, display, done), daemon=True, name="progress")
    thread.start()
    failed = True
    try:
        yield Relay(mailbox)
        failed = False
    finally:
        done.set()
        thread.join()
        display.close(failed)
        ray.kill(mailbox)


def _show(mailbox: Any, display: "_Display", done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(_POLL_SECONDS)  # once more after the end, for what came meanwhile
        for name, arguments in ray.get(mailbox.take.remote()):
            display.receive(name, arguments)


class _Display:
    """Plays messages on `progress`; a bar that a failed worker left open ends without its last line."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bar: Bar | None = None

    def receive(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "say":
            say(*arguments)
        elif name == "start":
            self.close(failed=True)
            self._bar = self._stack.enter_context(track(*arguments))
        elif name == "end":
            self.close(failed=False)
        elif self._bar is not None:
            getattr(self._bar, name)(*arguments)

    def close(self, failed: bool) -> None:
        stack, self._stack, self._bar = self._stack, ExitStack(), None
        if failed:
            error = RuntimeError("interrupted")
            stack.__exit__(RuntimeError, error, None)
        else:
            stack.close()
