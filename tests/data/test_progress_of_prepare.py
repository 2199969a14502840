"""Every pass of `prepare` says how far it is and how long it will take."""

import itertools
import re

from mtrec_ray import progress
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from tests.data.by_hand import config

PASSES = {
    "Reading logs": ("files", 2),
    "Counting candidates": ("buckets", 3),
    "Finding the split": ("buckets", 3),
    "Collecting statistics": ("buckets", 3),
    "Following items": ("buckets", 3),
    "Encoding requests": ("buckets", 3),
}


def test_each_pass_tells_the_time_that_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for part in range(2):
        rows = [f"{n % 7},{n % 5},{10**9 + 60 * (2 * n + part)},{n % 2}\n" for n in range(100)]
        (tmp_path / f"logs/{part}.csv").write_text("user,item,time,like\n" + "".join(rows))
    ticks = itertools.count(step=2 * progress.LINE_INTERVAL)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    prepare(
        config(data__logs="logs", data__buckets=3, features__aggregates=["running item"]),
        serial_tasks,
    )
    lines = capsys.readouterr().err.splitlines()
    for name, (unit, total) in PASSES.items():
        for done in range(1, total + 1):
            told = rf"{name}: {done}/{total} {unit} \(\d+%\), [\d.]+/s, (\d+):(\d\d) left"
            matches = [match for line in lines if (match := re.fullmatch(told, line))]
            assert matches, (name, done)
            left = {int(minutes) * 60 + int(seconds) for minutes, seconds in (match.groups() for match in matches)}
            assert left == {0} if done == total else min(left) > 0
