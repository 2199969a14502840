"""Hive partitions: folders `dt=2026-01-31/hr=07` chosen by range, and what they say of the rows of their files."""

import re
from collections.abc import Mapping
from urllib.parse import unquote

from mtrec_ray.config import PartitionRange
from mtrec_ray.errors import ConfigError, DataError

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark write for a partition without a value."""
_WHOLE = re.compile(r"[+-]?\d+")


class Partitions:
    """The declared keys of `data.partitions` (or whatever `where` names), each with its range.

    Raises:
        ConfigError: a range that ends before it begins.
    """

    def __init__(self, ranges: Mapping[str, PartitionRange], where: str = "data.partitions") -> None:
        self.ranges, self.where = ranges, where
        self._outside: dict[str, set[str]] = {}
        for key, asked in ranges.items():
            first, last = _bound(asked.first), _bound(asked.last)
            if first is not None and last is not None and _place(first, last) > _place(last, first):
                raise ConfigError(f"{where}.{key}: first '{first}' lies after last '{last}'; exchange them.")

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def enter(self, folder: str) -> bool:
        """Whether a folder of this name may hold files of the range; folders of other names may.

        Raises:
            DataError: a value that is not written as the range is, so that the two cannot be compared.
        """
        key, equals, value = folder.partition("=")
        inside = not equals or key not in self.ranges or self._inside(key, unquote(value))
        if not inside:
            self._outside.setdefault(key, set()).add(value)
        return inside

    def values(self, path: str) -> dict[str, str | None]:
        """What the folders of a file say, by key; None where Hive says that there is no value.

        Raises:
            DataError: a file that lies in no folder of a declared key.
        """
        folders = (folder.partition("=") for folder in path.partition("?")[0].split("/")[:-1])
        said = {key: unquote(value) for key, equals, value in folders if equals}
        for key in self.ranges:
            if key not in said:
                raise DataError(
                    f"{self.where}.{key}: '{path}' lies in no folder '{key}=...'. Take the key out of "
                    f"{self.where}, or give `logs` the folder whose files all lie in such ones."
                )
        return {key: None if said[key] == NO_VALUE else said[key] for key in self.ranges}

    def holds(self, values: Mapping[str, str | None]) -> bool:
        """Whether a file with these values is inside all ranges."""
        return all(self._inside(key, NO_VALUE if value is None else value) for key, value in values.items())

    def described(self) -> str:
        """For messages: `dt from 2026-01-01 to 2026-01-31`."""
        return ", ".join(
            key
            + (f" from {asked.first}" if asked.first is not None else "")
            + (f" to {asked.last}" if asked.last is not None else "")
            for key, asked in self.ranges.items()
        )

    def outside(self) -> str:
        """For messages: the folders that `enter` has left out, as `dt=2026-01-01 to dt=2026-01-31`; empty if none."""
        return ", ".join(
            f"{key}={ends[0]}" + (f" to {key}={ends[-1]}" if len(ends) > 1 else "")
            for key, values in self._outside.items()
            if (ends := sorted(values, key=lambda value: (len(value), value)))
        )

    def _inside(self, key: str, value: str) -> bool:
        first, last = _bound(self.ranges[key].first), _bound(self.ranges[key].last)
        if value == NO_VALUE:
            return first is None and last is None
        for bound in (first, last):
            if bound is not None and not _comparable(bound, value):
                raise DataError(
                    f"{self.where}.{key}: the folder '{key}={value}' cannot be compared with '{bound}'. Write the "
                    f"bounds as the folders are written, as '{value}'."
                )
        after = first is None or _place(first, value) <= _place(value, first)
        return after and (last is None or _place(value, last) <= _place(last, value))


def _bound(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _comparable(bound: str, value: str) -> bool:
    """Text order means something only between texts of one shape: `20260131` sorts after `2026-02-01`."""
    if _WHOLE.fullmatch(bound) and _WHOLE.fullmatch(value):
        return True
    return not re.search(r"\d", bound) or re.sub(r"\d", "0", bound) == re.sub(r"\d", "0", value)


def _place(value: str, other: str) -> tuple[int, str]:
    """By which `value` is compared with `other`."""
    if _WHOLE.fullmatch(value) and _WHOLE.fullmatch(other):
        return int(value), ""
    return 0, value
