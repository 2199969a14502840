"""Logs of any format -> canonical events, and the rows that had to be put in quarantine, with the reason.

Plain functions over one file, in bounded batches, without Ray: `prepare` maps them over the shards.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Data, Run, Task
from mtrec_ray.data.reading import expressions
from mtrec_ray.data.reading.cells import Times, as_micros, as_numbers, as_text, guess_unit
from mtrec_ray.data.reading.context import context_numbers, context_texts, faults, trimmed
from mtrec_ray.data.reading.formats import (
    BATCH_ROWS,
    BadRow,
    DataFile,
    RawBatch,
    column_names,
    find_shards,
    read_batches,
)
from mtrec_ray.data.reading.patterns import extract_numbers
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.labels import Labels
from mtrec_ray.registry import suggest
from mtrec_ray.tasks.labels import labels_of

LogFile = DataFile
ROW_BITS = 40
"""A row id is the file's number << ROW_BITS | the row's number in the file, which counts from 1."""
QUARANTINE = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())])
_CONTENT_LIMIT = 500

_REMEDIES = {
    "data.columns.user": "A log needs a column that says whose row it is: name it here, or add one when writing the "
    "log (a session or device id will do).",
    "data.columns.time": "A log needs a column with the time of each row, because a history may only hold what came "
    "before: name it here, or add one when writing the log.",
    "data.columns.item": "A log needs a column with the id of the item shown: name it here.",
}


@dataclass(frozen=True)
class Events:
    """One batch of a log file."""

    table: pa.Table
    """Canonical events, of `event_schema`."""
    quarantine: pa.Table
    """Of schema `QUARANTINE`."""
    rows_read: int
    """Rows of both tables together."""
    types: dict[str, int] = field(default_factory=dict)
    """`behaviours`: rows of each event type in `table`."""


def find_files(data: Data) -> list[LogFile]:
    """The log's shards, sorted by path; their places in this list are the file numbers in row ids.

    Raises:
        DataError: a path with no file behind it.
    """
    return find_shards(data.logs, data.format, "data.logs")


def event_schema(run: Run) -> pa.Schema:
    """Columns of the canonical event table, as docs/ARCHITECTURE.md lists them."""
    fields = [("row_id", pa.int64()), ("user", pa.string()), ("item", pa.string()), ("time", pa.int64())]
    optional = {"request": run.data.columns.request, "event": run.data.columns.event, "split": run.split.column}
    fields += [(name, pa.string()) for name, column in optional.items() if column is not None]
    fields += [(f"label.{name}", pa.float64()) for name in run.tasks]
    fields += [(f"feedback_time.{name}", pa.int64()) for name in run.tasks]
    fields += [(f"category.{category.column}", pa.string()) for category in run.data.categories]
    fields += [(f"number.{number.feature}", pa.float64()) for number in run.data.numbers]
    fields += [(f"context.{name}", pa.float64()) for name in context_numbers(run.data.columns)]
    fields += [(f"context.{name}", pa.string()) for name in context_texts(run.data.columns)]
    return pa.schema(fields)


def check_log(files: list[LogFile], run: Run) -> None:
    """Reads as little as it can to find, before any work starts, what would stop the reading of the log.

    Raises:
        DataError: an unknown column, or no row in any file.
        ConfigError: an expression that cannot be read, an unknown kind of task, or one that lacks its label or has one
            too many.
    """
    _check_labels(run)
    _check_columns(files[0], run, column_names(files[0], BATCH_ROWS), sparse_ok=False)
    if not any(_has_rows(file) for file in files):
        raise DataError(
            f"data.logs: the log is empty: no row in {len(files)} file(s), the first is '{files[0].path}'. "
            "Give files with rows."
        )


def read_events(file: LogFile, index: int, run: Run) -> Iterator[Events]:
    """Canonical events of one file, in batches of bounded size, in the file's order.

    Args:
        index: the file's number, its place in `find_files`.

    Raises:
        DataError: an unknown column, a broken file, or times that are mostly in another unit than `data.time_unit`.
        ConfigError: an expression that cannot be read.
    """
    _check_columns(file, run, column_names(file), sparse_ok=file.format == "jsonl")
    columns = [column for _, column in _needed_columns(run)]
    reader = _Reader(file, index, run)
    for batch in read_batches(file, columns):
        yield reader.events(batch)


def _check_labels(run: Run) -> None:
    """Of the built-in kinds the config knows by itself whether they need a label; of a guest's kind only its module."""
    for name, task in run.tasks.items():
        needs_label = labels_of(task.kind, run.plugins) != "none"
        source = "event" if run.data.layout == "behaviours" else "label"
        if needs_label and not task.labelled:
            raise ConfigError(f"tasks.{name}: kind '{task.kind}' needs a label; give `{source}`.")
        if task.labelled and not needs_label:
            raise ConfigError(f"tasks.{name}: kind '{task.kind}' has no label; remove `{source}`.")


def _has_rows(file: LogFile) -> bool:
    batches = read_batches(file, column_names(file)[:1], 1)
    return any(batch.table.num_rows or batch.bad for batch in batches)


def _needed_columns(run: Run) -> list[tuple[str, str]]:
    """(dotted config path, column) of everything the run reads from its log."""
    columns = run.data.columns
    needed = [(f"data.columns.{name}", column) for name, column in columns.model_dump().items() if column is not None]
    if run.split.column is not None:
        needed.append(("split.column", run.split.column))
    for name, task in run.tasks.items():
        for part in ("label", "observed"):
            if (expression := getattr(task, part)) is not None:
                where = f"tasks.{name}.{part}"
                needed += [(where, column) for column in expressions.columns_of(expression, where)]
        for part in ("value", "feedback_time"):
            if (column := getattr(task, part)) is not None:
                needed.append((f"tasks.{name}.{part}", column))
    needed += [(f"data.categories[{i}]", category.column) for i, category in enumerate(run.data.categories)]
    needed += [(f"data.numbers[{i}]", number.column) for i, number in enumerate(run.data.numbers)]
    return needed


def _check_columns(file: LogFile, run: Run, found: list[str], sparse_ok: bool) -> None:
    if file.format == "jsonl" and not found:
        return
    for where, column in _needed_columns(run):
        optional = sparse_ok and where not in _REMEDIES
        if column not in found and not optional:
            remedy = _REMEDIES.get(where, "")
            raise DataError(
                f"{where}: no column '{column}' in '{file.path}'.{suggest(column, found)} {remedy}".rstrip()
            )


class _Reader:
    """What stays the same for all batches of one file."""

    def __init__(self, file: LogFile, index: int, run: Run) -> None:
        self.file, self.index, self.run = file, index, run
        self.schema = event_schema(run)
        self.timed = self.untimely = 0

    def events(self, batch: RawBatch) -> Events:
        rows = _Rows(batch)
        columns = self._identity(rows)
        times = self._times(rows)
        columns["time"] = pa.array(times.micros)
        for name, task in self.run.tasks.items():
            fill = self._feedback if task.event is not None else self._label
            label, known = fill(rows, name, task, times.micros, columns)
            columns[f"label.{name}"] = pa.array(label)
            columns[f"feedback_time.{name}"] = pa.array(known, mask=(known == 0) | np.isnan(label))
        for category in self.run.data.categories:
            columns[f"category.{category.column}"] = rows.text(category.column)
        for i, number in enumerate(self.run.data.numbers):
            read = (
                rows.numbers(number.column)
                if number.pattern is None
                else extract_numbers(rows.text(number.column), number.pattern, f"data.numbers[{i}].pattern")
            )
            columns[f"number.{number.feature}"] = pa.array(read)
        columns |= self._context(rows, columns.get("event"))
        columns["row_id"] = pa.array((self.index << ROW_BITS) | batch.rows.astype(np.int64))
        table = pa.table([columns[name] for name in self.schema.names], schema=self.schema)
        good = table.filter(pa.array(rows.accepted))
        quarantine = self._quarantine(batch.bad + rows.rejected())
        return Events(good, quarantine, good.num_rows + quarantine.num_rows, _type_counts(good))

    def _identity(self, rows: "_Rows") -> dict[str, pa.Array]:
        """Ids and the other columns that are taken as text; a row without user or item is rejected."""
        named = self.run.data.columns.model_dump(include={"user", "item", "request", "event"})
        names = {**named, "split": self.run.split.column}
        texts = {name: rows.text(column) for name, column in names.items() if column is not None}
        for name in ("user", "item", "event"):
            if name in texts:
                rows.reject(_null(texts[name]), f"no {name} (column '{names[name]}')")
        return texts

    def _times(self, rows: "_Rows") -> Times:
        column = self.run.data.columns.time
        raw = rows.column(column)
        times = as_micros(raw, self.run.data.time_unit)
        self.timed += int((~times.missing).sum())
        self.untimely += int((times.unreadable | times.implausible).sum())
        if self.untimely * 2 > self.timed:
            self._refuse_unit(raw)
        rows.reject(times.missing, f"no time (column '{column}')")
        rows.reject(times.unreadable, f"column '{column}' is not a time in data.time_unit '{self.run.data.time_unit}'")
        rows.reject(times.implausible, f"column '{column}' is a time before 1971 or after 2099")
        return times

    def _refuse_unit(self, raw: pa.ChunkedArray) -> None:
        """Only if another unit fits: single strange times are bad rows, not a wrong setting."""
        fitting = guess_unit(raw)
        unit = self.run.data.time_unit
        if fitting is not None and fitting != unit:
            example = next(cell for cell in raw.to_pylist() if cell not in (None, ""))
            raise DataError(
                f"data.time_unit: '{unit}' does not fit column '{self.run.data.columns.time}' of '{self.file.path}': "
                f"{example!r} would lie outside 1971-2099. Set data.time_unit: {fitting}."
            )

    def _context(self, rows: "_Rows", event: pa.Array | None) -> dict[str, pa.Array]:
        """Columns `context.<name>`. Their checks are for candidates: other rows need no weight and have no place."""
        columns, context = self.run.data.columns, {}
        asked = np.ones(len(rows.batch.rows), dtype=bool)
        if self.run.data.layout == "behaviours":
            asked = pc.equal(event, self.run.data.candidate_event).fill_null(False).to_numpy(zero_copy_only=False)
        for name in context_numbers(columns):
            column = getattr(columns, name)
            values = rows.numbers(column)
            for mask, reason in faults(name, column, values):
                rows.reject(mask & asked, reason)
            context[f"context.{name}"] = pa.array(values)
        for name in context_texts(columns):
            context[f"context.{name}"] = trimmed(rows.text(getattr(columns, name)))
        return context

    def _label(
        self, rows: "_Rows", name: str, task: Task, micros: np.ndarray, _: dict[str, pa.Array]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`impressions`: the label and when it became known (0 = never); neither for a task without a label."""
        if task.label is None:
            return np.full(len(micros), np.nan), np.zeros_like(micros)
        label = rows.evaluate(task.label, f"tasks.{name}.label")
        if task.observed is not None:
            observed = rows.evaluate(task.observed, f"tasks.{name}.observed")
            label = np.where(np.nan_to_num(observed) != 0, label, np.nan)
        self._check_range(rows, f"tasks.{name}.label", label, task)
        return label, self._known(rows, name, task, micros, otherwise=np.zeros_like(micros))

    def _feedback(
        self, rows: "_Rows", name: str, task: Task, micros: np.ndarray, columns: dict[str, pa.Array]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`behaviours`: rows of the task's event carry its value (1 without `value`), known at the row's own time."""
        happened = pc.equal(columns["event"], task.event).fill_null(False).to_numpy(zero_copy_only=False)
        value = np.ones(len(micros)) if task.value is None else rows.numbers(task.value)
        label = np.where(happened, value, np.nan)
        self._check_range(rows, f"tasks.{name}.value", label, task)
        return label, self._known(rows, name, task, micros, otherwise=micros)

    def _check_range(self, rows: "_Rows", where: str, label: np.ndarray, task: Task) -> None:
        labels = labels_of(task.kind, self.run.plugins)
        rows.reject(_outside(label, labels, task), f"{where}: {_expected(labels, task)}")

    def _known(self, rows: "_Rows", name: str, task: Task, micros: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
        if task.feedback_delay is not None:
            return np.where(micros == 0, 0, micros + round(task.feedback_delay * 10**6))
        if task.feedback_time is None:
            return otherwise
        times = as_micros(rows.column(task.feedback_time), self.run.data.time_unit)
        where = f"tasks.{name}.feedback_time: column '{task.feedback_time}'"
        rows.reject(times.unreadable, f"{where} is not a time in data.time_unit '{self.run.data.time_unit}'")
        rows.reject(times.implausible, f"{where} is before 1971 or after 2099 (leave it empty if there was none)")
        return times.micros

    def _quarantine(self, bad: list[BadRow]) -> pa.Table:
        return pa.table(
            [
                [self.file.path] * len(bad),
                [entry.row for entry in bad],
                [entry.reason for entry in bad],
                [entry.content[:_CONTENT_LIMIT] for entry in bad],
            ],
            schema=QUARANTINE,
        )


class _Rows:
    """The columns of one batch, each parsed once, and what is wrong with each row (the first reason counts)."""

    def __init__(self, batch: RawBatch) -> None:
        self.batch = batch
        self.reasons: dict[int, str] = {}
        self._texts: dict[str, pa.Array] = {}
        self._numbers: dict[str, np.ndarray] = {}

    def column(self, name: str) -> pa.ChunkedArray:
        return self.batch.table.column(name)

    def reject(self, mask: np.ndarray, reason: str) -> None:
        for row in np.flatnonzero(mask):
            self.reasons.setdefault(int(row), reason)

    @property
    def accepted(self) -> np.ndarray:
        accepted = np.ones(self.batch.table.num_rows, dtype=bool)
        accepted[list(self.reasons)] = False
        return accepted

    def rejected(self) -> list[BadRow]:
        spoilt = sorted(self.reasons)
        records = self.batch.table.take(pa.array(spoilt, pa.int64())).to_pylist()
        return [
            BadRow(int(self.batch.rows[row]), self.reasons[row], str(record))
            for row, record in zip(spoilt, records, strict=True)
        ]

    def text(self, name: str) -> pa.Array:
        if name not in self._texts:
            self._texts[name] = as_text(self.column(name), f"column '{name}'")
        return self._texts[name]

    def numbers(self, name: str) -> np.ndarray:
        if name not in self._numbers:
            self._numbers[name], bad = as_numbers(self.column(name))
            self.reject(bad, f"column '{name}' is not a number")
        return self._numbers[name]

    def evaluate(self, expression: str, where: str) -> np.ndarray:
        texts = expressions.text_columns_of(expression, where)
        columns = {
            name: np.array(self.text(name).to_pylist(), dtype=object) if name in texts else self.numbers(name)
            for name in expressions.columns_of(expression, where)
        }
        return expressions.evaluate(expression, columns, where)


def _outside(label: np.ndarray, labels: Labels, task: Task) -> np.ndarray:
    """Observed labels that are not allowed."""
    bad = np.isinf(label)
    if labels == "binary":
        bad |= (label != 0) & (label != 1)
    if labels == "class":
        bad |= (label < 0) | (label >= (task.classes or 0)) | (np.floor(label) != label)
    return ~np.isnan(label) & bad


def _expected(labels: Labels, task: Task) -> str:
    if labels == "binary":
        return f"a label of kind '{task.kind}' must be 0 or 1; write a comparison, as `rating >= 4`"
    if labels == "class":
        return f"a label of kind '{task.kind}' must be a whole number from 0 to {(task.classes or 0) - 1}"
    return "a label must be finite"


def _null(texts: pa.Array) -> np.ndarray:
    return pc.is_null(texts).to_numpy(zero_copy_only=False)


def _type_counts(table: pa.Table) -> dict[str, int]:
    if "event" not in table.column_names:
        return {}
    counts = pc.value_counts(table.column("event").combine_chunks()).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counts}
