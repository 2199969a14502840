"""How an item has done so far with all users: running sums over its events, known strictly before a candidate's time.

What happened to items is sent out as one row per event (`item_events`), what candidates want to know as one row per
candidate (`item_questions`); `answer` brings the two together, item by item, so that any share of the items can be
answered by itself. A train candidate is told of the train period's events only, others of all that came before them.

Each event adds to the sums of its item: 1 if the item was shown; per signal its value, its weight, and two parts of
what the user's own level let expect, a and b with `expected = a + prior * b`: the prior mean is not yet known here.
The user's level at an event is (sum of earlier labels + 5 * prior) / (number of earlier labels + 5).
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run
from mtrec_ray.data.features.running import prefix_sums
from mtrec_ray.data.features.signals import event_signals, signals
from mtrec_ray.data.features.statistics import PRIOR_WEIGHT
from mtrec_ray.data.requests.bucket import Bucket, lag_us

Array = np.ndarray[Any, np.dtype[Any]]


def past_width(signal_count: int) -> int:
    """Columns of an answer: time of the first event (NaN: none), events shown, and S each of value, weight, a, b."""
    return 2 + 4 * signal_count


def item_events(bucket: Bucket, run: Run) -> pa.Table:
    """What happened to items: `item`, `time`, `row_id`, `train` and `amounts` (what the event adds, [1 + 4S])."""
    rows, events = bucket.rows, bucket.events
    value, weight = event_signals(events, signals(run))
    earlier_value, earlier_weight = np.zeros_like(value), np.zeros_like(weight)
    for user in range(len(rows.users)):
        mine = slice(events.starts[user], events.starts[user + 1])
        earlier_value[mine], earlier_weight[mine] = prefix_sums(value[mine])[:-1], prefix_sums(weight[mine])[:-1]
    share = weight / (earlier_weight + PRIOR_WEIGHT)
    amounts = [events.exposure[:, None], value, weight, share * earlier_value, share * PRIOR_WEIGHT]
    return pa.table(
        {
            "item": _names(bucket, events.row),
            "time": events.time,
            "row_id": rows.row_id[events.row],
            "train": bucket.train_events,
            "amounts": _matrix(np.concatenate(amounts, axis=1, dtype=np.float64)),
        }
    )


def item_questions(bucket: Bucket, run: Run) -> pa.Table:
    """What candidates ask: `item`, `before` (which events count), `train` and `position`, their place."""
    candidates = bucket.candidates
    return pa.table(
        {
            "item": _names(bucket, candidates.row),
            "before": candidates.asof - lag_us(run),
            "train": bucket.train,
            "position": np.arange(len(candidates.row)),
        }
    )


def answer(events: pa.Table, questions: pa.Table) -> Array:
    """float64 [Q, 2 + 4S]: see `past_width`; sums over the events of the question's item before its time."""
    amounts = _rows_of(events["amounts"])
    result = np.zeros((questions.num_rows, 1 + amounts.shape[1]))
    result[:, 0] = np.nan
    items = pc.unique(questions["item"])
    asked, happened = (_codes(table["item"], items) for table in (questions, events))
    time, before = events["time"].to_numpy(), questions["before"].to_numpy()
    order = np.lexsort((events["row_id"].to_numpy(), time, happened))
    train_event, train_question = events["train"].to_numpy()[order], questions["train"].to_numpy()
    for of_train in (True, False):
        kept = order[train_event] if of_train else order
        mine = np.flatnonzero(train_question == of_train)
        mine = mine[np.argsort(asked[mine], kind="stable")]
        first_event = np.searchsorted(happened[kept], np.arange(len(items) + 1))
        first_question = np.searchsorted(asked[mine], np.arange(len(items) + 1))
        for item in np.unique(asked[mine]).tolist():
            e = kept[first_event[item] : first_event[item + 1]]
            q = mine[first_question[item] : first_question[item + 1]]
            ends = np.searchsorted(time[e], before[q], side="left")
            result[q, 1:] = prefix_sums(amounts[e])[ends]
            if len(e):
                result[q[ends > 0], 0] = time[e[0]]
    return result


def answered(bucket: Bucket, run: Run) -> Array:
    """float64 [C, 2 + 4S] of the candidates of a bucket that holds all users there are."""
    return answer(item_events(bucket, run), item_questions(bucket, run))


def _names(bucket: Bucket, row: Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(bucket.rows.item[row], pa.array(bucket.rows.items, pa.string())).cast(
        pa.string()
    )


def _codes(names: pa.ChunkedArray, known: pa.Array) -> Array:
    """int64 [N] place among `known`, -1 = not there."""
    return pc.fill_null(pc.index_in(names, known), -1).to_numpy().astype(np.int64)


def _matrix(values: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(values).ravel(), values.shape[1])


def _rows_of(column: pa.ChunkedArray) -> Array:
    width = column.type.list_size
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
