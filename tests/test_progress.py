import io

import pytest

from mtrec_ray import progress
from mtrec_ray.progress import PlainLines, clock, count, standing, summary, track, verbose


def test_standing_tells_count_share_rate_and_time_left():
    assert standing("prepare", 120, 400, 5.0, "users", "") == "prepare: 120/400 users (30%), 24/s, 0:12 left"
    assert standing("train", 3, 6, 60.0, "steps", "loss 0.31").endswith("0.05/s, 1:00 left, loss 0.31")


def test_standing_without_a_total_tells_the_elapsed_time():
    assert standing("read", 2_000, None, 10.0, "rows", "") == "read: 2,000 rows, 200/s, 0:10"
    assert standing("read", 0, 50, 10.0, "rows", "") == "read: 0/50 rows (0%), 0:10"


def test_summary():
    assert summary("prepare", 400, 16.7, "users", "") == "prepare: 400 users in 0:17 (24/s)"
    assert summary("probe", 0, 3.2, "", "packed") == "probe: done in 0:03, packed"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (750, "12:30"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_count_groups_thousands_and_keeps_small_fractions():
    assert count(12_345, 20_000, "rows") == "12,345/20,000 rows"
    assert count(1.5, None, "") == "1.5"


def test_plain_lines_keep_their_distance(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with PlainLines("work", 100, "things", stream, interval=5.0) as bar:
        for _ in range(100):
            now[0] += 0.12
            bar.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # at 5 s, at 10 s, and the last one
    assert lines[0] == "work: 42/100 things (42%), 8.3/s, 0:07 left"
    assert lines[-1] == "work: 100 things in 0:12 (8.3/s)"


def test_a_step_that_fails_leaves_the_last_word_to_the_error(capsys):
    with pytest.raises(ValueError, match="broken"), track("work", 3):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_progress_goes_to_stderr_alone(capsys):
    with track("work", 2, "things") as bar:
        bar.advance(2)
        bar.note("all good")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 things" in captured.err
    assert captured.err.rstrip().endswith("all good")


def test_a_terminal_gets_a_bar_and_keeps_the_last_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with track("work", 4, "things") as bar:
        bar.advance(3)
        bar.note("loss [/0.3]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "work: 3 things in 0:00" in captured.err
    assert captured.err.rstrip().endswith("loss [/0.3]")


@pytest.mark.parametrize(("value", "asked"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_verbose_is_asked_by_environment(monkeypatch, value, asked):
    if value is None:
        monkeypatch.delenv("MTREC_VERBOSE", raising=False)
    else:
        monkeypatch.setenv("MTREC_VERBOSE", value)
    assert verbose() is asked
