"""Rows that cannot be used are set aside, with file, row and reason."""

import json
from pathlib import Path

from tests.data.log_files import HEADER, ROWS, csv_text, make_run, read, read_csv, reasons


def test_bad_cells_go_to_quarantine_with_row_and_reason(tmp_path: Path) -> None:
    header = "user,item,time,shown,click,rating,liked_at,price,tab,note\n"
    good = "1,2,1600000000,r,1,5,,1,a,b\n"
    bad = [
        (",2,1600000000,r,1,5,,1,a,b", "no user (column 'user')"),
        ("1,,1600000000,r,1,5,,1,a,b", "no item (column 'item')"),
        ("1,2,,r,1,5,,1,a,b", "no time (column 'time')"),
        ("1,2,noon,r,1,5,,1,a,b", "column 'time' is not a time in data.time_unit 's'"),
        ("1,2,0,r,1,5,,1,a,b", "column 'time' is a time before 1971 or after 2099"),
        ("1,2,1600000000,r,yes,5,,1,a,b", "column 'click' is not a number"),
        ("1,2,1600000000,r,2,5,,1,a,b", "tasks.click.label: a label of kind 'binary' must be 0 or 1; write"),
        ("1,2,1600000000,r,1,inf,,1,a,b", "tasks.rating.label: a label must be finite"),
        ("1,2,1600000000,r,1,5,late,1,a,b", "tasks.like.feedback_time: column 'liked_at' is not a time in"),
        ("1,2,1600000000,r,1,5,-1,1,a,b", "tasks.like.feedback_time: column 'liked_at' is before 1971"),
        ("1,2,1600000000,r,1,5,,cheap,a,b", "column 'price' is not a number"),
        ("1,2,1600000000,r,1,5", "6 cells instead of 10"),
        ("1,2,1600000000,r,1,5,,1,a,b,c", "11 cells instead of 10"),
    ]
    events = read_csv(tmp_path, header + good * 20 + "".join(line + "\n" + good for line, _ in bad))
    found = reasons(events)
    assert [row for row, _ in found] == [21 + 2 * i for i in range(len(bad))]
    for (_, reason), (line, expected) in zip(found, bad, strict=True):
        assert reason.startswith(expected), line
    kept = events.table.column("row_id").to_pylist()
    assert kept == [*range(1, 21), *(22 + 2 * i for i in range(len(bad)))]
    assert events.rows_read == 20 + 2 * len(bad)
    entry = events.quarantine.slice(0, 1).to_pylist()[0]
    assert entry["file"] == str(tmp_path / "log.csv")
    assert "1600000000" in entry["content"]


def test_rows_that_are_not_utf8_go_to_quarantine(tmp_path: Path) -> None:
    lines = csv_text(ROWS[:2]).encode().splitlines(keepends=True)
    latin = "5,6,1600000000,r,1,5,,1,caf\xe9,x\n".encode("latin-1")
    short = "5,caf\xe9\n".encode("latin-1")
    events = read_csv(tmp_path, b"".join([lines[0], lines[1], latin, short, lines[2]]))
    assert reasons(events) == [(2, "not UTF-8"), (3, "2 cells instead of 10")]
    assert events.table.column("row_id").to_pylist() == [1, 4]
    assert "caf\\\\xe9" in events.quarantine.column("content").to_pylist()[1]


def test_a_file_without_any_utf8_is_all_quarantine(tmp_path: Path) -> None:
    text = "user,item,time,shown,click,rating,liked_at,price,tab,note\n" + "1,2,1600000000,r\xe9,1,5,,1,a,b\n" * 3
    events = read_csv(tmp_path, text.encode("latin-1"))
    assert (events.table.num_rows, events.quarantine.num_rows, events.rows_read) == (0, 3, 3)


def test_an_unbalanced_quote_counts_every_line_it_swallows(tmp_path: Path) -> None:
    good = "1,2,1600000000,r,1,5,,1,a,b\n"
    events = read_csv(tmp_path, ",".join(HEADER) + "\n" + good + '1,"2,1600000000,r,1,5,,1,a,b\n' + good * 9)
    assert events.table.num_rows == 1
    assert events.quarantine.num_rows == 10
    assert "unbalanced quote" in events.quarantine.column("reason")[0].as_py()


def test_bad_json_lines_go_to_quarantine_with_their_line(tmp_path: Path) -> None:
    good = json.dumps(dict(zip(HEADER, ROWS[0], strict=True))).encode()
    lines = [good, b"{broken", b"", b"[1, 2]", good.replace(b"home", b"\xff"), good]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    events = read(make_run(path))
    assert reasons(events) == [(2, "not JSON"), (4, "not a JSON object"), (5, "not UTF-8")]
    assert events.table.column("row_id").to_pylist() == [1, 6]
