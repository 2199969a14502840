"""What a folder of prepared data says of itself: `manifest.json`, written last, so that its presence means complete."""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mtrec_ray.labels import Labels

FORMAT = 7
SPLITS = ("train", "valid", "test")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DurationEntry(_Entry):
    """How long the train rows of a `watch_time` task were watched; fitted on those with a duration above 0."""

    share: float
    """Mean of min(label / duration, cap) / cap."""
    edges: list[float]
    """Ascending durations; group g holds those from edges[g - 1] up to, but without, edges[g]."""
    quantiles: list[list[float]]
    """Per group the labels at the ranks 0, 0.01, ..., 1."""


class DelayEntry(_Entry):
    """How late the feedback of a task with a window came; fitted on train rows with label 1."""

    window: float
    """Seconds."""
    mean: float
    """Seconds, over all that had come by the end of the train period."""
    quantiles: list[float]
    """Seconds at the ranks 0, 0.01, ..., 1, of the rows whose window was over by then: of those no late one lacks.
    Empty if there is none."""


class TaskEntry(_Entry):
    """One task, with what was fitted on its observed train labels."""

    name: str
    kind: str
    labels: Labels
    """What the labels of the kind are."""
    classes: int = 1
    observed: dict[str, int]
    """Observed labels per split."""
    positives: dict[str, int]
    """Labels > 0 per split."""
    mean: float
    """Mean of the train labels, each with the weight of its row (`reading.context.row_weights`), as all that follows:
    the base rate of a binary task."""
    std: float
    frequencies: list[float] = []
    """Of labels that are classes: share of each class in train."""
    log_mean: float | None = None
    """Of labels that are numbers: mean of log(1 + label), if all train labels are above -1."""
    log_std: float | None = None
    parent: str | None = None
    """The task that this one is a step after."""
    parent_mean: float | None = None
    """Mean of the parent's train labels where this task's label is observed too."""
    durations: DurationEntry | None = None
    """`watch_time`: None if no train row has a label and a duration."""
    delays: DelayEntry | None = None
    """Of tasks with a window: None if no train row has label 1."""


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
    kind: Literal["number", "time", "match", "aggregate"]
    mean: float
    std: float
    quantiles: list[float]
    """Distinct, ascending inner quantiles of the train values; the edges of a piecewise-linear encoding."""


class VectorEntry(_Entry):
    """One declared vector: columns `offset : offset + size` of a candidate's `vectors`; a row of NaN = missing."""

    name: str
    scope: Literal["log", "item", "user"]
    """Those of items and users lie in `data.vectors`, a row per row of their table; requests hold those of the log."""
    offset: int
    size: int


class CollisionEntry(_Entry):
    """How many train ids share rows of a hashed table (`data.id_hashes.collisions` has the formulas)."""

    of: Literal["user", "item"]
    ids: int
    """Different ones of the train rows."""
    rows: int
    hashes: int
    """Rows for each id."""
    some: float
    """Share of the ids that have one of their rows in common with another."""
    all: float
    """Share of the ids that have the same rows as another, so that no vector tells the two apart."""
    expected_some: float
    expected_all: float


class CatalogueEntry(_Entry):
    """The list of all items, `data.catalogue`, which only tasks that match users against items need."""

    path: str
    """Relative to the prepared folder."""
    items: int
    in_train: int
    """Items with a train row."""
    categories: list[str]
    """Those of the manifest's categories that are the item's own, in its order."""


class ShardEntry(_Entry):
    """One Parquet file of requests; its lengths are in the sidecar `<stem>.lengths.parquet` beside it."""

    path: str
    """Relative to the prepared folder; shards lie beside it, in `pieces`, since other prepared folders share them."""
    bucket: int
    """The bucket of users: all requests of a user are in shards of one bucket."""
    period: int
    """Its number since 1970, of `data.period`; 0 without."""
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
    vectors: list[VectorEntry] = []
    """Those of the log first, then those of items and of users."""
    num_users: int
    """Rows of the table of user ids; row 0 is the unknown user."""
    num_items: int
    id_collisions: list[CollisionEntry] = []
    """With `features.ids: hashed`, of the tables as the run had them that made this data: it serves tables of any
    size."""
    context: list[str]
    """Columns of a candidate's `context`: those of row_weight, sampling_rate, position, propensity that the log has."""
    domains: list[str]
    """Surfaces of the train rows, which a candidate's `domain` is an index into; 0, the empty one, is unknown."""
    policies: list[str]
    """Logging policies, likewise."""
    positions: list[int]
    """The smallest and the largest position of a train row; empty if none is known."""
    propensities: int
    """Train rows whose propensity is known."""
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
    catalogue: CatalogueEntry | None = None
    counts: dict[str, int]
    """rows_read, rows_quarantined, events, users, items, requests, candidates, cut_texts, duplicates, ..."""

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1)
