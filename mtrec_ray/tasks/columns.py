"""Where the features of candidates stand, by name, for kinds that need one beside the logits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest


class CategoryColumns(Protocol):
    """The manifest's `CategoryEntry`."""

    @property
    def name(self) -> str: ...

    @property
    def offset(self) -> int: ...

    @property
    def width(self) -> int: ...


class NumberColumn(Protocol):
    """The manifest's `NumberEntry`."""

    @property
    def name(self) -> str: ...

    @property
    def index(self) -> int: ...

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True)
class FeatureColumns:
    """The categories and numbers that the config declares, and the aggregates.

    `where` of the lookups is the dotted config path that asks.
    """

    categories: Mapping[str, slice] = field(default_factory=dict)
    """Columns of `Candidates.categories`, one or more for each category."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Column of `Candidates.numbers`."""
    aggregates: Mapping[str, int] = field(default_factory=dict)
    """Likewise."""
    train_rows: int = 0

    @classmethod
    def of(
        cls, categories: Iterable[CategoryColumns], numbers: Sequence[NumberColumn], train_rows: int
    ) -> "FeatureColumns":
        return cls(
            {entry.name: slice(entry.offset, entry.offset + entry.width) for entry in categories},
            {entry.name: entry.index for entry in numbers if entry.kind == "number"},
            {entry.name: entry.index for entry in numbers if entry.kind == "aggregate"},
            train_rows,
        )

    def category(self, name: str, where: str) -> slice:
        """Raises `ConfigError` if no category has this name."""
        if name not in self.categories:
            raise ConfigError(unknown_feature("category", "categories", name, where, self.categories))
        return self.categories[name]

    def number(self, name: str, where: str) -> int:
        """Raises `ConfigError` if no number has this name."""
        if name not in self.numbers:
            raise ConfigError(unknown_feature("number", "numbers", name, where, self.numbers))
        return self.numbers[name]

    def aggregate(self, name: str, where: str) -> int:
        """Raises `ConfigError` if the data was prepared without this aggregate's feature, as `item.shown`."""
        if name not in self.aggregates:
            raise ConfigError(
                f"{where}: the data has no feature '{name}'; add '{name.partition('.')[0]}' to features.aggregates."
            )
        return self.aggregates[name]


def unknown_feature(what: str, key: str, name: str, where: str, known: Iterable[str]) -> str:
    """The message of a name that the config declares nowhere."""
    tail = suggest(name, known) if known else ""
    return f"{where}: no {what} is called '{name}'; declare it in data.{key} or data.items.{key}.{tail}"
