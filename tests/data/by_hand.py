"""Small logs written by hand: canonical tables, configs, and buckets made of them."""

from typing import Any

import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.reading.logs import event_schema
from mtrec_ray.data.requests.bucket import Bucket, IdOrder, build_bucket
from mtrec_ray.data.requests.splits import Key, TimeSplit

SECOND = 1_000_000
INTEGERS = IdOrder(users=True, items=True)
ALL_TRAIN = TimeSplit(Key(10**18), Key(10**18))


def config(**parts: Any) -> Run:
    """A run with one binary task known at once; `a__b=value` sets the key a.b."""
    whole: dict[str, Any] = {
        "name": "by-hand",
        "data": {"logs": "log.csv", "columns": {"user": "user", "item": "item", "time": "time"}},
        "tasks": {"like": {"label": "like", "feedback_delay": 0}},
        "backbone": {"name": "none"},
        "features": {"min_count": 1, "time": True},
    }
    for path, value in parts.items():
        *parents, last = path.split("__")
        part = whole
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = value
    return Run.model_validate(whole)


def behaviours(**parts: Any) -> Run:
    """A run on a log of VIEW and LIKE rows."""
    settings: dict[str, Any] = {
        "data__layout": "behaviours",
        "data__candidate_event": "VIEW",
        "data__columns__event": "type",
        "tasks": {"like": {"event": "LIKE"}},
    }
    return config(**{**settings, **parts})


def table(run: Run, rows: list[dict[str, Any]]) -> pa.Table:
    """A canonical table: `user`, `item`, `time` in seconds, labels by task, `<task>_time` (by default `time`)."""
    columns: dict[str, list[Any]] = {name: [] for name in event_schema(run).names}
    for number, row in enumerate(rows):
        columns["row_id"].append(row.get("row_id", number))
        columns["time"].append(int(row["time"] * SECOND))
        for task in run.tasks:
            columns[f"label.{task}"].append(row.get(task))
            known = row.get(f"{task}_time", row["time"])
            columns[f"feedback_time.{task}"].append(None if known is None else int(known * SECOND))
        for name in columns:
            if name not in ("row_id", "time") and not name.startswith(("label.", "feedback_time.")):
                columns[name].append(row.get(name.split(".")[-1]))
    return pa.table(columns, schema=event_schema(run))


def bucket(run: Run, rows: list[dict[str, Any]], boundaries: TimeSplit | None = ALL_TRAIN) -> Bucket:
    """All users in one bucket."""
    return build_bucket(table(run, rows), run, INTEGERS, boundaries)
