"""The search space: `tune.space` checked against the config, and the way from sampled values to a trial's config.

An entry is a dotted path with a distribution (`search.distributions`). `simplex` is over the one `*` of its path:
`tasks.*.weight: {simplex: [like, rating]}`. Any distribution may carry `when: {other.path: value or [values]}`; it is
then sampled only where the other path, searched too, has such a value, and else the config's own value stays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.search.applied import applied
from mtrec_ray.search.distributions import Asked, between
from mtrec_ray.search.entries import Entry, Values, ordered, read_entry
from mtrec_ray.search.searchable import all_values, check_path, check_shared, idle

MAX_GRID = 10_000


@dataclass(frozen=True)
class Space:
    """What is searched; entries that others depend on come first."""

    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, run: Run) -> "Space":
        """The space of `run.tune.space`.

        Raises:
            ConfigError: a path that is not there, cannot be searched or would change nothing; a distribution that
                cannot be read, or whose values the config does not take; a condition that can never hold.
        """
        if not run.tune.space:
            raise ConfigError(
                "tune.space is empty: name what to search, as `train.learning_rate.towers: {loguniform: [1e-4, 1e-2]}`."
            )
        entries = [read_entry(name, found) for name, found in run.tune.space.items()]
        for entry in entries:
            for path in entry.paths:
                check_path(entry.where, path, run)
        space = cls(ordered(entries))
        space._check_values(run)
        return space

    @property
    def paths(self) -> list[str]:
        return [path for entry in self.entries for path in entry.paths]

    def suggest(self, trial: Asked) -> Values:
        """Values that `trial`, an `optuna.Trial` as a rule, answers with; only active parameters are asked for."""
        return self.build(lambda entry: entry.distribution.suggest(trial, entry.name))

    def sample(self, rng: np.random.Generator) -> Values:
        """Values drawn independently."""
        return self.suggest(_Random(rng))

    def build(self, value_of: Callable[[Entry], Any]) -> Values:
        """Values of the active entries, each as `value_of` gives it."""
        values: Values = {}
        for entry in self.entries:
            if entry.active(values):
                values |= entry.spread(value_of(entry))
        return values

    def grid(self) -> list[Values]:
        """All combinations of the entries' grids, each once: where an entry is inactive it does not multiply.

        Raises:
            ConfigError: a range without `points`, or more than `MAX_GRID` combinations.
        """
        found: list[Values] = [{}]
        for entry in self.entries:
            options = entry.distribution.grid()
            if options is None:
                raise ConfigError(
                    f"{entry.where}: the searcher grid needs to know how finely to cut it; add `points: 4`."
                )
            found = [
                values | more
                for values in found
                for more in ([entry.spread(option) for option in options] if entry.active(values) else [{}])
            ]
            if len(found) > MAX_GRID:
                raise ConfigError(
                    f"tune.space: the grid has more than {MAX_GRID} combinations; give fewer `points` or choices, or "
                    "take another tune.searcher."
                )
        return found

    def default(self, run: Run) -> Values:
        """The values that the config itself has; they may lie outside the distributions."""
        own = all_values(run)
        return self.build(lambda entry: entry.collect(own))

    def parameters(self, values: Values) -> dict[str, Any] | None:
        """The answers with which `suggest` gives `values`; None if they are not of this space."""
        found: dict[str, Any] = {}
        active = [entry for entry in self.entries if entry.active(values)]
        if {path for entry in active for path in entry.paths} != values.keys():
            return None
        for entry in active:
            parameters = entry.distribution.parameters(entry.name, entry.collect(values))
            if parameters is None:
                return None
            found |= parameters
        return found

    def probes(self, run: Run) -> Iterator[tuple[Entry, Run]]:
        """The config at the ends of each entry, all else being its own."""
        for entry in self.entries:
            for value in entry.distribution.probes():
                yield entry, applied(run, entry.spread(value), entry.where)

    def _check_values(self, run: Run) -> None:
        own = applied(run, {})
        probed = list(self.probes(run))
        for entry in self.entries:
            mine = [probe for of, probe in probed if of is entry]
            for probe in mine:
                check_shared(entry.where, own, probe)
            if all(probe == own for probe in mine):
                raise ConfigError(f"{entry.where} changes nothing: all its values are the config's own. Remove it.")
            others = [probe for of, probe in probed if of is not entry]
            for path in entry.paths:
                reason = idle(path, [own, *others])
                if reason:
                    raise ConfigError(f"{entry.where} changes nothing, since {reason}. Remove it, or change that.")


class _Random:
    """Answers at random, as `Asked`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(np.clip(between(low, high, self._rng.random(), log), low, high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        if not log:
            return int(self._rng.integers(low, high, endpoint=True))
        return int(np.clip(round(between(low - 0.5, high + 0.5, self._rng.random(), log=True)), low, high))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[int(self._rng.integers(len(choices)))]
