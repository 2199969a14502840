"""One split's steps for several trainings in one process: read once for all that are at the same place."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

_KEPT = 2
"""Steps that are kept for trainings a little behind."""
_MOST_READERS = 8


class Source(Protocol):
    """`data.streaming.stream.StepStream`, for one."""

    @property
    def order(self) -> Any: ...

    def steps(self, first: int, last: int) -> Iterator[Any]: ...


class SharedSteps:
    """A stream whose readers share what they read; not for several threads at the same time.

    Trainings in step get the same objects. One that starts later, from step 0, has a reader of its own, until it
    meets another one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._readers: OrderedDict[int, Iterator[Any]] = OrderedDict()
        """By the step each would read next, the latest used last"""
        self._recent: OrderedDict[int, Any] = OrderedDict()

    @property
    def order(self) -> Any:
        return self._source.order

    def steps(self, first: int, last: int) -> Iterator[Any]:
        """Steps [first, last), counted over epochs."""
        for index in range(first, last):
            yield self._at(index, last)

    def close(self) -> None:
        """Ends all readers."""
        while self._readers:
            _close(self._readers.popitem()[1])

    def _at(self, index: int, last: int) -> Any:
        if index in self._recent:
            return self._recent[index]
        reader = self._readers.pop(index, None)
        step = next(reader, None) if reader is not None else None
        if reader is None or step is None:  # nobody is here, or who is here was to read no further
            reader = self._source.steps(index, last)
            step = next(reader)
        taken = self._readers.pop(index + 1, None)
        if taken is not None:
            _close(taken)
        self._readers[index + 1] = reader
        while len(self._readers) > _MOST_READERS:
            _close(self._readers.popitem(last=False)[1])
        self._recent[index] = step
        while len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return step


def _close(reader: Any) -> None:
    with contextlib.suppress(AttributeError):
        reader.close()
