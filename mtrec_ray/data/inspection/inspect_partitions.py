"""Finds the dates in folders like `dt=2026-01-31/hr=07`, for `data.inspect`."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from mtrec_ray.data.reading.formats import DataFile
from mtrec_ray.data.reading.partitions import NO_VALUE

_DATE = re.compile(r"(?:19[789]\d|20\d\d)(?P<rest>-(?:0[1-9]|1[0-2])(?P<day>-[0-3]\d)?|(?:0[1-9]|1[0-2])[0-3]\d)?")
"""A year, a month or a day, as `2026`, `2026-01`, `2026-01-31` or `20260131`."""


def describe_partitions(files: Iterable[DataFile], notes: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`data.partitions` with the keys whose folders are dates, all of them taken, and what to remark on it: the range
    that is there, and `data.period` where the folders are days. Nothing, where some file lies in no such folder."""
    said = [dict(_folders(file.name)) for file in files]
    shared = [key for key in said[0] if all(key in folders for folders in said)]
    values = {key: sorted({folders[key] for folders in said} - {NO_VALUE}) for key in shared}
    dates = {key: found for key, found in values.items() if found and all(map(_DATE.fullmatch, found))}
    if not dates:
        return {}, []
    key, found = next(iter(dates.items()))
    remarks = [f"all from {found[0]} to {found[-1]}"]
    if len(found) > 1:
        remarks[0] += f"; as {{{key}: {{first: {found[len(found) // 2]}}}}} only those from then on"
    notes.append(f"folders {key}={found[0]} to {key}={found[-1]} are partitions, which a range can choose among")
    if any(_is_day(value) for value in found):
        remarks.append("period: 1d  # with split.fit_until a new day then only adds shards; requests end with the day")
        notes.append("data.period is not set: with 1d, and split.fit_until, a new day only adds shards")
    return {"partitions": {key: {} for key in dates}}, remarks


def _folders(name: str) -> Iterable[tuple[str, str]]:
    """Key and value of each folder of a file's name that has both."""
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if equals:
            yield key, unquote(value)


def _is_day(value: str) -> bool:
    match = _DATE.fullmatch(value)
    return match is not None and (match["day"] is not None or len(value) == len("20260131"))
