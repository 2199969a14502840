"""The files of a log and of its feedback, and the columns that the run needs of each of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Data, Feedback, Run
from mtrec_ray.data.reading import expressions
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.reading.formats import DataFile, RawBatch, find_shards, read_batches
from mtrec_ray.data.reading.partitions import Partitions
from mtrec_ray.data.requests.ids import stable_hash
from mtrec_ray.errors import DataError
from mtrec_ray.registry import suggest

REMEDIES = {
    "data.columns.user": "A log needs a column that says whose row it is: name it here, or add one when writing the "
    "log (a session or device id will do). Without either, let each list that was shown be a user: its `request_id`.",
    "data.columns.time": "A log needs a column with the time of each row, because a history may only hold what came "
    "before: name it here, or add one when writing the log (the same for all rows if nobody knows it: histories are "
    "then empty, and rows are held out by a column of their own, with split.by: column).",
    "data.columns.item": "A log needs a column with the id of the item shown: name it here.",
}
_IN_EVERY_FILE = (
    *REMEDIES,
    "data.columns.event",
    "data.columns.row_weight",
    "data.columns.sampling_rate",
    "split.column",
    "data.unique_by",
)
"""Without them rows mean nothing, or are refused. Other columns may be absent in some files: not observed there."""


@dataclass(frozen=True)
class LogFile(DataFile):
    """One shard of the log, or of feedback."""

    feedback: int | None = None
    """Its place in `data.feedback`; None for the log."""
    partitions: dict[str, str | None] = field(default_factory=dict)
    """What its folders say, by key."""
    number: int = 0
    """See `FileNumbers`."""


@dataclass(frozen=True)
class Needed:
    """A column that the run reads."""

    where: str
    """Dotted config path"""
    column: str
    everywhere: bool = True
    """Whether each file must have it; else one must"""


def find_files(data: Data) -> list[LogFile]:
    """The log's shards, sorted by path, and then those of each feedback.

    Raises:
        DataError: a path with no file behind it.
    """
    files = _found(data, None, "data.logs")
    for i, feedback in enumerate(data.feedback):
        files += _found(feedback, i, f"data.feedback[{i}].logs")
    numbers = FileNumbers()
    return [replace(file, number=numbers.next(file.name, file.feedback)) for file in files]


class FileNumbers:
    """The files' numbers in the ids of their rows, given out in the order of the files. They depend on the files' names
    below the folder of the log, as `dt=2024-01-31/part-0.parquet`, and so stay as they are when other files come. Only
    of two names with one hash (of 8 millions) the later one has the next free number.
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def next(self, name: str, feedback: int | None = None) -> int:
        """`feedback`: see `LogFile`."""
        number = stable_hash(name if feedback is None else f"{feedback}/{name}", "file") >> (1 + ROW_BITS)
        while number in self._taken:
            number = (number + 1) % (1 << (63 - ROW_BITS))
        self._taken.add(number)
        return number


def needed_columns(run: Run, feedback: int | None = None) -> list[Needed]:
    """Everything that the run reads from its log, or from the files of a feedback."""
    return _of_log(run) if feedback is None else _of_feedback(run, run.data.feedback[feedback], feedback)


def check_columns(file: LogFile, run: Run, found: list[str]) -> None:
    """Raises `DataError` for a file without a column that all must have. In JSONL an absent key is an absent cell."""
    if file.format == "jsonl" and not found:
        return
    for needed in needed_columns(run, file.feedback):
        sparse = file.format == "jsonl" and needed.where not in REMEDIES
        if needed.everywhere and not sparse and needed.column not in {*found, *file.partitions}:
            raise lacks(needed, file, found)


def lacks(needed: Needed, file: LogFile, found: list[str]) -> DataError:
    """The message for a column that is not there."""
    remedy, nearest = REMEDIES.get(needed.where, ""), suggest(needed.column, found)
    return DataError(f"{needed.where}: no column '{needed.column}' in '{file.path}'.{nearest} {remedy}".rstrip())


def read_rows(file: LogFile, run: Run, found: list[str]) -> Iterator[RawBatch]:
    """Batches with the needed columns: of a file that lacks one, empty; of the keys of its folders, what these say."""
    columns = list(dict.fromkeys(needed.column for needed in needed_columns(run, file.feedback)))
    here = columns if file.format == "jsonl" else [column for column in columns if column in found]
    said = {column: file.partitions[column] for column in columns if column in file.partitions and column not in found}
    for batch in read_batches(file, [column for column in here if column not in said]):
        table, rows = batch.table, batch.table.num_rows
        for column in columns:
            if column in said:
                table = table.append_column(column, pa.array(np.full(rows, said[column], object), pa.string()))
            elif column not in here:
                table = table.append_column(column, pa.nulls(rows))
        yield RawBatch(table, batch.rows, batch.bad)


def feedback_columns(run: Run, feedback: Feedback) -> dict[str, str]:
    """Role -> column of a feedback's identity: its own name of it, or the log's. `item` is absent where an impression
    id alone says which row is meant."""
    names = {"user": feedback.user or run.data.columns.user, "time": feedback.time or run.data.columns.time}
    if feedback.by == "impression":
        names["impression"] = feedback.impression or str(run.data.columns.impression)
    item = feedback.item or (run.data.columns.item if feedback.by == "user+item" else None)
    return names | ({"item": item} if item else {}) | ({"event": feedback.event} if feedback.event else {})


def _found(source: Data | Feedback, feedback: int | None, what: str) -> list[LogFile]:
    partitions = Partitions(source.partitions, f"{what.rsplit('.', 1)[0]}.partitions")
    shards = find_shards(source.logs, source.format, what, partitions)
    return [
        LogFile(s.path, s.format, s.size, s.mtime_ns, s.name, feedback, partitions.values(s.path) if partitions else {})
        for s in shards
    ]


def _of_log(run: Run) -> list[Needed]:
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
            joined = part == "value" and bool(run.data.feedback)  # a column of the feedback's files, checked there
            if (column := getattr(task, part)) is not None and not (joined and run.data.layout == "impressions"):
                needed.append((f"tasks.{name}.{part}", column))
    needed += [(f"data.categories[{i}]", category.column) for i, category in enumerate(run.data.categories)]
    needed += [(f"data.numbers[{i}]", number.column) for i, number in enumerate(run.data.numbers)]
    needed += [(f"data.vectors[{i}]", vector.column) for i, vector in enumerate(run.data.vectors)]
    needed += [("data.unique_by", column) for column in run.data.unique_by]
    return [Needed(where, column, where in _IN_EVERY_FILE) for where, column in needed]


def _of_feedback(run: Run, feedback: Feedback, place: int) -> list[Needed]:
    where = f"data.feedback[{place}]"
    needed = [Needed(f"{where}.{role}", column) for role, column in feedback_columns(run, feedback).items()]
    needed += [Needed(f"{where}.unique_by", column) for column in feedback.unique_by]
    tasks = run.tasks.items()
    return needed + [Needed(f"tasks.{name}.value", task.value, False) for name, task in tasks if task.value is not None]
