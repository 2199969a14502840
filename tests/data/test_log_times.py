"""Units of time."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.requests.splits import explicit_boundaries
from mtrec_ray.errors import ConfigError, DataError
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


# In Oslo clocks went from 02:00 to 03:00 on 2020-03-29, and from 03:00 back to 02:00 on 2020-10-25.
OSLO = [
    ("2020-05-17T14:00:00", 0),
    ("2020-05-17T12:00:00Z", 0),
    ("2020-05-17T08:00:00-04:00", 0),
    ("2020-01-17 13:00:00.5", -121 * 86_400 * 10**6 + 500_000),
    ("2020-03-29T02:30:00", None),
    ("2020-10-25T02:30:00", None),
    ("2020-10-25T02:30:00+01:00", 160 * 86_400 * 10**6 + 13 * 3600 * 10**6 + 1800 * 10**6),
]


@pytest.mark.parametrize("mixed", [True, False], ids=["with offsets", "without"])
def test_text_without_an_offset_is_in_the_declared_zone(tmp_path: Path, mixed: bool) -> None:
    """What the zone had twice or never is quarantined; both by Arrow (without offsets) and cell by cell."""
    cells = [(cell, known) for cell, known in OSLO if mixed or not re.search(r"Z|[+-]\d\d:\d\d$", cell)]
    text = ",".join(HEADER) + "\n" + "".join(f"1,2,{cell},r,1,5,,1,a,b\n" for cell, _ in cells)
    events = read_csv(tmp_path, text, data__time_unit="iso", data__time_zone="Europe/Oslo")
    times = events.table.column("time").to_numpy() - MAY * 10**6
    assert times.tolist() == [known for _, known in cells if known is not None]
    assert events.quarantine.num_rows == sum(known is None for _, known in cells) == 2


def test_parquet_timestamps_without_a_zone_are_in_the_declared_one(tmp_path: Path) -> None:
    rows = [[1, 2, MAY * 10**6, *ROWS[0][3:]]]
    for zone, hours in ((None, 2), ("UTC", 0), ("America/New_York", 0)):
        table = pq.read_table(write(tmp_path, "parquet", rows))
        stamps = pa.array([MAY * 10**6], pa.timestamp("us", zone))
        pq.write_table(table.set_column(2, "time", stamps), tmp_path / "log.parquet")
        events = read(make_run(tmp_path / "log.parquet", data__time_zone="Europe/Oslo"))
        assert events.table["time"].to_pylist() == [(MAY - hours * 3600) * 10**6], zone


def test_dates_of_the_split_are_in_the_declared_zone(tmp_path: Path) -> None:
    split = {"train_until": "2020-05-17T14:00:00", "valid_until": "2020-05-17T14:00:00+00:00"}
    run = make_run(tmp_path, split=split, data__time_zone="Europe/Oslo")
    boundaries = explicit_boundaries(run)
    assert boundaries is not None
    assert [key.time for key in boundaries] == [MAY * 10**6, (MAY + 7200) * 10**6]


def test_an_unknown_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'Norway/Oslo' is no time zone; write an IANA name"):
        make_run(tmp_path, data__time_zone="Norway/Oslo")
