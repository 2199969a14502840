"""The requests that `prepare` makes of a plain log of impressions, made with Hugging Face `datasets`.

As one would write it with that library: Parquet loaded to memory-mapped Arrow, sorted by user, time and item, then one
`map(batched=True)` over users in as many processes as there are cores. A batch of users is one slice of the log; all
that is not per user is done in numpy on the whole slice, and each different text of a batch is tokenised once, by the
fast tokenizer. The result stays in the Arrow files that `map` writes; no Parquet is written.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mtrec_ray.config import Run
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.reading.log_files import find_files

Array = np.ndarray[Any, np.dtype[Any]]

BATCH_USERS = 500


def make_requests(run: Run, folder: str, tokenizer_path: str, processes: int) -> datasets.Dataset:
    """Requests of all splits, with their tokens, labels and lengths."""
    assert run.data.items is not None
    files = find_files(run.data)
    items = pq.read_table(run.data.items.path)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    paths = [file.path for file in files]
    log = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=f"{folder}/cache")
    assert isinstance(log, datasets.Dataset)
    rows = [pq.read_metadata(path).num_rows for path in paths]
    numbers = np.concatenate(
        [(file.number << ROW_BITS) + np.arange(1, count + 1) for file, count in zip(files, rows, strict=True)]
    )
    log = log.add_column("row_id", numbers)  # type: ignore[call-arg]
    log = log.sort(["user_id", "time", "item_id"]).with_format("arrow")
    user = log.select_columns("user_id")[:]["user_id"].to_numpy()
    starts = np.flatnonzero(np.diff(user, prepend=user[0] - 1))
    users = datasets.Dataset.from_dict({"first": starts, "stop": np.append(starts[1:], len(user))})
    return users.map(
        _UserRequests(log, titles, run, tokenizer_path),
        batched=True,
        batch_size=BATCH_USERS,
        num_proc=processes,
        remove_columns=["first", "stop"],
        load_from_cache_file=False,
    )


class _UserRequests:
    def __init__(self, log: datasets.Dataset, titles: dict[int, str], run: Run, tokenizer_path: str) -> None:
        self._log, self._titles, self._run, self._path = log, titles, run, tokenizer_path
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def __call__(self, users: dict[str, list[int]]) -> pa.Table:
        """Users of one batch follow each other in the log."""
        begin, history = users["first"][0], self._run.history
        rows = self._log[begin : users["stop"][-1]]
        columns = {name: rows[name].to_numpy(zero_copy_only=False) for name in rows.column_names}
        texts = [self._titles.get(item, "") for item in columns["item_id"].tolist()]
        labels = _labels(columns, list(self._run.tasks))
        own = self._tokens(texts, history.candidate_tokens)
        told = [
            f"{words} {text}".strip() for words, text in zip(_words(labels, list(self._run.tasks)), texts, strict=True)
        ]
        event = self._tokens(told, history.event_tokens)
        split = np.digitize(columns["time"], [float(str(until)) for until in self._boundaries()])
        made: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
        for first, stop in zip(users["first"], users["stop"], strict=True):
            self._user(slice(first - begin, stop - begin), columns, labels, event, own, split, made)
        return pa.table(made, schema=_SCHEMA)

    def _user(
        self,
        mine: slice,
        columns: dict[str, Array],
        labels: Array,
        event: list[Array],
        own: list[Array],
        split: Array,
        made: dict[str, list[Any]],
    ) -> None:
        time, half, most = columns["time"][mine], self._run.history.max_events // 2, self._run.history.max_candidates
        ends = np.searchsorted(time, time, side="left")
        anchors = np.maximum(0, (ends // half - 1) * half)
        for code in np.unique(split[mine]):
            inside = np.flatnonzero(split[mine] == code)
            for anchor in np.unique(anchors[inside]):
                members = inside[anchors[inside] == anchor]
                for part in range(0, len(members), most):
                    chosen = members[part : part + most]
                    held = range(mine.start + anchor, mine.start + ends[chosen].max())
                    rows = mine.start + chosen
                    past, asked = [event[e] for e in held], [own[c] for c in rows]
                    made["request_uid"].append(columns["row_id"][rows[0]])
                    made["user"].append(str(columns["user_id"][rows[0]]))
                    made["history_ids"].append(_flat(past))
                    made["history_ends"].append(np.cumsum([len(ids) for ids in past], dtype=np.int32))
                    made["candidate_ids"].append(_flat(asked))
                    made["candidate_ends"].append(np.cumsum([len(ids) for ids in asked], dtype=np.int32))
                    made["candidate_events"].append((ends[chosen] - anchor).astype(np.int32))
                    made["time"].append(columns["time"][rows] * 1_000_000)
                    made["row_id"].append(columns["row_id"][rows])
                    made["labels"].append(labels[rows].ravel())
                    made["split"].append(code)

    def _tokens(self, texts: list[str], limit: int) -> list[Array]:
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self._path)
            self._tokenizer.model_max_length = 10**9
        distinct = list(dict.fromkeys(texts))
        encoded = self._tokenizer(distinct, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ids = {text: np.array(own[:limit], dtype=np.int32) for text, own in zip(distinct, encoded, strict=True)}
        return [ids[text] for text in texts]

    def _boundaries(self) -> tuple[Any, Any]:
        return self._run.split.train_until, self._run.split.valid_until


_SCHEMA = pa.schema(
    {
        "request_uid": pa.int64(),
        "user": pa.string(),
        "history_ids": pa.list_(pa.int32()),
        "history_ends": pa.list_(pa.int32()),
        "candidate_ids": pa.list_(pa.int32()),
        "candidate_ends": pa.list_(pa.int32()),
        "candidate_events": pa.list_(pa.int32()),
        "time": pa.list_(pa.int64()),
        "row_id": pa.list_(pa.int64()),
        "labels": pa.list_(pa.float32()),
        "split": pa.int8(),
    }
)


def _labels(columns: dict[str, Array], tasks: Sequence[str]) -> Array:
    """float32 [N, T]; the label of `dwell` is log(1 + seconds)."""
    dwell = np.log(columns["dwell_s"].astype(np.float64) + 1)
    known = {"click": columns["click"], "like": columns["like"], "dwell": dwell}
    return np.stack([known[name] for name in tasks], axis=1).astype(np.float32)


def _words(labels: Array, tasks: Sequence[str]) -> list[str]:
    """`click`, `no click`, `dwell 3.2`, or nothing for a label that is not known, per task."""
    told = []
    for name, values in zip(tasks, labels.T, strict=True):
        if name == "dwell":
            told.append(["" if np.isnan(value) else f"{name} {value:g}" for value in values])
        else:
            told.append(np.where(values == 1, name, f"no {name}").tolist())
    return [" ".join(filter(None, words)) for words in zip(*told, strict=True)]


def _flat(parts: list[Array]) -> Array:
    return np.concatenate([np.zeros(0, dtype=np.int32), *parts])
