"""Logs of any format -> canonical events, and the rows that had to be put in quarantine, with the reason.

Plain functions over one file, in bounded batches, without Ray: `prepare` maps them over the shards.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Run, Task
from mtrec_ray.data.reading.cells import as_micros, infinite
from mtrec_ray.data.reading.context import context_numbers, context_texts, faults, trimmed
from mtrec_ray.data.reading.events import QUARANTINE, ROW_BITS, Events, event_schema
from mtrec_ray.data.reading.feedback import FeedbackReader
from mtrec_ray.data.reading.formats import BATCH_ROWS, RawBatch, column_names, read_batches
from mtrec_ray.data.reading.log_files import LogFile, check_columns, find_files, lacks, needed_columns, read_rows
from mtrec_ray.data.reading.patterns import extract_numbers
from mtrec_ray.data.reading.raw_rows import RawRows
from mtrec_ray.data.reading.reader import Reader, same
from mtrec_ray.data.reading.user_map import KnownUsers
from mtrec_ray.data.reading.vectors import to_lists
from mtrec_ray.data.reading.zones import unknown_zones
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.tasks.labels import labels_of

__all__ = ["QUARANTINE", "ROW_BITS", "Events", "LogFile", "check_log", "event_schema", "find_files", "read_events"]


def check_log(files: list[LogFile], run: Run) -> None:
    """Reads as little as it can to find, before any work starts, what would stop the reading of the log.

    Raises:
        DataError: a column that no file has, or no row in any file.
        ConfigError: an expression that cannot be read, an unknown kind of task, or one that lacks its label or has one
            too many.
    """
    _check_labels(run)
    _check_somewhere(files, run)
    log = [file for file in files if file.feedback is None]
    if not any(_has_rows(file) for file in log):
        raise DataError(
            f"data.logs: the log is empty: no row in {len(log)} file(s), the first is '{log[0].path}'. "
            "Give files with rows."
        )


def read_events(
    file: LogFile, index: int, run: Run, known_users: KnownUsers | None = None, files: Sequence[LogFile] = ()
) -> Iterator[Events]:
    """Canonical events of one file, in batches of bounded size, in the file's order.

    Args:
        index: the file's number, its place in `find_files`.
        known_users: the map of `data.user_map`.
        files: those of the whole log, in which to look, when times do not fit their unit, where that begins.

    Raises:
        DataError: an unknown column, a broken file, or times that are mostly in another unit than the declared one.
        ConfigError: an expression that cannot be read.
    """
    found = column_names(file)
    check_columns(file, run, found)
    reader = (LogReader if file.feedback is None else FeedbackReader)(file, index, run, known_users, files)
    for batch in read_rows(file, run, found):
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


def _check_somewhere(files: list[LogFile], run: Run) -> None:
    """Each needed column is in some file; files are opened until that is known, so mostly the first one only."""
    firsts = _firsts(files)
    missing = {(needed.where, needed.column) for file in firsts for needed in needed_columns(run, file.feedback)}
    seen: dict[int | None, dict[str, None]] = {}
    for file in files:
        needed = needed_columns(run, file.feedback)
        asked = {(n.where, n.column) for n in needed}
        if file.feedback in seen and not asked & missing:
            continue
        found = column_names(file, BATCH_ROWS)
        if found or file.format != "jsonl":  # an empty file of lines says nothing
            names = seen.setdefault(file.feedback, {})
            names |= dict.fromkeys([*found, *file.partitions])
            missing -= {(where, column) for where, column in asked if column in names}
            for n in needed:
                if n.everywhere and (n.where, n.column) in missing:
                    raise lacks(n, file, list(names))
    for file in firsts:
        for n in needed_columns(run, file.feedback):
            if file.feedback in seen and (n.where, n.column) in missing:
                raise lacks(n, file, list(seen[file.feedback]))


def _firsts(files: list[LogFile]) -> list[LogFile]:
    """The first file of the log and of each feedback."""
    return list({file.feedback: file for file in reversed(files)}.values())[::-1]


def _has_rows(file: LogFile) -> bool:
    batches = read_batches(file, column_names(file)[:1], 1)
    return any(batch.table.num_rows or batch.bad for batch in batches)


class LogReader(Reader):
    """A file of the log itself."""

    def events(self, batch: RawBatch) -> Events:
        rows = RawRows(batch, self.file.path)
        columns = self._identity(rows)
        times = self.times(rows)
        columns["time"] = pa.array(times.micros)
        for name, task in self.run.tasks.items():
            fill = self._feedback if self.run.data.layout == "behaviours" and task.event is not None else self._label
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
            rows.reject(infinite(read), f"column '{number.column}' is not finite, as a number of 32 bits")
            columns[f"number.{number.feature}"] = pa.array(read)
        for vector in self.run.data.vectors:
            columns[f"vector.{vector.column}"] = to_lists(rows.vectors(vector))
        columns |= self._context(rows, columns.get("event"))
        return self.finish(rows, columns)

    def _identity(self, rows: RawRows) -> dict[str, pa.Array]:
        """Ids and the other columns that are taken as text; a row without user or item is rejected."""
        named = self.run.data.columns.model_dump(include={"user", "item", "request", "event", "impression"})
        names = {**named, "split": self.run.split.column}
        present = {name: column for name, column in names.items() if column is not None}
        texts = self.texts(rows, present, ("user", "item", "event"))
        if self.run.data.layout == "behaviours" and "event" not in texts:
            texts["event"] = pa.array([self.run.data.candidate_event] * len(rows), pa.string())
        return texts | self.deliveries(rows, self.run.data.unique_by, "log")

    def _context(self, rows: RawRows, event: pa.Array | None) -> dict[str, pa.Array]:
        """Columns `context.<name>`. Their checks are for candidates: other rows need no weight and have no place."""
        columns, context = self.run.data.columns, {}
        asked = np.ones(len(rows), dtype=bool)
        if self.run.data.layout == "behaviours":
            asked = same(event, self.run.data.candidate_event)
        for name in context_numbers(columns):
            column = getattr(columns, name)
            values = rows.numbers(column)
            for mask, reason in faults(name, column, values):
                rows.reject(mask & asked, reason)
            context[f"context.{name}"] = pa.array(values)
        for name in context_texts(columns):
            context[f"context.{name}"] = trimmed(rows.text(getattr(columns, name)))
        if columns.time_zone is not None:
            strange = unknown_zones(context["context.time_zone"])
            rows.reject(strange & asked, f"column '{columns.time_zone}' is no IANA time zone, as Europe/Oslo")
        return context

    def _label(
        self, rows: RawRows, name: str, task: Task, micros: np.ndarray, _: dict[str, pa.Array]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`impressions`: the label and when it became known (0 = never); neither for a task without a label."""
        if task.label is None:
            return np.full(len(micros), np.nan), np.zeros_like(micros)
        label = rows.evaluate(task.label, f"tasks.{name}.label")
        if task.observed is not None:
            observed = rows.evaluate(task.observed, f"tasks.{name}.observed")
            label = np.where(np.nan_to_num(observed) != 0, label, np.nan)
        self.check_range(rows, f"tasks.{name}.label", label, task)
        return label, self._known(rows, name, task, micros, otherwise=np.zeros_like(micros))

    def _feedback(
        self, rows: RawRows, name: str, task: Task, micros: np.ndarray, columns: dict[str, pa.Array]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`behaviours`: rows of the task's event carry its value (1 without `value`), known at the row's own time."""
        label = self.feedback(rows, name, task, same(columns["event"], task.event))
        return label, self._known(rows, name, task, micros, otherwise=micros)

    def _known(self, rows: RawRows, name: str, task: Task, micros: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
        if task.feedback_delay is not None:
            return np.where(micros == 0, 0, micros + round(task.feedback_delay * 10**6))
        if task.feedback_time is None:
            return otherwise
        times = as_micros(rows.column(task.feedback_time), self.run.data.time_unit, self.run.data.time_zone)
        where = f"tasks.{name}.feedback_time: column '{task.feedback_time}'"
        rows.reject(times.unreadable, f"{where} is not a time in data.time_unit '{self.run.data.time_unit}'")
        rows.reject(times.implausible, f"{where} is before 1971 or after 2099 (leave it empty if there was none)")
        return times.micros
