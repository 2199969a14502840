"""Side features, and changes to the train requests."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, ValidationInfo, model_validator

from mtrec_ray.config.model import RESOLVED
from mtrec_ray.config.part import Dropout, Part, Share


class Features(Part):
    """Side features of each candidate, beside the language model's reading of the text."""

    user_dim: Annotated[int, Field(ge=0)] = 0
    """Width of the table of user ids; 0 = no such table. Off: beside the aggregates it did not pay (docs/LOG.md)."""
    item_dim: Annotated[int, Field(ge=0)] = 0
    """Width of the table of item ids, likewise."""
    ids: Literal["exact", "hashed"] = "exact"
    """`exact`: a row for each id with `min_count` train rows, and one that all others share. `hashed`: each id, also
    one that train does not know, has `hashes` rows of a table of fixed size, shared with others by chance; its vector
    is their sum. `mtrec prepare` says how many share theirs."""
    user_rows: PositiveInt = 100_000
    """Of a hashed table of users."""
    item_rows: PositiveInt = 100_000
    """Of hashed tables of items: candidates, the history's attention, matching."""
    hashes: Annotated[int, Field(ge=1, le=8)] = 2
    """Rows for each id of hashed tables."""
    category_dim: Annotated[int, Field(ge=0)] = 8
    min_count: PositiveInt = 2
    """Ids with fewer train rows share the unknown row; hashed tables have none."""
    id_dropout: Dropout = 0.1
    """Share of ids replaced by the unknown row in training, so that it is trained; with hashed tables their vectors are
    left out."""
    aggregates: list[str] | Literal["auto"] = "auto"
    """As-of aggregates, e.g. `user`, `item`, `user * genres`, `user ~ genres`, `taste genres`, `taste genres
    fading 20d`; `[]` = none."""
    matches: list[str] = []
    """How two categories of the same row go together, e.g. `query * title`, the share of the query's words that the
    title has, `query ~ title`, how alike their words are to users."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Statistics of items in train rows leave out the fold the user belongs to."""
    time: bool = True
    """Hour and weekday on the user's clock, gaps to the user's earlier events, and the age of the item."""
    number_dim: Annotated[int, Field(ge=0)] = 0
    """Width of a piecewise-linear encoding of each number, beside the standardised number; 0 = none."""
    vector_dim: PositiveInt = 16
    """Width that each declared vector is projected to; to leave one out, take it out of `data`. In the vectors of tasks
    that match it is `matching.dim`."""
    history_dim: Annotated[int, Field(ge=0)] = 0
    """Width of the attention from the candidate's item to the items of its history; 0 = no such attention."""
    history_gaps: bool = True
    """Whether that attention learns how much events count by how long before the candidate they were, in spans of time
    that double, beside a slope over all of them."""
    interactions: bool = False
    """Whether the network also reads the inner products of every two of the vectors of ids, categories and declared
    vectors: for what depends on how two of them go together, as the words of a query and of an item. They need two
    such parts."""
    hidden: list[PositiveInt] = [128]
    """Layers of the network that reads the side features."""
    dropout: Dropout = 0.1

    @model_validator(mode="after")
    def _nothing_idle(self, info: ValidationInfo) -> Self:
        names = ("user_rows", "item_rows", "hashes")
        idle = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if idle and self.ids == "exact" and RESOLVED not in (info.context or ()):
            raise ValueError(f"{idle[0]} does nothing with ids: exact; set ids: hashed, or remove {idle[0]}")
        return self


class ItemText(Part):
    """Other texts of the same items: from a table with several rows per item, or made by a function."""

    path: str | None = None
    """File, folder, glob or URL of the table (CSV, JSONL or Parquet)."""
    key: str | None = None
    text: str | None = None
    """Template over the table's columns, as `data.items.text`."""
    function: str | None = None
    """Name of a function that a plugin has registered with `data.streaming.augment.item_text.AUGMENTERS`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        table = (self.path, self.key, self.text)
        if (None in table) == (self.function is None) or (self.function is not None and any(table)):
            raise ValueError("give a table as `path`, `key` and `text`, or a `function`, and not both")
        return self


class Augment(Part):
    """Changes to the train requests, drawn anew in every epoch; see `mtrec_ray.data.streaming.augment`.

    Side features and aggregates stay as they are. What is validated, tested and scored is never changed.
    """

    history_crop: Share = 0.0
    """Share of requests whose history is cut to a part of it in a row, of any length and at any place."""
    history_mask: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the events that are left out of the histories."""
    history_reorder: Share = 0.0
    """Share of a history's events, in a row, that are shuffled."""
    token_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the tokens of events and candidates that are replaced by random ones."""
    item_text: ItemText | None = None
    """Each event and candidate has one of its item's texts, the item's own among them.

    A text is cut to as many tokens as the one it stands for, since steps are planned by their tokens before: let the
    longest be that of `data.items.text`.
    """
    negatives: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share that is kept of the candidates whose observed labels are all 0; each then counts 1 / share in the loss."""
    domains: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    """Share that is kept of what was shown in a domain, as `{home: 0.25}`, list by list; each candidate then counts
    1 / share in the loss. Of domains that are not named all is kept."""
