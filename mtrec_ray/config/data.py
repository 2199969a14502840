"""What the logs and their tables are, what a candidate may know of its past, and which rows are held out."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from mtrec_ray.config.part import Duration, Part, Share, is_time_zone
from mtrec_ray.config.sources import Feedback, PartitionRange, TimeUnit, UserMap


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


SHORTEST_VECTOR = 4


class Vector(Part):
    """A column of lists of numbers, all of one size, as embeddings of images, audio or graphs.

    Lists in Parquet (also of fixed size) and JSONL, text like `[0.5, 1]` in CSV. Empty cells and empty lists are
    missing, which the model can tell from every vector. Other sizes and numbers that are not finite are bad rows.

    Vectors are read as they are, nothing is fitted on them: the model centres each and scales it to one length
    (`model.vectors`), so that neither their mean nor their length counts, and a vector needs at least 4 numbers.
    Where these mean something, declare the numbers themselves in `numbers`.

    They are side features of each candidate. Tasks that match (`retrieval`, `interest_match`) read those of items in
    their vectors of items, and those of users in their vectors of users.
    """

    column: str
    dim: Annotated[int, Field(ge=SHORTEST_VECTOR)] | None = None
    """Numbers in each; by default as many as in the first that is not missing."""


CategoryField = Annotated[Category, BeforeValidator(_column)]
NumberField = Annotated[Number, BeforeValidator(_column)]
VectorField = Annotated[Vector, BeforeValidator(_column)]


class Table(Part):
    """A table of items or users, one row per key, or with `valid_from` one per key and time of a change."""

    path: str
    key: str
    text: str | None = None
    """Template over the table's columns, as `"{title} {genres}"`; empty cells give empty text."""
    categories: list[CategoryField] = []
    numbers: list[NumberField] = []
    vectors: list[VectorField] = []
    """Stored once per row of the table, and not with every request or item of the catalogue."""
    published: str | None = None
    """Of items: column with the time since when an item is there; may be empty. The age of an item counts from then,
    else from when the log first mentions it. A time that is later than the candidate's does not count."""
    time_zone: str | None = None
    """Of users: column with the IANA name of the zone that a user's clock is in; empty = `data.time_zone`."""
    valid_from: str | None = None
    """Column with the time from which on a row holds. A candidate takes the last row of its key that is not later than
    itself, an event of a history the one of its own time; before the first row the key is unknown."""
    time_unit: TimeUnit | None = None
    """Of `valid_from` and `published`; by default `data.time_unit`."""


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
    """A number of at least 0: how much the row counts in all losses and metrics."""
    sampling_rate: str | None = None
    """A number above 0 and at most 1: the share of such rows that the log kept, as 0.1 for negatives kept at 10 %. In
    losses and metrics the row counts 1 / rate: both are estimates of what they were with all rows."""
    position: str | None = None
    """A whole number of at least 0: the place on the page; empty = unknown."""
    propensity: str | None = None
    """A number above 0 and at most 1: the probability with which the policy showed the item at that place; empty =
    unknown."""
    policy: str | None = None
    """Which logging policy chose the row, as `random`; may be empty."""
    domain: str | None = None
    """Surface or scenario, as `home` or `search`; may be empty."""
    impression: str | None = None
    """Id that the rows of `data.feedback` refer to with `by: impression`."""
    query: str | None = None
    """What was searched for; it stands before the candidate's text, and at most half of `history.candidate_tokens` is
    for it. Histories have no queries."""
    time_zone: str | None = None
    """IANA name of the zone that the user's clock was in, for the hour and the weekday; empty = `data.time_zone`."""


class Data(Part):
    """The logs and the tables that belong to them."""

    logs: str | list[str]
    """File, folder, glob or list of them: local, or any URL that pyarrow's filesystems open (s3://, gs://, hdfs://)."""
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    layout: Literal["impressions", "behaviours"] = "impressions"
    columns: Columns
    partitions: dict[str, PartitionRange] = {}
    """Hive partitions below `logs`: folders `<key>=<value>` outside a range are not listed, and each key is a column of
    the log where its rows lack one. `{}` as the range of a key takes all of its folders."""
    feedback: list[Feedback] = []
    unique_by: list[str] = []
    """Columns whose values name a row: of several rows of a user with the same, the first one counts, for the others
    are repeated deliveries. Rows where all of these are empty stay."""
    max_user_events: PositiveInt | None = None
    """Of users with more rows, as bots have, only the latest so many are kept."""
    user_map: UserMap | None = None
    time_unit: TimeUnit = "s"
    time_zone: str = "UTC"
    """IANA name, as Europe/Oslo, of times that do not say their zone: ISO text without an offset, Parquet timestamps
    that are not in UTC, and dates in `split`. Times that this zone had twice, or not at all, are quarantined. The hour
    and the weekday (`features.time`) are those of its clocks, where no column says whose the user goes by."""
    candidate_event: str | None = None
    """`behaviours`: the event type that makes a candidate, as VIEW (its first one per user and item)."""
    items: Table | None = None
    users: Table | None = None
    categories: list[CategoryField] = []
    """Columns of the log itself that are known when the item is shown."""
    numbers: list[NumberField] = []
    vectors: list[VectorField] = []
    """Likewise; stored with each candidate. Tasks that match (`retrieval`, `interest_match`) do not read them: a row is
    of a user and of the item shown, and the vector of a user must not tell the item that it is matched with. Declare
    them in `items` or `users` for these."""
    max_bad_share: Share = 0.01
    """`prepare` stops when a larger share of the rows had to be quarantined."""
    prepared_dir: Annotated[str, Field(min_length=1)] = "prepared"
    """Cache of prepared data: a folder or URL; one subfolder per fingerprint of inputs and settings."""
    buckets: PositiveInt = 8
    """Users are hashed into this many buckets; each becomes one shard per split and one unit of parallel work."""
    period: Annotated[Duration, Field(gt=0)] | None = None
    """As `1d`: each bucket becomes one shard per split and period, so that new days only add shards. Requests hold
    candidates of one period only. Without it new rows change the one shard of their users' bucket and split."""

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if not is_time_zone(value):
            raise ValueError(f"'{value}' is no time zone; write an IANA name, as UTC or Europe/Oslo")
        return value

    @model_validator(mode="after")
    def _tables_are_of_items_and_users(self) -> Self:
        if self.items is not None and self.items.time_zone is not None:
            raise ValueError("data.items.time_zone: items have no clock; give data.users.time_zone")
        if self.users is not None and self.users.published is not None:
            raise ValueError("data.users.published: users are not published; give data.items.published")
        if self.columns.time_zone is not None and self.users is not None and self.users.time_zone is not None:
            raise ValueError("data.columns.time_zone and data.users.time_zone both say a user's zone; give one of them")
        return self

    @model_validator(mode="after")
    def _behaviours_need_types(self) -> Self:
        typed = self.columns.event is not None or bool(self.feedback)
        if self.layout == "behaviours" and not (typed and self.candidate_event):
            raise ValueError("layout 'behaviours' needs data.columns.event and data.candidate_event")
        return self

    @model_validator(mode="after")
    def _feedback_fits(self) -> Self:
        for i, feedback in enumerate(self.feedback):
            if feedback.by == "impression":
                if self.layout == "behaviours":
                    raise ValueError(
                        f"data.feedback[{i}].by: layout 'behaviours' knows feedback by user and item; leave `by` out"
                    )
                if self.columns.impression is None:
                    raise ValueError(f"data.feedback[{i}].by: impression needs data.columns.impression")
            elif feedback.impression is not None:
                raise ValueError(f"data.feedback[{i}].impression needs by: impression")
            if feedback.within is not None and self.layout == "behaviours":
                raise ValueError(
                    f"data.feedback[{i}].within belongs to layout 'impressions'; give the tasks a `window` instead"
                )
        joined = any(feedback.by == "impression" for feedback in self.feedback)
        if self.columns.impression is not None and not joined:
            raise ValueError("data.columns.impression is for data.feedback with by: impression; remove it")
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
    fit_until: str | float | None = None
    """As `train_until`: what is fitted (ids, categories, base rates, aggregates' statistics, the tokenizer) comes from
    the train rows before this time, and so stays as it is when train rows come that are later. By default from all."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.by == "column") != (self.column is not None):
            raise ValueError("split.column belongs to split.by: column, and is needed there")
        if (self.train_until is None) != (self.valid_until is None):
            raise ValueError("give both split.train_until and split.valid_until, or neither")
        if self.train_until is not None and self.by != "time":
            raise ValueError("split.train_until belongs to split.by: time")
        if self.fit_until is not None and self.by != "time":
            raise ValueError("split.fit_until belongs to split.by: time")
        if self.valid + self.test >= 1:
            raise ValueError("split.valid + split.test must leave rows for training")
        return self
