"""Threads that take turns, and meet: one runs at a time, and work asked for is done once all of them ask for some.

So several trainings, each written as if it were alone, take their steps together.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Work = Callable[[Mapping[int, Any]], Mapping[int, Any]]
"""What the members asked for, by member in ascending order -> what each of them gets."""
Ready = Callable[[Mapping[int, Any]], Iterable[int]]
"""What members asked for of one kind -> at least one of them: whose turn it is."""


@dataclass
class _Asked:
    kind: str
    payload: Any
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class Joint:
    """A meeting place for members, each a thread of its own."""

    def __init__(self, work: Mapping[str, Work], first: str, ready: Ready) -> None:
        """`work`: what is done for each kind of request. `first`: the kind that is done before all others.

        Those who asked for another kind wait then, and those whom `ready` leaves out wait for the next time, so that
        members who are out of phase fall into step.
        """
        self._ready = ready
        self._work = work
        self._first = first
        self._turn = threading.Condition()
        self._door = threading.Lock()
        self._arriving = 0
        """Threads that wait to come in; a member that is alone must let them, for nothing else ends its turn"""
        self._present: set[int] = set()
        self._asked: dict[int, _Asked] = {}

    @contextmanager
    def member(self, number: int) -> Iterator[None]:
        """Inside, this thread is member `number` and it is its turn, but while it asks or is `away`."""
        self._enter(number)
        try:
            yield
        finally:
            self._leave(number)
            self._turn.release()

    @contextmanager
    def away(self, number: int) -> Iterator[None]:
        """Inside, the others go on without this member."""
        self._leave(number)
        self._turn.release()
        try:
            yield
        finally:
            self._enter(number)

    def ask(self, number: int, kind: str, payload: Any) -> Any:
        """What the work of this kind gives for member `number`, done when all present members ask for something.

        Raises:
            BaseException: whatever the work raised; all that asked for it get the same.
        """
        asked = self._asked[number] = _Asked(kind, payload)
        self._serve()
        while not asked.done:
            self._turn.wait()
        if asked.error is not None:
            raise asked.error
        return asked.result

    def _enter(self, number: int) -> None:
        with self._door:
            self._arriving += 1
        self._turn.acquire()
        with self._door:
            self._arriving -= 1
        self._present.add(number)

    def _leave(self, number: int) -> None:
        self._present.discard(number)
        self._asked.pop(number, None)
        self._serve()

    def _serve(self) -> None:
        """Does the work if nobody is left, or about to come in, who might still ask for more."""
        if not self._present or self._present != set(self._asked) or self._arriving:
            return
        kinds = {asked.kind for asked in self._asked.values()}
        for kind in [self._first] if self._first in kinds else sorted(kinds):
            asking = {number: asked.payload for number, asked in self._asked.items() if asked.kind == kind}
            members = sorted(self._ready(asking))
            requests = {number: self._asked.pop(number) for number in members}
            self._do(kind, requests)
        self._turn.notify_all()

    def _do(self, kind: str, requests: dict[int, _Asked]) -> None:
        try:
            results = self._work[kind]({number: asked.payload for number, asked in requests.items()})
        except BaseException as error:
            for asked in requests.values():
                asked.error, asked.done = error, True
            return
        for number, asked in requests.items():
            asked.result, asked.done = results[number], True
