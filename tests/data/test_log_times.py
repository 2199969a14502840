"""Units of time."""

from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.errors import DataError
from tests.data.log_files import HEADER, ROWS, make_run, read, read_csv, write

MAY = 1_589_716_800
"""2020-05-17T12:00:00Z in seconds."""


@pytest.mark.parametrize(
    ("unit", "cells", "expected"),
    [
        ("s", [MAY, f"{MAY}.25", f" {MAY}"], [0, 250_000, 0]),
        ("ms", [MAY * 1000 + 7], [7000]),
        ("us", [MAY * 10**6 + 7], [7]),
        ("ns", [MAY * 10**9 + 7999, f"{MAY * 10**9 + 7999}.0"], [7, 7]),
        ("iso", ["2020-05-17T12:00:00", "2020-05-17 12:00:00.5"], [0, 500_000]),
        ("iso", ["2020-05-17T12:00:00Z", "2020-05-17T14:00:00.000001+02:00"], [0, 1]),
        ("iso", ["2020-05-17T12:00:00Z", "2020-05-17T12:00:00", "2020-05-17"], [0, 0, -12 * 3600 * 10**6]),
    ],
)
def test_time_units(tmp_path: Path, unit: str, cells: list[Any], expected: list[int]) -> None:
    text = ",".join(HEADER) + "\n" + "".join(f"1,2,{cell},r,1,5,,1,a,b\n" for cell in cells)
    times = read_csv(tmp_path, text, data__time_unit=unit).table.column("time").to_numpy() - MAY * 10**6
    if unit == "ns":
        assert abs(times - expected).max() <= 1, "a decimal of this size is only known to 256 ns"
    else:
        assert times.tolist() == expected


@pytest.mark.parametrize(
    ("declared", "cell", "right"),
    [
        ("s", MAY * 1000, "ms"),
        ("ms", MAY, "s"),
        ("s", MAY * 10**9, "ns"),
        ("s", "2020-05-17", "iso"),
        ("iso", MAY, "s"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_wrong_unit_is_refused_with_the_right_one(
    tmp_path: Path, kind: str, declared: str, cell: Any, right: str
) -> None:
    path = write(tmp_path, kind, [[1, 2, cell, *ROWS[0][3:]]] * 3)
    with pytest.raises(DataError, match=rf"data\.time_unit: '{declared}' .* Set data\.time_unit: {right}\."):
        read(make_run(path, data__time_unit=declared))
