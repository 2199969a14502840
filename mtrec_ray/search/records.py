"""What a search keeps of every trial: `<search folder>/trials/<00007>/{config.yaml, curve.jsonl, result.json}`.

`config.yaml` is the trial's resolved config, `curve.jsonl` a line per evaluation, `result.json` all else. Each file is
replaced as a whole, on a local disk or a URL, so a search that dies leaves every trial readable. `result.json` is
written last of the three when a trial starts; a folder without it never started.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import pyarrow.fs as pafs

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump
from mtrec_ray.data.filesystem import open_fs, write_atomic
from mtrec_ray.errors import DataError, UserError

TRIALS = "trials"
CONFIG, CURVE, RESULT = "config.yaml", "curve.jsonl", "result.json"
Report = dict[str, Any]
"""One evaluation: `evaluation` (from 1), `step`, `epoch`, `seconds`, `accelerator_seconds`, `startup_seconds`
(optional), `metric` (`train.metric`, signed so that higher is better) and `<task>/<metric>`. Seconds are those of the
trial so far, attempts that failed included; None = not defined."""
Status = Literal["finished", "stopped", "failed", "running"]
"""`stopped`: by the scheduler or a budget. `running` in a search that has ended: its end was not seen."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, as far as it has come."""

    number: int
    trial_id: str
    values: dict[str, Any]
    """Dotted config path -> sampled value; only paths that were active."""
    status: Status = "running"
    error: str | None = None
    """First line of what a failed trial died of."""
    reports: tuple[Report, ...] = ()
    """In the order of their evaluations."""
    seconds: float = 0.0
    """Wall time, start-up included."""
    accelerator_seconds: float = 0.0
    """GPU seconds over all workers; CPU seconds where no GPU is asked for."""
    checkpoint: str | None = None
    """The latest one, from which the trial would go on."""

    @property
    def name(self) -> str:
        return folder_name(self.number)

    @property
    def evaluations(self) -> int:
        return int(self.reports[-1]["evaluation"]) if self.reports else 0

    @property
    def startup_seconds(self) -> float | None:
        """Seconds before the first step; None where the runner does not tell."""
        return next(
            (r["startup_seconds"] for r in reversed(self.reports) if r.get("startup_seconds") is not None), None
        )

    def reported(self, report: Mapping[str, Any], checkpoint: str | None = None) -> "TrialRecord":
        """After an evaluation. One that comes again, after a restart, replaces itself and all that came after it."""
        line = {key: _plain(value) for key, value in report.items()}
        before = tuple(known for known in self.reports if known["evaluation"] < line["evaluation"])
        return replace(
            self,
            status="running",
            error=None,
            reports=(*before, line),
            seconds=line["seconds"],
            accelerator_seconds=line["accelerator_seconds"],
            checkpoint=checkpoint or self.checkpoint,
        )

    def ended(self, status: Status, error: str | BaseException | None = None) -> "TrialRecord":
        """With its final status; of an error the first line is kept."""
        return replace(self, status=status, error=first_line(error) if error is not None else None)


def first_line(error: str | BaseException) -> str:
    """First line of a message; of an exception that is not the user's, with its type in front."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, str | UserError):
        return line or "no message"
    return ": ".join(filter(None, [type(error).__name__, line]))


def folder_name(number: int) -> str:
    return f"{number:05d}"


def trial_folder(search: str, number: int) -> str:
    """`<search folder>/trials/00007`."""
    return f"{search.rstrip('/')}/{TRIALS}/{folder_name(number)}"


def start_record(search: str, record: TrialRecord, run: Run) -> None:
    """Writes a new trial: the config it runs with, and its record."""
    _write(trial_folder(search, record.number), {CONFIG: dump(run), **_files(record)})


def write_record(search: str, record: TrialRecord) -> None:
    """Writes a trial as it now stands; the curve first, so that the result never tells of reports that are absent."""
    _write(trial_folder(search, record.number), _files(record))


def read_records(search: str) -> list[TrialRecord]:
    """All trials that started, by number; none where there is no folder of trials.

    Raises:
        DataError: the folder of a trial that cannot be read; it names the file and what is wrong with it.
    """
    filesystem, root = open_fs(f"{search.rstrip('/')}/{TRIALS}")
    selector = pafs.FileSelector(root, allow_not_found=True)
    names = [info.base_name for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.Directory]
    numbers = sorted(int(name) for name in names if name.isdecimal())
    folders = [trial_folder(search, number) for number in numbers]
    return [read_record(folder) for folder in folders if _has(folder, RESULT)]


def read_record(folder: str) -> TrialRecord:
    """The trial of one folder. Raises `DataError`, as `read_records`."""
    if not _has(folder, CONFIG):
        raise _broken(folder, CONFIG, "is missing")
    found = _json(folder, RESULT, _read(folder, RESULT))
    lines = _read(folder, CURVE).splitlines()
    reports = tuple(_json(folder, f"{CURVE}, line {n}", line) for n, line in enumerate(lines, start=1) if line.strip())
    _check(folder, found, reports)
    return TrialRecord(**found, reports=reports)


def _check(folder: str, found: dict[str, Any], reports: Iterable[Report]) -> None:
    expected = TrialRecord.__dataclass_fields__.keys() - {"reports"}
    if found.keys() != expected:
        wrong = ", ".join(sorted(found.keys() ^ expected))
        raise _broken(folder, RESULT, f"should hold {', '.join(sorted(expected))}, and differs in {wrong}")
    if found["status"] not in get_args(Status):
        raise _broken(folder, RESULT, f"has the status {found['status']!r}, not one of {', '.join(get_args(Status))}")
    for n, report in enumerate(reports, start=1):
        if missing := {"evaluation", "seconds", "accelerator_seconds"} - report.keys():
            raise _broken(folder, f"{CURVE}, line {n}", f"lacks {', '.join(sorted(missing))}")


def _files(record: TrialRecord) -> dict[str, str]:
    result = {key: value for key, value in asdict(record).items() if key != "reports"}
    return {
        CURVE: "".join(json.dumps(report, allow_nan=False) + "\n" for report in record.reports),
        RESULT: json.dumps(result, indent=1, allow_nan=False) + "\n",
    }


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's; NaN and infinities, which JSON has not, as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(folder: str, files: Mapping[str, str]) -> None:
    filesystem, root = open_fs(folder)
    for name, text in files.items():
        write_atomic(filesystem, f"{root}/{name}", text.encode())


def _has(folder: str, name: str) -> bool:
    filesystem, root = open_fs(folder)
    return bool(filesystem.get_file_info(f"{root}/{name}").type == pafs.FileType.File)


def _read(folder: str, name: str) -> str:
    filesystem, root = open_fs(folder)
    try:
        with filesystem.open_input_stream(f"{root}/{name}") as file:
            text: str = file.read().decode("utf-8")
    except FileNotFoundError:
        raise _broken(folder, name, "is missing") from None
    except UnicodeDecodeError as error:
        raise _broken(folder, name, f"is not UTF-8 text ({error.reason} at byte {error.start})") from None
    return text


def _json(folder: str, name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken(folder, name, f"is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise _broken(folder, name, f"holds a {type(found).__name__}, not a mapping")
    return found


def _broken(folder: str, name: str, what: str) -> DataError:
    return DataError(
        f"The trial in {folder} is broken: {name} {what}. Delete that folder, and the search goes on without the trial "
        "(`mtrec tune --resume`); or start the search anew (--overwrite)."
    )
