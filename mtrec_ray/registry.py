"""Named parts that users may add to: one dictionary each, one door for built-ins and guests."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from mtrec_ray.errors import ConfigError

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest known name, if any is near, and all known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


class Registry(Generic[T]):
    """A dictionary of named parts with a decorator to fill it.

    Raises:
        ConfigError: a name registered twice, or an unknown name looked up.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        if name in self._parts:
            raise ConfigError(f"{self.what} '{name}' is registered twice; rename one of them.")

        def add(part: T) -> T:
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._parts:
            raise ConfigError(f"Unknown {self.what} '{name}'.{suggest(name, self.names())}")
        return self._parts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def names(self) -> list[str]:
        return sorted(self._parts)


def import_plugins(modules: Iterable[str]) -> None:
    """Import the user's modules, so that what they register is known; on the driver and on every worker.

    Raises:
        ConfigError: a module that cannot be found.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"plugins: cannot import '{module}' ({error}); it must be importable on the driver and on every "
                "worker (for `ray job submit`, inside the working directory)."
            ) from error
