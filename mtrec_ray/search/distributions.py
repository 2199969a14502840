"""Distributions of searched values: how they are read, drawn, laid out as a grid, and perturbed.

    uniform: [low, high]           any number between, both ends included
    loguniform: [low, high]        the same, uniform in its logarithm; for rates and weights
    quniform: [low, high, step]    low, low + step, ... up to high
    randint: [low, high]           whole numbers, both ends included
    lograndint: [low, high]        the same, uniform in its logarithm
    choice: [a, b, ...]            any of these; a plain list is short for it
    simplex: [name, ...]           positive weights that sum to 1, uniform over all such weights

Every range and the simplex take `points: n` beside them, which is how finely the searcher `grid` cuts them.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

PERTURB = (0.8, 1.2)
"""Factors of a perturbed number, as in population based training (arXiv 1711.09846)."""
INSIDE = 0.381966
"""Where between its ends a range is tried before the search, so that a field of whole numbers refuses fractions."""
EDGE = 1e-4
"""A simplex keeps this far from weights of zero."""
TOLERANCE = 1e-9


class Asked(Protocol):
    """Answers with a number for each named parameter: an `optuna.Trial`, or anything else that can."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> int: ...


class Distribution(ABC):
    """Of one value; the value of a simplex is the tuple of its weights."""

    @abstractmethod
    def suggest(self, trial: Asked, name: str) -> Any:
        """The value that `trial` answers with; its parameters are called `name` or begin with it."""

    @abstractmethod
    def parameters(self, name: str, value: Any) -> dict[str, Any] | None:
        """The answers with which `suggest` gives `value`; None where the value is outside."""

    @abstractmethod
    def grid(self) -> list[Any] | None:
        """All values of the grid, None where `points` has to say how many."""

    @abstractmethod
    def probes(self) -> list[Any]:
        """The ends and something between: what the config must be able to take."""

    @abstractmethod
    def perturb(self, value: Any, rng: np.random.Generator) -> Any:
        """A value near `value`, inside the distribution."""


@dataclass(frozen=True)
class Real(Distribution):
    """Numbers between `low` and `high`."""

    low: float
    high: float
    log: bool = False
    points: int | None = None

    def suggest(self, trial: Asked, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def parameters(self, name: str, value: Any) -> dict[str, Any] | None:
        return {name: float(value)} if is_number(value) and self.low <= value <= self.high else None

    def grid(self) -> list[float] | None:
        return _spaced(self.low, self.high, self.points, self.log) if self.points else None

    def probes(self) -> list[float]:
        return [self.low, self.high, between(self.low, self.high, INSIDE, self.log)]

    def perturb(self, value: Any, rng: np.random.Generator) -> float:
        return float(np.clip(value * rng.choice(PERTURB), self.low, self.high))


@dataclass(frozen=True)
class Whole(Distribution):
    """Whole numbers from `low` to `high`."""

    low: int
    high: int
    log: bool = False
    points: int | None = None

    def suggest(self, trial: Asked, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, log=self.log)

    def parameters(self, name: str, value: Any) -> dict[str, Any] | None:
        inside = is_number(value) and value == int(value) and self.low <= value <= self.high
        return {name: int(value)} if inside else None

    def grid(self) -> list[int]:
        if self.points is None:
            return list(range(self.low, self.high + 1))
        return sorted({round(value) for value in _spaced(self.low, self.high, self.points, self.log)})

    def probes(self) -> list[int]:
        return [self.low, self.high]

    def perturb(self, value: Any, rng: np.random.Generator) -> int:
        factor = rng.choice(PERTURB)
        moved = round(value * factor)
        moved = moved if moved != value else value + (1 if factor > 1 else -1)
        return int(np.clip(moved, self.low, self.high))


@dataclass(frozen=True)
class Steps(Distribution):
    """`low + i * step` for i = 0 .. `count`."""

    low: float
    step: float
    count: int
    points: int | None = None

    def suggest(self, trial: Asked, name: str) -> float:
        return self.value(trial.suggest_int(name, 0, self.count))

    def value(self, index: int) -> float:
        return float(f"{self.low + index * self.step:.12g}")

    def parameters(self, name: str, value: Any) -> dict[str, Any] | None:
        if not is_number(value):
            return None
        index = round((value - self.low) / self.step)
        near = math.isclose(self.value(index), value, rel_tol=TOLERANCE, abs_tol=self.step * TOLERANCE)
        return {name: index} if near and 0 <= index <= self.count else None

    def grid(self) -> list[float]:
        points = self.points or self.count + 1
        return [self.value(i) for i in sorted({round(i) for i in _spaced(0, self.count, points, log=False)})]

    def probes(self) -> list[float]:
        return [self.value(0), self.value(self.count), self.value(1)]

    def perturb(self, value: Any, rng: np.random.Generator) -> float:
        index = round((value - self.low) / self.step) + int(rng.choice([-1, 1]))
        return self.value(int(np.clip(index, 0, self.count)))


@dataclass(frozen=True)
class Choice(Distribution):
    """Any of `options`: numbers, words, truth values, lists or null."""

    options: tuple[Any, ...]

    def suggest(self, trial: Asked, name: str) -> Any:
        # By position: a sampler's categories must be plain values, and an option may be a list.
        return self.options[trial.suggest_categorical(name, range(len(self.options)))]

    def parameters(self, name: str, value: Any) -> dict[str, Any] | None:
        return {name: self.options.index(value)} if value in self.options else None

    def grid(self) -> list[Any]:
        return list(self.options)

    def probes(self) -> list[Any]:
        return list(self.options)

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:
        """The option before or after, as they are listed."""
        index = self.options.index(value) + int(rng.choice([-1, 1]))
        return self.options[int(np.clip(index, 0, len(self.options) - 1))]


@dataclass(frozen=True)
class Simplex(Distribution):
    """Weights of `names`, positive, summing to 1: Dirichlet(1, ..., 1) by breaking a stick.

    K weights have K - 1 parameters: each is how much of what is left of the stick the next name does *not* take,
    as a quantile, so that every parameter is uniform and no two settings of them mean the same weights.
    """

    names: tuple[str, ...]
    points: int | None = None

    def suggest(self, trial: Asked, name: str) -> tuple[float, ...]:
        weights, rest = [], 1.0
        for parameter, left in self._sticks(name):
            kept = rest * trial.suggest_float(parameter, EDGE, 1 - EDGE) ** (1 / left)
            weights.append(rest - kept)
            rest = kept
        return (*weights, rest)

    def _sticks(self, name: str) -> list[tuple[str, int]]:
        """Each parameter with the number of names that come after it."""
        return [(f"{name}[{part}]", len(self.names) - i - 1) for i, part in enumerate(self.names[:-1])]

    def parameters(self, name: str, value: Any) -> dict[str, Any] | None:
        if not all(is_number(weight) and weight > 0 for weight in value) or not math.isclose(sum(value), 1):
            return None
        found, rest = {}, 1.0
        for (parameter, left), weight in zip(self._sticks(name), value, strict=False):
            found[parameter] = ((rest - weight) / rest) ** left
            rest -= weight
        return found if all(EDGE <= quantile <= 1 - EDGE for quantile in found.values()) else None

    def grid(self) -> list[tuple[float, ...]] | None:
        """All weights that are positive multiples of 1 / `points`."""
        if self.points is None:
            return None
        cuts = itertools.combinations(range(1, self.points), len(self.names) - 1)
        return [tuple((b - a) / self.points for a, b in itertools.pairwise((0, *cut, self.points))) for cut in cuts]

    def probes(self) -> list[tuple[float, ...]]:
        """Once for each name most of the weight."""
        low = 0.1 / (len(self.names) - 1)
        return [tuple(0.9 if part == chosen else low for part in self.names) for chosen in self.names]

    def perturb(self, value: Any, rng: np.random.Generator) -> tuple[float, ...]:
        moved = np.asarray(value) * rng.choice(PERTURB, size=len(self.names))
        return tuple((moved / moved.sum()).tolist())


def is_number(value: Any) -> bool:
    """Whether it is a finite number; truth values are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def between(low: float, high: float, share: float, log: bool) -> float:
    """The value at `share` of the way from `low` to `high`."""
    return low * (high / low) ** share if log else low + (high - low) * share


def _spaced(low: float, high: float, points: int, log: bool) -> list[float]:
    values = (np.geomspace if log else np.linspace)(low, high, points).tolist()
    return [low, *values[1:-1], high]
