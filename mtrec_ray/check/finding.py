"""What a check gives: a finding with its figures, rows to look at, and a remedy."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mtrec_ray.registry import Registry

if TYPE_CHECKING:
    from mtrec_ray.check.examined import Examined

Severity = Literal["error", "warning"]
MOST_PLACES = 8
"""Rows to look at, of one finding."""


@dataclass(frozen=True)
class Place:
    """One row to look at."""

    file: str
    row: int
    """Counts from 1, as in quarantine files."""
    note: str
    """What stands there."""


@dataclass(frozen=True)
class Finding:
    """Something in the data that makes figures too good, or a model worse in service than they say.

    `error`: no figure of this split should be believed before it is mended. `warning`: it may be meant, or the data may
    be so; look at the rows.
    """

    severity: Severity
    check: str
    what: str
    """One sentence with the figure that it rests on."""
    evidence: Mapping[str, int | float | str]
    rows: tuple[Place, ...]
    remedy: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Check = Callable[["Examined"], Iterable[Finding]]
CHECKS: Registry[Check] = Registry("check")
"""By name; the first line of a check's docstring says what it looks for."""


def title(name: str) -> str:
    """What a check looks for, in one line."""
    return (CHECKS[name].__doc__ or name).strip().splitlines()[0].rstrip(".")
