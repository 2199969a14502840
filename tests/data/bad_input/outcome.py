"""Runs a verb on a damaged setup and says what came of it; asserts that it is one of the things that may come of it."""

import contextlib
import io
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec_ray import cli
from mtrec_ray.config_file import parse
from mtrec_ray.data import prepare as prepare_module
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.launch import session
from tests.data.bad_input.setup import Setup

_PLACES = re.compile(r"[a-z_]+\.[a-z_]+|/|\btasks\b|--set|plugins|split")
"""A dotted config path, a path, or a key: what a message must name one of."""
_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    kind: str
    """`done`, `refused`, or of `check`: `found`"""
    message: str
    """Of a refusal"""
    out: str


def outcome(setup: Setup, verb: str) -> Outcome:
    """What the command line makes of a setup, whose files are written here, into the current folder."""
    config = setup.write()
    before = _files(setup.folder)
    logs, tables = setup.folder / "logs", setup.tables
    arguments = {
        "prepare": ["prepare", str(config)],
        "check": ["check", str(config), "--report", "check.html"],
        "init": ["init", str(logs), "--items", tables["items"].path, "--users", tables["users"].path],
        "init alone": ["init", str(logs)],
        "check logs": ["check", str(logs), "--report", "check.html"],
    }[verb]
    with pytest.MonkeyPatch.context() as patch, _deadline():
        patch.setattr(prepare_module, "prepare", partial(prepare_module.prepare, map_tasks=serial_tasks))
        patch.setattr(session, "ray_session", lambda cluster: contextlib.nullcontext())
        for damage in setup.during:
            damage(patch)
        code, out, err = run(arguments, patch)
    new = _files(setup.folder) - before
    left = [name for name in new if ".tmp" in name]
    assert not left, f"half-written files are left: {left}"
    if code == 2:
        assert out == "", f"a refusal writes nothing to stdout: {out}"
        _check_refusal(err, new)
        return Outcome("refused", " ".join(err.partition("Error: ")[2].split()), out)
    if verb == "prepare":
        assert code == 0, f"exit code {code}"
        _check_prepared(setup, out.rstrip("\n"))
    elif verb.startswith("init"):
        assert code == 0, f"exit code {code}"
        parse(out)
    else:
        assert code in (0, 1), f"exit code {code}"
        assert "check.html" in new
    return Outcome("found" if code else "done", "", out)


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Fails what is still at it after this time: nothing of this size may take so long on any machine."""

    def fail(signal: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at it after {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(arguments: list[str], patch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `mtrec` with these arguments, in this process and folder."""
    patch.setattr(sys, "argv", ["mtrec", *arguments])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("the command line ends by an exit code")


def _files(folder: Path) -> set[str]:
    """Everything below; links are not followed."""
    found, waiting = set(), [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            found.add(str(path.relative_to(folder)))
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)
    return found


def _check_refusal(err: str, new: set[str]) -> None:
    assert "Traceback" not in err
    assert err.count("Error: ") == 1, err
    message = err.partition("Error: ")[2].strip()
    assert _PLACES.search(message), f"no file, row or config path: {message}"
    assert message[-1] in ".!?)'\"" or message.count(". ") or ": " in message, message
    made = [name for name in new if name.endswith("manifest.json") or name.endswith(".html")]
    assert not made, f"a refusal left {made}"
    # Bad rows are kept, and the pieces that are whole, from which the next preparation goes on.
    kept = re.compile(r"[^/]+|.*\.quarantine\.parquet|[^/]+/pieces(/.*)?")
    left = [name for name in new if not kept.fullmatch(name)]
    assert not left, f"a refusal left {left}"


def _check_prepared(setup: Setup, path: str) -> None:
    manifest = load_manifest(path)
    counts = manifest.counts
    _check_quarantine(setup, path, counts)
    for split in SPLITS:
        for shard in manifest.shards[split]:
            table = pq.read_table(f"{path}/{shard.path}")
            assert table.num_rows == shard.requests
            for name in ("labels", "numbers", "context"):
                values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                assert not np.isinf(values).any(), f"infinite {name}"
    for number in manifest.numbers:
        assert np.isfinite([number.mean, number.std, *number.quantiles]).all(), number
    for task in manifest.tasks:
        assert np.isfinite([task.mean, task.std]).all(), task


def _check_quarantine(setup: Setup, path: str, counts: dict[str, int]) -> None:
    """Each bad row is there, once, with file and row and reason; the counts add up."""
    quarantine = pq.read_table(f"{path}/quarantine.parquet").to_pylist()
    assert len(quarantine) == counts["rows_quarantined"]
    assert all(row["row"] >= 1 and row["reason"] for row in quarantine)
    assert all((setup.folder / row["file"]).exists() or setup.during for row in quarantine)
    tables = {str(setup.path(source)) for source in setup.tables.values()}
    of_log = sum(row["file"] not in tables for row in quarantine)
    if setup.lost:
        return
    given = sum(len(source.rows) for source in [*setup.log, *setup.feedback])
    assert counts["rows_read"] == given, (counts["rows_read"], given)
    repeated = Counter((row["file"], row["row"]) for row in quarantine if row["file"] not in tables)
    assert not repeated or max(repeated.values()) == 1, repeated
    if setup.config["data"].get("layout") == "behaviours":
        return
    left_out = counts.get("repeats", 0) + counts.get("rows_of_long_users_left_out", 0)
    accounted = counts["candidates"] + of_log + left_out + counts.get("feedback", 0)
    unasked = given - accounted  # feedback of types that no task asks for
    assert unasked >= 0
    assert unasked == 0 or setup.feedback, (given, counts, of_log)
