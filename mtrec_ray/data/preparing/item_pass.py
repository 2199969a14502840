"""The pass that tells candidates how their item has done with all users: from buckets of users to buckets of items, and
back.

The pass over users leaves two files per bucket, with one record batch per bucket of items: what happened, and what is
asked. The pass over items reads its batch of each, and leaves one file with a record batch of answers per bucket of
users. So files are few, and a task holds the events of one bucket of items.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from mtrec_ray.config import Run
from mtrec_ray.data.features.item_past import answer, item_events, item_questions
from mtrec_ray.data.filesystem import open_atomic
from mtrec_ray.data.preparing.dealing import dealt
from mtrec_ray.data.preparing.digest import digest
from mtrec_ray.data.requests.bucket import Bucket

Array = np.ndarray[Any, np.dtype[Any]]


def send_items(fs: pafs.FileSystem, work: str, number: int, bucket: Bucket, run: Run) -> None:
    """Writes what happened to items with the users of bucket `number`, and what their candidates ask."""
    for what, table in (("events", item_events(bucket, run)), ("questions", item_questions(bucket, run))):
        _write(fs, _path(work, what, number), dealt(table, "item", run.data.buckets))


def is_sent(fs: pafs.FileSystem, work: str, number: int) -> bool:
    """Whether the bucket `number` of users has sent its events and questions."""
    paths = [_path(work, what, number) for what in ("events", "questions")]
    return all(info.type == pafs.FileType.File for info in fs.get_file_info(paths))


def answer_items(number: int, source: tuple[pafs.FileSystem, str, int]) -> list[str]:
    """Answers the questions about the items of bucket `number`; `source`: file system, work folder, buckets. Digests of
    what each bucket of users is told."""
    fs, work, buckets = source
    events = pa.concat_tables([_read(fs, _path(work, "events", b), number) for b in range(buckets)])
    asked = [_read(fs, _path(work, "questions", b), number) for b in range(buckets)]
    sums = answer(events, pa.concat_tables(asked))
    width, first, answers = sums.shape[1], 0, []
    for questions in asked:
        mine = np.ascontiguousarray(sums[first : first + questions.num_rows])
        values = pa.FixedSizeListArray.from_arrays(mine.ravel(), width)
        answers.append(pa.table({"position": questions["position"], "sums": values}))
        first += questions.num_rows
    _write(fs, _path(work, "answers", number), answers)
    return [digest(part) for part in answers]


def read_answers(fs: pafs.FileSystem, work: str, number: int, buckets: int) -> Array:
    """float64 [C, 2 + 4S] for the candidates of user bucket `number`, in their order."""
    table = pa.concat_tables([_read(fs, _path(work, "answers", b), number) for b in range(buckets)])
    sums = table["sums"].combine_chunks()
    values = sums.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, sums.type.list_size)
    result: Array = values[np.argsort(table["position"].to_numpy())]
    return result


def _path(work: str, what: str, number: int) -> str:
    return f"{work}/items/{what}-{number:05d}.arrow"


def _write(fs: pafs.FileSystem, path: str, parts: Sequence[pa.Table]) -> None:
    """One Arrow file; part b is its record batch b, also if it has no rows."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with open_atomic(fs, path) as stream, pa.ipc.new_file(stream, parts[0].schema, options=options) as writer:
        for part in parts:
            batches = part.combine_chunks().to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], schema=part.schema))


def _read(fs: pafs.FileSystem, path: str, number: int) -> pa.Table:
    with fs.open_input_file(path) as file:
        return pa.Table.from_batches([pa.ipc.open_file(file).get_batch(number)])
