"""Results that outlive the `prepare` that made them: `<data.prepared_dir>/pieces/<kind>/<key>`.

A key is the digest of all that a piece depends on, so a piece is what a full run would make, whoever made it and when.
It is known once its record, `<key>.piece`, is there, which is written last. So a `prepare` that was killed goes on
where it was, the next one makes what is new, and two at once write the same bytes.
"""

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from mtrec_ray.data.filesystem import open_fs, write_atomic
from mtrec_ray.data.preparing.digest import digest
from mtrec_ray.data.preparing.parallel import MapTasks

Item = TypeVar("Item")
Result = TypeVar("Result")

PIECES = "pieces"
LAST = "last"
"""Not a kind of pieces: what the latest `prepare` of some settings fitted."""
FORMAT = (6, sys.version_info[:2], np.__version__, pa.__version__)
"""Part of every key: what the code makes of the same inputs, and how records and files are written."""
_RECORD = ".piece"
_THREADS = 16
_AHEAD = 4
"""Results that are loaded at once where they are asked for one after another"""


@dataclass(frozen=True)
class Pieces:
    """The pieces in a folder of a file system."""

    fs: pafs.FileSystem
    root: str

    @classmethod
    def of(cls, prepared_dir: str) -> "Pieces":
        fs, root = open_fs(prepared_dir)
        return cls(fs, f"{root}/{PIECES}")

    def path(self, kind: str, key: str, rest: str = "") -> str:
        """Where files of a piece lie."""
        return f"{self.root}/{kind}/{key}{rest}"

    def known(self, kind: str) -> set[str]:
        """The keys of all complete pieces of a kind."""
        infos = self.fs.get_file_info(pafs.FileSelector(f"{self.root}/{kind}", allow_not_found=True))
        return {info.base_name.removesuffix(_RECORD) for info in infos if info.base_name.endswith(_RECORD)}

    def has(self, kind: str, key: str) -> bool:
        return self.fs.get_file_info(self.path(kind, key, _RECORD)).type == pafs.FileType.File

    def load(self, kind: str, key: str) -> Any:
        with self.fs.open_input_stream(self.path(kind, key, _RECORD)) as stream:
            return pickle.loads(stream.read())

    def load_all(self, kind: str, keys: Sequence[str]) -> list[Any]:
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(lambda key: self.load(kind, key), keys))

    def load_each(self, kind: str, keys: Sequence[str]) -> Iterator[Any]:
        """One after another, a few of them in memory."""
        for first in range(0, len(keys), _AHEAD):
            yield from self.load_all(kind, keys[first : first + _AHEAD])

    def save(self, kind: str, key: str, result: Any) -> None:
        """Makes a piece known, whose files are written."""
        write_atomic(self.fs, self.path(kind, key, _RECORD), pickle.dumps(result, protocol=5))


def key_of(*values: Any) -> str:
    """The key of a piece that depends on these values."""
    return digest(FORMAT, *values)


@dataclass
class Kept:
    """The pieces that one `prepare` used: what was there, what it made."""

    pieces: Pieces
    map_tasks: MapTasks
    used: dict[str, set[str]] = field(default_factory=dict)
    """Kind -> keys"""
    made: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)

    def map(
        self,
        kind: str,
        function: Callable[[Any, Any], Result],
        items: Sequence[Any],
        keys: Sequence[str],
        shared: Any,
        what: str,
        unit: str,
        usable: Callable[[Result], bool] = lambda result: True,
    ) -> list[Result]:
        """`function(item, shared)` for every item, where it is not known yet under the item's key. `usable`: whether
        the pieces that a result speaks of are there."""
        known = self.pieces.known(kind)
        there = [i for i, key in enumerate(keys) if key in known]
        loaded = self.pieces.load_all(kind, [keys[i] for i in there])
        results = {i: result for i, result in zip(there, loaded, strict=True) if usable(result)}
        missing = [i for i in range(len(keys)) if i not in results]
        if missing:
            task = _Task(self.pieces, kind, function, shared)
            made = self.map_tasks(_make, [(keys[i], items[i]) for i in missing], task, what, unit)
            results.update(zip(missing, made, strict=True))
        self.count(kind, keys, len(missing))
        return [results[i] for i in range(len(keys))]

    def each(
        self,
        kind: str,
        function: Callable[[Any, Any], Result],
        items: Sequence[Any],
        keys: Sequence[str],
        shared: Any,
        what: str,
        unit: str,
    ) -> Iterator[Result]:
        """As `map`, for results that are large: they stay where they are kept, and are read from there in their order
        when they are asked for."""
        known = self.pieces.known(kind)
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            task = _Task(self.pieces, kind, function, shared)
            self.map_tasks(_leave, [(keys[i], items[i]) for i in missing], task, what, unit)
        self.count(kind, keys, len(missing))
        return self.pieces.load_each(kind, keys)

    def changed(self, key: str, value: str) -> bool:
        """Whether the value under this key is another than that of the `prepare` before, if there was one."""
        before = self.pieces.load(LAST, key) if self.pieces.has(LAST, key) else value
        self.pieces.save(LAST, key, value)
        return bool(before != value)

    def count(self, kind: str, keys: Sequence[str], made: int) -> None:
        """Pieces of a kind that were used, so many of them made for it."""
        self.used.setdefault(kind, set()).update(keys)
        self.made[kind] = self.made.get(kind, 0) + made
        self.total[kind] = self.total.get(kind, 0) + len(keys)


@dataclass(frozen=True)
class _Task:
    pieces: Pieces
    kind: str
    function: Callable[[Any, Any], Any]
    shared: Any


def _make(work: tuple[str, Any], task: _Task) -> Any:
    key, item = work
    result = task.function(item, task.shared)
    task.pieces.save(task.kind, key, result)
    return result


def _leave(work: tuple[str, Any], task: _Task) -> None:
    _make(work, task)
