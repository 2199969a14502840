"""What the entries of weights stand for: a task, an id, a number. By that, and not by their place, they go from one run
to another (`train.carrying`), whose data may have other ids, features and tasks in another order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Rows:
    """The entries along an axis are rows of a vocabulary, which the prepared data has and the model has not."""

    of: str
    """The name of a `RowTable` of ids or of a category; or `domain`, of which the unknown one has no entry."""


Axis = Sequence[str] | Rows | None
"""Names of the entries along an axis, each once; None: an entry is what it is by its place."""


@runtime_checkable
class Named(Protocol):
    """A module of which some weights have axes with names. All others are by place."""

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        """Dotted name below the module -> axes: of a weight its first ones; of a list of modules one, of its members.

        Names of weights or lists that are not there do no harm.
        """
        ...


def numbered(name: str, count: int) -> list[str]:
    """`name 0`, `name 1`, ...: of several columns that belong together."""
    return [f"{name} {i}" for i in range(count)]


def of_feedback(tasks: Sequence[str]) -> list[str]:
    """Columns with the feedback of each task, and those that say whether it is known."""
    return [*(f"feedback of {name}" for name in tasks), *(f"known feedback of {name}" for name in tasks)]
