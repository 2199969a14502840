"""What a folder of prepared data says of itself: `manifest.json`, written last, so that its presence means complete."""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

FORMAT = 2
SPLITS = ("train", "valid", "test")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskEntry(_Entry):
    """One task, with what was fitted on its observed train labels."""

    name: str
    kind: str
    classes: int = 1
    observed: dict[str, int]
    """Observed labels per split."""
    positives: dict[str, int]
    """Labels > 0 per split."""
    mean: float
    """Mean of the train labels: the base rate of a binary task."""
    std: float
    frequencies: list[float] = []
    """`multiclass`: share of each class in train."""


class CategoryEntry(_Entry):
    """One category feature: columns `offset : offset + width` of a candidate's `categories`."""

    name: str
    offset: int
    width: int
    """Values per candidate (1, or the most that one cell held); absent ones are -1."""
    size: int
    """Rows of its table; row 0 is the unknown value."""


class NumberEntry(_Entry):
    """One number feature: column `index` of a candidate's `numbers`; NaN = missing."""

    name: str
    index: int
    kind: Literal["number", "time", "aggregate"]
    mean: float
    std: float
    quantiles: list[float]
    """Distinct, ascending inner quantiles of the train values; the edges of a piecewise-linear encoding."""


class ShardEntry(_Entry):
    """One Parquet file of requests; its lengths are in the sidecar `<stem>.lengths.parquet` beside it."""

    path: str
    """Relative to the prepared folder."""
    requests: int
    candidates: int
    tokens: int
    sha256: str


class Manifest(_Entry):
    """The prepared folder's contents, schema and provenance."""

    format: int = FORMAT
    fingerprint: str
    """Hash of inputs and of every setting that changes the prepared data."""
    tasks: list[TaskEntry]
    categories: list[CategoryEntry]
    numbers: list[NumberEntry]
    num_users: int
    """Rows of the table of user ids; row 0 is the unknown user."""
    num_items: int
    history_layout: Literal["staircase", "shared_end"]
    vocab_size: int
    """Token ids are below it; 0 with `backbone: none`, which has no tokens."""
    max_request_tokens: int
    max_position: int
    """Longest history + candidate that one candidate attends to, in tokens."""
    row_group_requests: int
    shards: dict[str, list[ShardEntry]]
    """Per split."""
    documents: list[str]
    """Parquet files with the pretraining documents (`ids: list<int32>`), relative paths."""
    boundaries: dict[str, int]
    """`train_until`, `valid_until` in microseconds since 1970; empty unless the split is by time."""
    counts: dict[str, int]
    """rows_read, rows_quarantined, events, users, items, requests, candidates, cut_texts, duplicates, ..."""

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1)
