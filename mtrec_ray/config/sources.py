"""How logs lie in storage: partitions, feedback in files of its own, and ids that change."""

from typing import Literal, Self

from pydantic import model_validator

from mtrec_ray.config.part import Duration, Part

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]


class PartitionRange(Part):
    """The folders `<key>=<value>` that are read: from `first` to `last`, both included; without a bound, all that way.

    Bounds are written as the folders are. Two whole numbers compare as numbers, anything else as text.
    """

    first: str | int | None = None
    last: str | int | None = None


class Feedback(Part):
    """Files with one row per feedback: what came of the rows of the log, then or days later.

    Layout `impressions`: a feedback belongs to the last exposure of its user and item that is not later than it
    (`by: user+item`), or to the one with its impression id (`by: impression`). It is the label of the tasks that name
    its type as their `event`. Layout `behaviours`: each is a row of its type, like those of the log itself. Either way
    the file needs the user's id, by which rows are brought together; an impression id alone would need a second
    exchange of the whole log.
    """

    logs: str | list[str]
    """As `data.logs`."""
    partitions: dict[str, PartitionRange] = {}
    """As `data.partitions`; of its own, since feedback may lie in later ones."""
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    type: str | None = None
    """The type of all its rows, as LIKE; or else `event`."""
    event: str | None = None
    """Column with the type of each row."""
    by: Literal["user+item", "impression"] = "user+item"
    user: str | None = None
    """Column, by default the log's; likewise `item`, `time` and `impression`."""
    item: str | None = None
    """With `by: impression`, where ids name a whole list: the column that says which item of it; by default none."""
    time: str | None = None
    time_unit: TimeUnit | None = None
    """By default `data.time_unit`."""
    impression: str | None = None
    within: Duration | None = None
    """Feedback that comes later than this after its exposure belongs to none, and is counted. A task's `window` says
    what counts for its label; later feedback still enters histories."""
    unique_by: list[str] = []
    """As `data.unique_by`."""

    @model_validator(mode="after")
    def _one_type(self) -> Self:
        if (self.type is None) == (self.event is None):
            raise ValueError("give `type`, the type of all rows, or `event`, the column that says it, and not both")
        return self


class UserMap(Part):
    """A table from ids in the logs to the users behind them, for ids that rotate. It is held in memory."""

    path: str
    """File, folder, glob or URL (CSV, JSONL or Parquet)."""
    key: str
    """Column with the id as logs have it."""
    user: str
    """Column with the user's lasting id."""
    valid_from: str | None = None
    """Column with the time from which on the id is that user's, in `data.time_unit`; a row of the log takes the last
    one that is not later than the row. Without it an id may occur once only."""
