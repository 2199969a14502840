"""Results that outlive their `prepare`, read back one after another where they are large."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.preparing.pieces import Kept, Pieces

KEYS = [f"{n:02d}" for n in range(20)]


def multiplied(item: int, factor: int) -> int:
    return item * factor


def each(kept: Kept, items: Sequence[int], keys: Sequence[str]) -> Any:
    return kept.each("sums", multiplied, items, keys, 10, "Multiplying", "numbers")


def test_a_large_result_does_not_pass_through_the_tasks(tmp_path: Path) -> None:
    returned: list[Any] = []

    def tasks(function: Callable[[Any, Any], Any], *rest: Any) -> list[Any]:
        returned.extend(serial_tasks(function, *rest))
        return returned

    results = each(Kept(Pieces.of(str(tmp_path)), tasks), range(20), KEYS)
    assert returned == [None] * 20
    assert list(results) == [10 * n for n in range(20)]


def test_few_results_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = Pieces.load

    def noted(self: Pieces, kind: str, key: str) -> Any:
        loaded.append(key)
        return load(self, kind, key)

    monkeypatch.setattr(Pieces, "load", noted)
    results = each(Kept(Pieces.of(str(tmp_path)), serial_tasks), range(20), KEYS)
    assert loaded == []
    assert [next(results), next(results)] == [0, 10]
    assert len(loaded) == 4


def test_what_is_known_is_not_made_again(tmp_path: Path) -> None:
    first = Kept(Pieces.of(str(tmp_path)), serial_tasks)
    list(each(first, range(3), KEYS[:3]))
    second = Kept(Pieces.of(str(tmp_path)), serial_tasks)
    assert list(each(second, [7, 2, 0], ["new", KEYS[2], KEYS[0]])) == [70, 20, 0]
    assert (second.made, second.total) == ({"sums": 1}, {"sums": 3})
    assert second.used == {"sums": {"new", KEYS[2], KEYS[0]}}
