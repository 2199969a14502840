"""What readers of log files and of feedback files have in common: ids, times, tasks' feedback, quarantine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run, Task
from mtrec_ray.data.reading.cells import Times, as_micros, as_records, guess_unit, infinite
from mtrec_ray.data.reading.events import QUARANTINE, ROW_BITS, Events, delivered_schema
from mtrec_ray.data.reading.formats import BadRow, column_names, read_batches
from mtrec_ray.data.reading.log_files import LogFile, feedback_columns
from mtrec_ray.data.reading.raw_rows import RawRows
from mtrec_ray.data.reading.user_map import KnownUsers
from mtrec_ray.errors import DataError
from mtrec_ray.labels import Labels
from mtrec_ray.tasks.labels import labels_of

_CONTENT_LIMIT = 500
_SEPARATOR = "\x1f"
_FIRST_ROWS = 1000


class Reader:
    """What stays the same for all batches of one file."""

    def __init__(
        self, file: LogFile, index: int, run: Run, known_users: KnownUsers | None, files: Sequence[LogFile]
    ) -> None:
        """`files`: those of the whole log, for messages."""
        self.file, self.index, self.run, self.known_users, self.files = file, index, run, known_users, files
        self.schema = delivered_schema(run)
        self.timed = self.untimely = 0
        if file.feedback is None:
            self.time, self.unit, self.unit_key = run.data.columns.time, run.data.time_unit, "data.time_unit"
        else:
            feedback = run.data.feedback[file.feedback]
            self.time = feedback_columns(run, feedback)["time"]
            self.unit = feedback.time_unit or run.data.time_unit
            self.unit_key = (
                "data.time_unit" if feedback.time_unit is None else f"data.feedback[{file.feedback}].time_unit"
            )

    def finish(self, rows: RawRows, columns: dict[str, Any]) -> Events:
        """Events of the columns by name, without rows that were rejected; what is not among them is empty."""
        count = len(rows)
        columns["row_id"] = pa.array((self.index << ROW_BITS) | rows.batch.rows.astype(np.int64))
        whole = [columns.get(field.name, pa.nulls(count, field.type)) for field in self.schema]
        good = pa.table(whole, schema=self.schema).filter(pa.array(rows.accepted))
        unmapped = 0
        if self.known_users is not None:
            users, known = self.known_users.current(good["user"], good["time"].to_numpy())
            good = good.set_column(good.column_names.index("user"), "user", users)
            unmapped = int((~known).sum())
        quarantine = self._quarantine(rows.batch.bad + rows.rejected())
        types: dict[str, int] = {}
        for name in ("event", "feedback"):
            types |= _counts(good, name)
        return Events(good, quarantine, good.num_rows + quarantine.num_rows, types, unmapped)

    def texts(self, rows: RawRows, names: dict[str, str], needed: Sequence[str]) -> dict[str, pa.Array]:
        """Columns taken as text, by role; a row without one of the `needed` ones is rejected."""
        texts = {name: rows.text(column) for name, column in names.items()}
        for name in needed:
            if name in texts:
                rows.reject(_null(texts[name]), f"no {name} (column '{names[name]}')")
        return texts

    def times(self, rows: RawRows) -> Times:
        """Raises `DataError` if most times are in another unit than the declared one."""
        raw = rows.column(self.time)
        times = as_micros(raw, self.unit, self.run.data.time_zone)
        self.timed += int((~times.missing).sum())
        self.untimely += int((times.unreadable | times.implausible).sum())
        if self.untimely * 2 > self.timed:
            self._refuse_unit(raw)
        rows.reject(times.missing, f"no time (column '{self.time}')")
        rows.reject(times.unreadable, f"column '{self.time}' is not a time in {self.unit_key} '{self.unit}'")
        rows.reject(times.implausible, f"column '{self.time}' is a time before 1971 or after 2099")
        return times

    def deliveries(self, rows: RawRows, columns: Sequence[str], source: str) -> dict[str, pa.Array]:
        """Column `delivery`: the cells that name a row, in one text; empty if all of them are."""
        if not columns:
            return {}
        texts = [rows.text(column) for column in columns]
        empty = np.logical_and.reduce([_null(text) for text in texts])
        joined = pc.binary_join_element_wise(
            pa.scalar(source), *texts, _SEPARATOR, null_handling="replace", null_replacement=""
        )
        return {"delivery": pc.if_else(pa.array(~empty), joined, pa.scalar(None, pa.string()))}

    def feedback(self, rows: RawRows, name: str, task: Task, happened: np.ndarray) -> np.ndarray:
        """float64 [rows] the task's value (1 without `value`) where its event happened, else NaN."""
        value = np.ones(len(rows)) if task.value is None else rows.numbers(task.value)
        label = np.where(happened, value, np.nan)
        self.check_range(rows, f"tasks.{name}.value", label, task)
        return label

    def check_range(self, rows: RawRows, where: str, label: np.ndarray, task: Task) -> None:
        """Rejects rows whose label the task's kind does not allow."""
        labels = labels_of(task.kind, self.run.plugins)
        rows.reject(_outside(label, labels, task), f"{where}: {_expected(labels, task)}")

    def _refuse_unit(self, raw: pa.ChunkedArray) -> None:
        """Only if another unit fits: single strange times are bad rows, not a wrong setting."""
        fitting = guess_unit(raw)
        if fitting is None or fitting == self.unit:
            return
        before, first = self._change_of_unit()
        if before is not None:
            raise DataError(
                f"{self.unit_key}: column '{self.time}' changes its unit: in '{before.path}' its times are in "
                f"'{self.unit}', as declared, but from '{first.path}' on they are not, and '{fitting}' would fit. "
                "Write the later files again in the declared unit, or leave them out."
            )
        cells = [row["cell"] for row in as_records(pa.table({"cell": raw}))]
        example = next(cell for cell in cells if cell not in (None, ""))
        raise DataError(
            f"{self.unit_key}: '{self.unit}' does not fit column '{self.time}' of '{self.file.path}': "
            f"{example!r} would lie outside 1971-2099. Set {self.unit_key}: {fitting}."
        )

    def _change_of_unit(self) -> tuple[LogFile | None, LogFile]:
        """The first file whose times do not fit, and the one before it, None if that is the first of all."""
        before = None
        for file in self.files[: self.index]:
            if file.feedback == self.file.feedback and self.time in column_names(file):
                batch = next(read_batches(file, [self.time], _FIRST_ROWS), None)
                if batch is not None and batch.table.num_rows:
                    times = as_micros(batch.table.column(self.time), self.unit, self.run.data.time_zone)
                    if times.bad.mean() > 0.5:
                        return before, file
                    before = file
        return before, self.file

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


def same(texts: pa.Array, wanted: str | None) -> np.ndarray:
    """bool [rows]: where a text is `wanted`."""
    return np.asarray(pc.equal(texts, wanted).fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def _outside(label: np.ndarray, labels: Labels, task: Task) -> np.ndarray:
    """Observed labels that are not allowed."""
    bad = infinite(label)
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


def _counts(table: pa.Table, name: str) -> dict[str, int]:
    if name not in table.column_names:
        return {}
    counts = pc.value_counts(table.column(name).combine_chunks().drop_null()).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counts}
