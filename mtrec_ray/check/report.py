"""The report of `mtrec check`: an HTML page for people, JSON for programs, a few lines for the terminal."""

import json
from datetime import UTC, datetime

from mtrec_ray.check.check import Checked
from mtrec_ray.check.drawings import drawings
from mtrec_ray.check.profile import Profile, profile
from mtrec_ray.config_file import dump
from mtrec_ray.data.filesystem import open_fs, write_atomic
from mtrec_ray.evaluate import page
from mtrec_ray.evaluate.page import Pen, counted


def write_report(checked: Checked, path: str, json_path: str | None = None, assumed: list[str] | None = None) -> None:
    """Writes the page, and with `json_path` what it rests on. `assumed`: what was assumed of a log without a config."""
    found = profile(checked.log)
    if json_path is not None:
        content = checked.as_json() | {"profile": found.as_json()}
        _write(json_path, json.dumps(content, indent=1, allow_nan=False))
    _write(path, render(checked, found, assumed or []))


def render(checked: Checked, found: Profile, assumed: list[str]) -> str:
    """The page."""
    return page.template("check.html.j2", "mtrec_ray.check").render(
        name=checked.log.run.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict(checked),
        looked_at=looked_at(checked),
        findings=checked.findings,
        silent=checked.silent,
        assumed=assumed,
        profile=found,
        figures=drawings(found, Pen()),
        config=dump(checked.log.run),
    )


def verdict(checked: Checked) -> str:
    """`2 errors, 1 warning`."""
    errors = sum(finding.severity == "error" for finding in checked.findings)
    warnings = len(checked.findings) - errors
    if not checked.findings:
        return "Nothing found"
    return ", ".join(
        counted(number, one, f"{one}s") for number, one in ((errors, "error"), (warnings, "warning")) if number
    )


def looked_at(checked: Checked) -> str:
    """How much of the log the findings rest on."""
    read = checked.log.read
    if read.whole:
        return f"All {read.rows_read:,} rows of {counted(len(read.files), 'file', 'files')} were looked at."
    return (
        f"Of {read.rows_read:,} rows in {counted(len(read.files), 'file', 'files')} those of {read.user_share:.2%} of "
        f"the users ({read.of_users.num_rows:,} rows) and of {read.item_share:.2%} of the items "
        f"({read.of_items.num_rows:,} rows) were looked at, chosen by a hash of their ids; --rows looks at more."
    )


def lines(checked: Checked) -> list[str]:
    """Each finding with its first row and remedy, then the verdict."""
    said = []
    for finding in checked.findings:
        said.append(f"{finding.severity}: {finding.check}: {finding.what}")
        if finding.rows:
            place = finding.rows[0]
            said.append(f"    look at row {place.row:,} of {place.file}: {place.note}")
        said.append(f"    {finding.remedy}")
    return [*said, f"{verdict(checked)}. {looked_at(checked)}"]


def _write(path: str, text: str) -> None:
    fs, inside = open_fs(path)
    write_atomic(fs, inside, text.encode())
