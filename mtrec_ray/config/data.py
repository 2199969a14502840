"""What the logs and their tables are, what a candidate may know of its past, and which rows are held out."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from mtrec_ray.config.part import Duration, Part, Share


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


class Category(Part):
    """A column of categories; with a `separator` (as `|`) one cell holds several."""

    column: str
    separator: str | None = None
    min_count: PositiveInt = 2
    """Values rarer than this in the train period share the unknown row."""


class Number(Part):
    """A column of numbers; with a `pattern` the first group of the regular expression found in a text column."""

    column: str
    pattern: str | None = None
    name: str | None = None
    """Name of the feature; the column's name by default."""

    @property
    def feature(self) -> str:
        return self.name or self.column


CategoryField = Annotated[Category, BeforeValidator(_column)]
NumberField = Annotated[Number, BeforeValidator(_column)]


class Table(Part):
    """A table of items or users, one row per key."""

    path: str
    key: str
    text: str | None = None
    """Template over the table's columns, as `"{title} {genres}"`; empty cells give empty text."""
    categories: list[CategoryField] = []
    numbers: list[NumberField] = []


class Columns(Part):
    """Which column of the log is what."""

    user: str
    item: str
    time: str
    request: str | None = None
    """Rows with the same value were shown together; without it rows of one user at one time were."""
    event: str | None = None
    """Event type; needed by layout `behaviours`."""
    row_weight: str | None = None
    """A number of at least 0: how much the row counts in all losses."""
    sampling_rate: str | None = None
    """A number above 0 and at most 1: the share of such rows that the log kept, as 0.1 for negatives kept at 10 %."""
    position: str | None = None
    """A whole number of at least 0: the place on the page; empty = unknown."""
    propensity: str | None = None
    """A number above 0 and at most 1: the probability with which the policy showed the item at that place; empty =
    unknown."""
    policy: str | None = None
    """Which logging policy chose the row, as `random`; may be empty."""
    domain: str | None = None
    """Surface or scenario, as `home` or `search`; may be empty."""
    query: str | None = None
    """What was searched for; it stands before the candidate's text, and at most half of `history.candidate_tokens` is
    for it. Histories have no queries."""


class Data(Part):
    """The logs and the tables that belong to them."""

    logs: str | list[str]
    """File, folder, glob or list of them: local, or any URL that pyarrow's filesystems open (s3://, gs://, hdfs://)."""
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    layout: Literal["impressions", "behaviours"] = "impressions"
    columns: Columns
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = "s"
    candidate_event: str | None = None
    """`behaviours`: the event type that makes a candidate, as VIEW (its first one per user and item)."""
    items: Table | None = None
    users: Table | None = None
    categories: list[CategoryField] = []
    """Columns of the log itself that are known when the item is shown."""
    numbers: list[NumberField] = []
    max_bad_share: Share = 0.01
    """`prepare` stops when a larger share of the rows had to be quarantined."""
    prepared_dir: str = "prepared"
    """Cache of prepared data: a folder or URL; one subfolder per fingerprint of inputs and settings."""
    buckets: PositiveInt = 8
    """Users are hashed into this many buckets; each becomes one shard per split and one unit of parallel work."""

    @model_validator(mode="after")
    def _behaviours_need_types(self) -> Self:
        if self.layout == "behaviours" and not (self.columns.event and self.candidate_event):
            raise ValueError("layout 'behaviours' needs data.columns.event and data.candidate_event")
        return self


class History(Part):
    """What a candidate may know of its user's past."""

    max_events: Annotated[int, Field(ge=0)] = 64
    """Window in events, 0 or at least 2; each candidate sees at least min(all, half of it).

    With 0 the model reads no history, neither texts nor events; `features.aggregates` still count what happened before.
    """
    event_tokens: PositiveInt = 16
    """Longest text of one history event, in tokens; longer texts are cut and counted."""
    candidate_tokens: PositiveInt = 16
    lag: Duration = 0.0
    """Withholds every event younger than this from the candidate, as a log pipeline does that is this late."""
    layout: Literal["auto", "staircase", "shared_end"] = "auto"
    """`staircase`: one history, candidates with own ends (decoders). `shared_end`: one end per request (encoders)."""
    max_candidates: PositiveInt = 128
    """Requests with more candidates are cut into several with the same history."""
    exposures: bool = True
    """Whether a shown item without (yet known) feedback is an event of the history."""

    @field_validator("max_events")
    @classmethod
    def _two_halves(cls, value: int) -> int:
        if value == 1:
            raise ValueError(
                "1 event cannot be halved, and windows overlap by half; give 0 for no history, or 2 or more"
            )
        return value


class Split(Part):
    """Train, validation and test candidates.

    `time`: ordered by (time, user, item), the last `test` share is test, the `valid` share before it validation;
    or explicit boundaries in the log's time unit. `user`: the same per user, at least one each. `column`: a column
    that says train, valid or test.
    """

    by: Literal["time", "user", "column"] = "time"
    valid: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1
    column: str | None = None
    train_until: str | float | None = None
    """First time that is no longer train: a number in the log's unit or an ISO date."""
    valid_until: str | float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.by == "column") != (self.column is not None):
            raise ValueError("split.column belongs to split.by: column, and is needed there")
        if (self.train_until is None) != (self.valid_until is None):
            raise ValueError("give both split.train_until and split.valid_until, or neither")
        if self.train_until is not None and self.by != "time":
            raise ValueError("split.train_until belongs to split.by: time")
        if self.valid + self.test >= 1:
            raise ValueError("split.valid + split.test must leave rows for training")
        return self
