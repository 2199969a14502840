"""What is done to the delivered rows of a bucket before anything is asked of them: repeated deliveries are taken out,
feedback in rows of its own becomes the labels of the exposures that it belongs to, and very long users are cut.

All of it is about one user's rows, in any order: it does not matter in which file, or how late, a row came.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run
from mtrec_ray.data.reading.events import ROW_BITS, event_schema
from mtrec_ray.data.reading.log_files import LogFile

Array = np.ndarray[Any, np.dtype[Any]]


def settle(table: pa.Table, run: Run, source_of_file: Array) -> tuple[pa.Table, Counter[str]]:
    """Events of `event_schema`, ordered by row id, from delivered ones (`delivered_schema`) in any order; and what was
    done, by name: `repeats` rows left out, those of `join_feedback`, `long_users` and `rows_of_long_users_left_out`."""
    data, counts = run.data, Counter[str]()
    table, counts["repeats"] = without_repeats(table)
    if data.layout == "impressions" and data.feedback:
        table, joined = join_feedback(table, run, source_of_file)
        counts.update(joined)
    if data.max_user_events is not None:
        table, counts["long_users"], counts["rows_of_long_users_left_out"] = latest_rows(table, data.max_user_events)
    return table.select(event_schema(run).names).sort_by("row_id"), counts


def sources_of(files: Sequence[LogFile]) -> Array:
    """int64: the place in `data.feedback` of each file, -1 of the log's."""
    return np.array([-1 if file.feedback is None else file.feedback for file in files], dtype=np.int64)


def without_repeats(table: pa.Table) -> tuple[pa.Table, int]:
    """Of a user's rows with the same `delivery` only that with the lowest row id; and how many were taken out."""
    if "delivery" not in table.column_names or not table.num_rows:
        return table, 0
    named = pc.is_valid(table["delivery"]).to_numpy()
    user, delivery = _codes(table["user"]), _codes(table["delivery"])
    order = np.lexsort((table["row_id"].to_numpy(), delivery, user))
    repeats = (np.diff(user[order]) == 0) & (np.diff(delivery[order]) == 0) & named[order[1:]]
    kept = np.ones(table.num_rows, dtype=bool)
    kept[order[1:][repeats]] = False
    return table.filter(pa.array(kept)), int(repeats.sum())


def join_feedback(table: pa.Table, run: Run, source_of_file: Array) -> tuple[pa.Table, Counter[str]]:
    """The exposures, with the labels of tasks with an `event` from the rows that have a type in `feedback`.

    A feedback belongs to an exposure of its user with the same item or (`by: impression`) impression id: to the last
    one that is not later, or, by an id, to the first one, should all be later: clocks differ. The first feedback of an
    exposure counts for a task. Where none came, the label is 0, and the value of a task with `value` not observed; nor
    is anything where the exposure has no impression id and no feedback could have named it otherwise.

    Args:
        source_of_file: see `sources_of`.

    Returns:
        Also how many rows of `feedback` were, of types that tasks ask for, `feedback_unmatched` of no exposure, and
        `feedback_repeated` not the first for any task.
    """
    kind = table["feedback"]
    table = table.append_column("place", pa.array(np.arange(table.num_rows)))
    shown = table.filter(pc.is_null(kind))
    wanted = pa.array(sorted({task.event for task in run.tasks.values() if task.event is not None}), pa.string())
    feedback = table.filter(pc.is_in(kind, value_set=wanted))
    times, row_ids = feedback["time"].to_numpy(), feedback["row_id"].to_numpy()
    exposure = _exposures(table, shown, feedback, run, source_of_file)
    shown_times = shown["time"].to_numpy()
    unnamed = pc.is_null(shown["impression"]).to_numpy() if "impression" in shown.column_names else None
    first_of_any = np.zeros(feedback.num_rows, dtype=bool)
    for name, task in run.tasks.items():
        if task.event is None:
            continue
        value = feedback[f"label.{name}"].to_numpy()
        mine = np.flatnonzero((exposure >= 0) & ~np.isnan(value))
        mine = mine[np.lexsort((row_ids[mine], times[mine], exposure[mine]))]
        mine = mine[np.flatnonzero(np.diff(exposure[mine], prepend=-1))]
        label = np.full(shown.num_rows, 0.0 if task.value is None else np.nan)
        sources = [source for source in run.data.feedback if source.type in (None, task.event)]
        if unnamed is not None and all(source.by == "impression" for source in sources):
            label[unnamed] = np.nan
        known = np.zeros(shown.num_rows, dtype=np.int64)
        label[exposure[mine]] = value[mine]
        # Not before the exposure, whatever another clock says: or the row's own history would tell its label.
        known[exposure[mine]] = np.maximum(times[mine], shown_times[exposure[mine]])
        first_of_any[mine] = True
        shown = _replaced(shown, f"label.{name}", pa.array(label))
        shown = _replaced(shown, f"feedback_time.{name}", pa.array(known, mask=known == 0))
    unmatched = int((exposure < 0).sum())
    return shown.select(table.column_names[:-1]), Counter(
        feedback=feedback.num_rows,
        feedback_unmatched=unmatched,
        feedback_repeated=feedback.num_rows - unmatched - int(first_of_any.sum()),
    )


def latest_rows(table: pa.Table, most: int) -> tuple[pa.Table, int, int]:
    """At most the latest `most` rows of each user; how many users had more, and how many rows that were."""
    user = _codes(table["user"])
    order = np.lexsort((table["row_id"].to_numpy(), -table["time"].to_numpy(), user))
    first = np.searchsorted(user[order], user[order], side="left")
    late = np.arange(len(order)) - first >= most
    kept = np.ones(table.num_rows, dtype=bool)
    kept[order[late]] = False
    return table.filter(pa.array(kept)), len(np.unique(user[order[late]])), int(late.sum())


def _exposures(table: pa.Table, shown: pa.Table, feedback: pa.Table, run: Run, source_of_file: Array) -> Array:
    """int64 [F]: the exposure of each feedback, its place in `shown`; -1 = none."""
    exposure = np.full(feedback.num_rows, -1, dtype=np.int64)
    source = source_of_file[feedback["row_id"].to_numpy() >> ROW_BITS]
    user, item = _codes(table["user"]), _codes(table["item"])
    impression = _codes(table["impression"]) if "impression" in table.column_names else np.zeros_like(user)
    for i, settings in enumerate(run.data.feedback):
        by_id = settings.by == "impression"
        parts = [user, impression, *([item] if settings.item else [])] if by_id else [user, item]
        key = _combined(parts)
        valid = pc.is_valid(shown["impression"]).to_numpy() if by_id else np.ones(shown.num_rows, dtype=bool)
        asked, candidates = np.flatnonzero(source == i), np.flatnonzero(valid)
        exposure[asked] = _last_before(
            key[shown["place"].to_numpy()],
            shown["time"].to_numpy(),
            candidates[np.lexsort((shown["row_id"].to_numpy()[candidates], shown["time"].to_numpy()[candidates]))],
            key[feedback["place"].to_numpy()[asked]],
            feedback["time"].to_numpy()[asked],
            or_first=by_id,
        )
        if settings.within is not None and shown.num_rows:
            late = feedback["time"].to_numpy()[asked] - shown["time"].to_numpy()[exposure[asked]]
            exposure[asked[late > round(settings.within * 1e6)]] = -1
    return exposure


def _last_before(key: Array, time: Array, rows: Array, asked_key: Array, asked_time: Array, or_first: bool) -> Array:
    """int64 [A]: the last of `rows` (in the order of time) with the asked key and a time of at most the asked one; with
    `or_first`, where all are later, the first with the key; -1 = none."""
    if not len(rows):
        return np.full(len(asked_key), -1, dtype=np.int64)
    times, rank = np.unique(np.concatenate([time[rows], asked_time]), return_inverse=True)
    width = len(times)
    places = key[rows] * width + rank[: len(rows)]
    order = np.argsort(places, kind="stable")
    places = places[order]
    found = np.searchsorted(places, asked_key * width + rank[len(rows) :], side="right") - 1
    matched = (found >= 0) & (places[np.maximum(found, 0)] // width == asked_key)
    if or_first:
        after = np.minimum(found + 1, len(places) - 1)
        found = np.where(matched, found, after)
        matched |= places[after] // width == asked_key
    return np.where(matched, rows[order[np.maximum(found, 0)]], -1)


def _combined(parts: list[Array]) -> Array:
    """int64 [N]: one code of several, dense."""
    code = parts[0]
    for part in parts[1:]:
        _, code = np.unique(code * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
        code = code.ravel()
    return code.astype(np.int64)


def _codes(column: pa.ChunkedArray) -> Array:
    """int64 [N] names each text; the same for all cells that are empty."""
    indices = column.combine_chunks().dictionary_encode().indices
    return pc.add(pc.fill_null(pc.cast(indices, pa.int64()), -1), 1).to_numpy(zero_copy_only=False)


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
