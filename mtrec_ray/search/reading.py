"""From what is written under `tune.space` to a distribution: one message that says what is wrong, and the remedy."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest
from mtrec_ray.search.distributions import TOLERANCE, Choice, Distribution, Real, Simplex, Steps, Whole, is_number

EXAMPLE = "{loguniform: [1e-4, 1e-2]}, {randint: [2, 16]} or {choice: [4, 8]}"


def read_distribution(where: str, found: Any) -> Distribution:
    """The distribution that is written as `found`; its `when` is taken off before.

    `where` is its dotted path, `tune.space.train.clip_norm`. Raises `ConfigError`.
    """
    if isinstance(found, list):
        return _choice(where, found, None)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: found {found!r}, expected a distribution, as {EXAMPLE}.")
    names = [key for key in found if key != "points"]
    if len(names) != 1:
        raise ConfigError(
            f"{where}: found {', '.join(map(str, names)) or 'none'}, expected one distribution: {EXAMPLE}."
        )
    name = str(names[0])
    if name not in READERS:
        raise ConfigError(f"{where}: unknown distribution '{name}'.{suggest(name, READERS)}")
    return READERS[name](f"{where}.{name}", found[name], _points(where, found))


def _points(where: str, found: Mapping[str, Any]) -> int | None:
    points = found.get("points")
    if points is not None and (not isinstance(points, int) or isinstance(points, bool) or points < 2):
        raise ConfigError(f"{where}.points is {points!r}: expected a whole number of at least 2.")
    return points


def _numbers(where: str, found: Any, form: str) -> Sequence[float]:
    """As many finite numbers as `form` names, the second greater than the first."""
    expected = form.count(",") + 1
    if not isinstance(found, list) or len(found) != expected or not all(is_number(number) for number in found):
        raise ConfigError(f"{where} is {found!r}: expected {expected} numbers, {form}.")
    if found[0] >= found[1]:
        raise ConfigError(f"{where} is {found!r}: an empty range; the first number must be smaller than the second.")
    return found


def _positive(where: str, found: Sequence[float], lowest: str) -> None:
    if found[0] <= 0:
        raise ConfigError(f"{where} is {found!r}: a logarithm needs {lowest}; raise it, or leave `log` away.")


def _uniform(where: str, found: Any, points: int | None) -> Distribution:
    low, high = _numbers(where, found, "[low, high]")
    return Real(float(low), float(high), points=points)


def _loguniform(where: str, found: Any, points: int | None) -> Distribution:
    low, high = _numbers(where, found, "[low, high]")
    _positive(where, found, "a low end above 0")
    return Real(float(low), float(high), log=True, points=points)


def _quniform(where: str, found: Any, points: int | None) -> Distribution:
    low, high, step = _numbers(where, found, "[low, high, step]")
    if not 0 < step <= high - low:
        raise ConfigError(f"{where} is {found!r}: the step must be above 0 and at most {high - low:g}, high minus low.")
    return Steps(float(low), float(step), math.floor((high - low) / step + TOLERANCE), points)


def _randint(where: str, found: Any, points: int | None, log: bool = False) -> Distribution:
    low, high = _numbers(where, found, "[low, high]")
    if low != int(low) or high != int(high):
        raise ConfigError(f"{where} is {found!r}: expected whole numbers; `uniform` takes any.")
    return Whole(int(low), int(high), log, points)


def _lograndint(where: str, found: Any, points: int | None) -> Distribution:
    _positive(where, _numbers(where, found, "[low, high]"), "a low end of at least 1")
    return _randint(where, found, points, log=True)


def _choice(where: str, found: Any, points: int | None) -> Distribution:
    if points is not None:
        raise ConfigError(f"{where}: `points` is for ranges; a choice has as many as are listed. Remove it.")
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where} is {found!r}: expected a list of values, as [4, 8, 16].")
    if len(found) == 1:
        raise ConfigError(f"{where} is {found!r}: one value leaves nothing to search; set it in the config itself.")
    twice = [option for i, option in enumerate(found) if option in found[:i]]
    if twice:
        raise ConfigError(f"{where} has {twice[0]!r} twice; remove one of them.")
    return Choice(tuple(found))


def _simplex(where: str, found: Any, points: int | None) -> Distribution:
    named = isinstance(found, list) and all(isinstance(name, str) for name in found)
    if not named or len(found) < 2 or len(set(found)) < len(found):
        raise ConfigError(f"{where} is {found!r}: expected at least two different names, as [like, rating].")
    if points is not None and points < len(found):
        raise ConfigError(
            f"{where}: {points} points are too few for {len(found)} positive weights; give at least that."
        )
    return Simplex(tuple(found), points)


READERS: dict[str, Callable[[str, Any, int | None], Distribution]] = {
    "uniform": _uniform,
    "loguniform": _loguniform,
    "quniform": _quniform,
    "randint": _randint,
    "lograndint": _lograndint,
    "choice": _choice,
    "simplex": _simplex,
}
