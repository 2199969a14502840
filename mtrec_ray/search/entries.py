"""One entry of the search space: a dotted path with its distribution, and the condition under which it is searched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest
from mtrec_ray.search.distributions import Choice, Distribution, Simplex, Steps, Whole
from mtrec_ray.search.reading import read_distribution

Values = dict[str, Any]
"""Dotted path -> plain value, of the paths that are active."""


@dataclass(frozen=True)
class Entry:
    """One searched path, or all paths of one simplex."""

    name: str
    """As it is written in the config, `*` included."""
    distribution: Distribution
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"tune.space.{self.name}"

    @property
    def paths(self) -> tuple[str, ...]:
        if isinstance(self.distribution, Simplex):
            return tuple(self.name.replace("*", part) for part in self.distribution.names)
        return (self.name,)

    def active(self, values: Values) -> bool:
        return all(path in values and values[path] in wanted for path, wanted in self.when.items())

    def spread(self, value: Any) -> Values:
        """The distribution's value by path."""
        return dict(zip(self.paths, value if isinstance(self.distribution, Simplex) else (value,), strict=True))

    def collect(self, values: Values) -> Any:
        """The reverse of `spread`."""
        found = tuple(values[path] for path in self.paths)
        return found if isinstance(self.distribution, Simplex) else found[0]


def read_entry(name: str, found: Any) -> Entry:
    """The entry written as `name: found`. Raises `ConfigError`."""
    where = f"tune.space.{name}"
    when = found.get("when", {}) if isinstance(found, Mapping) else {}
    if isinstance(found, Mapping):
        found = {key: value for key, value in found.items() if key != "when"}
    if not isinstance(when, Mapping):
        raise ConfigError(f"{where}.when is {when!r}: expected `other.path: value` or `other.path: [values]`.")
    distribution = read_distribution(where, found)
    stars = name.count("*")
    if stars != isinstance(distribution, Simplex):
        raise ConfigError(
            f"{where} has {stars} `*`: a simplex needs exactly one, as `tasks.*.weight: {{simplex: [like, rating]}}`, "
            "and any other distribution a whole path."
        )
    return Entry(name, distribution, {path: _listed(wanted) for path, wanted in when.items()})


def _listed(wanted: Any) -> tuple[Any, ...]:
    return tuple(wanted) if isinstance(wanted, list) else (wanted,)


def ordered(entries: list[Entry]) -> tuple[Entry, ...]:
    """Entries after those that their conditions name. Raises `ConfigError` on a condition that can never hold."""
    by_path: dict[str, Entry] = {}
    for entry in entries:
        for path in entry.paths:
            if path in by_path:
                raise ConfigError(f"{entry.where}: '{path}' is searched by {by_path[path].where} too; remove one.")
            by_path[path] = entry
    for entry in entries:
        for path, wanted in entry.when.items():
            _check_condition(entry, path, wanted, by_path)
    done: list[Entry] = []
    while len(done) < len(entries):
        known = {path for entry in done for path in entry.paths}
        ready = [entry for entry in entries if entry not in done and entry.when.keys() <= known]
        if not ready:
            left = ", ".join(entry.name for entry in entries if entry not in done)
            raise ConfigError(
                f"tune.space: the conditions (`when`) of {left} go round in a circle; remove one of them."
            )
        done += ready
    return tuple(done)


def _check_condition(entry: Entry, path: str, wanted: tuple[Any, ...], by_path: Mapping[str, Entry]) -> None:
    where = f"{entry.where}.when"
    if path not in by_path:
        raise ConfigError(f"{where}: '{path}' is not searched.{suggest(path, by_path)}")
    if path in entry.paths:
        raise ConfigError(f"{where}: '{path}' cannot depend on itself; remove the condition.")
    parent = by_path[path].distribution
    if not isinstance(parent, Choice | Whole | Steps):
        raise ConfigError(f"{where}: '{path}' has no single values to depend on; search it with choice or randint.")
    never = [value for value in wanted if parent.parameters(path, value) is None]
    if never or not wanted:
        found = repr(never[0]) if never else "no value"
        raise ConfigError(f"{where}: '{path}' never is {found}; its values are {_values(parent)}.")


def _values(parent: Choice | Whole | Steps) -> str:
    options = parent.grid()
    return ", ".join(map(repr, options)) if len(options) <= 12 else f"{options[0]!r} to {options[-1]!r}"
