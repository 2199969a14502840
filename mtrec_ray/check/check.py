"""Looks at a log as training would see it, and says what is too good to be true."""

from dataclasses import dataclass
from typing import Any

from mtrec_ray.check import checks
from mtrec_ray.check.examined import Examined, examine
from mtrec_ray.check.finding import CHECKS, Finding, title
from mtrec_ray.check.reading import MOST_ROWS
from mtrec_ray.config import Run
from mtrec_ray.progress import track
from mtrec_ray.registry import import_plugins
from mtrec_ray.tasks.kinds import check_run


@dataclass(frozen=True)
class Checked:
    """What was found in a log."""

    log: Examined
    findings: list[Finding]
    """Errors first, each kind in the order of the checks"""

    @property
    def failed(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def silent(self) -> dict[str, str]:
        """What the checks that found nothing looked for, by name."""
        loud = {finding.check for finding in self.findings}
        return {name: title(name) for name in order() if name not in loud}

    def as_json(self) -> dict[str, Any]:
        read = self.log.read
        return {
            "name": self.log.run.name,
            "rows_read": read.rows_read,
            "rows_looked_at": {"of users": read.of_users.num_rows, "of items": read.of_items.num_rows},
            "share_of_users": read.user_share,
            "share_of_items": read.item_share,
            "findings": [finding.as_json() for finding in self.findings],
            "silent": list(self.silent),
        }


def check(run: Run, unused: frozenset[str] = frozenset(), most_rows: int = MOST_ROWS) -> Checked:
    """All checks on the log of a run; see `examine` for the arguments and what it raises."""
    import_plugins(run.plugins)
    check_run(run)
    log = examine(run, unused, most_rows)
    found: list[Finding] = []
    with track("Checking", total=len(order()), unit="checks") as bar:
        for name in order():
            bar.note(name)
            found += CHECKS[name](log)
            bar.advance(1)
        bar.note("")  # the last line is of them all
    return Checked(log, sorted(found, key=lambda finding: finding.severity != "error"))


def order() -> list[str]:
    """The checks in the order of their package, then those of plugins."""
    ours = [name for name in checks.ORDER if name in CHECKS]
    return ours + [name for name in CHECKS.names() if name not in ours]
