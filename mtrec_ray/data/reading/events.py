"""Canonical events: what is read from the files of a log, whatever their format."""

from dataclasses import dataclass, field

import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.reading.context import context_numbers, context_texts

ROW_BITS = 40
"""A row id is the file's number << ROW_BITS | the row's number in the file, which counts from 1. While a log is read,
the file's number is its place among the files; in prepared data it is that of `log_files.FileNumbers`."""
QUARANTINE = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())])


@dataclass(frozen=True)
class Events:
    """One batch of a log file."""

    table: pa.Table
    """Canonical events, of `delivered_schema`."""
    quarantine: pa.Table
    """Of schema `QUARANTINE`."""
    rows_read: int
    """Rows of both tables together."""
    types: dict[str, int] = field(default_factory=dict)
    """Rows of each event type in `table`: of layout `behaviours`, and of feedback in files of its own."""
    unmapped: int = 0
    """Rows of `table` whose user `data.user_map` does not know; they keep their id."""


def event_schema(run: Run) -> pa.Schema:
    """Columns of the canonical event table, as docs/ARCHITECTURE.md lists them."""
    columns = run.data.columns
    fields = [("row_id", pa.int64()), ("user", pa.string()), ("item", pa.string()), ("time", pa.int64())]
    typed = columns.event is not None or run.data.layout == "behaviours"
    optional = {"request": columns.request is not None, "event": typed, "split": run.split.column is not None}
    fields += [(name, pa.string()) for name, present in optional.items() if present]
    fields += [(f"label.{name}", pa.float64()) for name in run.tasks]
    fields += [(f"feedback_time.{name}", pa.int64()) for name in run.tasks]
    fields += [(f"category.{category.column}", pa.string()) for category in run.data.categories]
    fields += [(f"number.{number.feature}", pa.float64()) for number in run.data.numbers]
    fields += [(f"vector.{vector.column}", pa.list_(pa.float32())) for vector in run.data.vectors]
    fields += [(f"context.{name}", pa.float64()) for name in context_numbers(columns)]
    fields += [(f"context.{name}", pa.string()) for name in context_texts(columns)]
    return pa.schema(fields)


def delivered_schema(run: Run) -> pa.Schema:
    """Columns of the events as they are delivered; `preparing.settle` makes those of `event_schema` of them.

    Beside these: `delivery` what names a row (`data.unique_by`) · `feedback` the type of a row that is a feedback, null
    for an exposure (`impressions` with `data.feedback`) · `impression` the id that it refers to.
    """
    data = run.data
    extra = {
        "delivery": bool(data.unique_by) or any(feedback.unique_by for feedback in data.feedback),
        "feedback": data.layout == "impressions" and bool(data.feedback),
        "impression": data.columns.impression is not None,
    }
    schema = event_schema(run)
    for name in (name for name, present in extra.items() if present):
        schema = schema.append(pa.field(name, pa.string()))
    return schema
