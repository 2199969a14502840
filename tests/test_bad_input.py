"""What a user can get wrong, through the command line: one message with the place, what was found and the remedy.

Elsewhere: an unknown key (`test_cli.py`, every wrong value in `test_config_file.py`), a run that exists or was changed
(`launch/test_runs.py`), a cluster that does not answer or is too small (`launch/test_session.py`), a folder that is no
model (`model/test_backbone.py`), every kind of bad row (`data/test_log_quarantine.py`), an expression that cannot be
read (`data/test_expressions.py`), wrong split boundaries (`data/test_splits.py`).
"""

import os
import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mtrec_ray import cli
from mtrec_ray.data import prepare as prepare_module
from mtrec_ray.data.filesystem import path_in
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.launch import session

CONFIG = """name: tiny
data:
  logs: log.csv
  columns: {user: user, item: item, time: time}
  items: {path: items.csv, key: item, text: "{title}"}
  buckets: 2
tasks:
  like: {label: like, feedback_delay: 10s}
backbone: none
features: {min_count: 1}
"""
HEADER = "user,item,time,like\n"
START = 10**9
NANO = "backbone={name: nano, vocab_size: 300}"


def rows(users=5, each=8) -> str:
    return "".join(
        f"u{u},i{(u + e) % 6},{START + 1000 * e + u},{(u * e) % 2}\n" for u in range(users) for e in range(each)
    )


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    """A folder with a log, items and a config that work; tasks run one after the other, without Ray."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text(HEADER + rows())
    (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"i{i},title number {i}\n" for i in range(6)))
    (tmp_path / "run.yaml").write_text(CONFIG)
    monkeypatch.setattr(prepare_module, "prepare", partial(prepare_module.prepare, map_tasks=serial_tasks))
    monkeypatch.setattr(session, "ray_session", lambda cluster: nullcontext())


@pytest.fixture
def mtrec(monkeypatch, capsys):
    """Runs a command and gives its exit code, what it printed, and what it said."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mtrec", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def prepared(mtrec):
    """`mtrec prepare` that works: the folder and what was said."""

    def run(*overrides: str) -> tuple[str, str]:
        code, out, err = mtrec("prepare", "run.yaml", *(part for each in overrides for part in ("--set", each)))
        assert code == 0, err
        return out.strip(), err

    return run


@pytest.fixture
def refused(mtrec):
    """`mtrec prepare` that fails as a mistake of the user should: its message."""

    def run(*overrides: str) -> str:
        code, out, err = mtrec("prepare", "run.yaml", *(part for each in overrides for part in ("--set", each)))
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert err.count("Error: ") == 1
        return " ".join(err.partition("Error: ")[2].split())

    return run


def requests(folder: str) -> list[dict[str, Any]]:
    paths = [path_in(folder, shard.path) for shards in load_manifest(folder).shards.values() for shard in shards]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def write(text: str | bytes, name: str = "log.csv") -> None:
    with open(name, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def test_the_files_of_these_tests_work(prepared):
    folder, said = prepared()
    assert folder.startswith("prepared/")
    assert "Prepared 40 candidates" in said


@pytest.mark.parametrize(("key", "path"), [("data.logs", "logs/*.csv"), ("data.items.path", "absent.csv")])
def test_a_missing_file_is_named_with_its_key(refused, key, path):
    assert refused(f"{key}={path}").startswith(f"{key}: no file '{path}'. Looked for a file, a folder or a glob")


def test_a_missing_config_says_what_writes_one(mtrec):
    code, out, err = mtrec("prepare", "absent.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("Error: Cannot read the config 'absent.yaml': No such file")
    assert "`mtrec init LOGS` writes one" in err


@pytest.mark.parametrize(
    ("key", "value", "file", "known"),
    [
        ("data.columns.item", "itm", "log.csv", "Did you mean 'item'? Known: item, like, time, user."),
        ("tasks.like.label", "liked", "log.csv", "Did you mean 'like'? Known: item, like, time, user."),
        ("data.items.text", "'{titel}'", "items.csv", "Did you mean 'title'? Known: item, title."),
        ("data.items.key", "id", "items.csv", "Known: item, title."),
    ],
)
def test_an_unknown_column_is_refused_with_the_nearest(refused, key, value, file, known):
    message = refused(f"{key}={value}")
    assert message.startswith(f"{key}: no column '{value.strip(chr(39)).strip('{}')}' in '")
    assert f"/{file}'. {known}" in message


@pytest.mark.parametrize(
    ("role", "remedy"),
    [
        ("user", "add one when writing the log (a session or device id will do)"),
        ("time", "because a history may only hold what came before"),
    ],
)
def test_a_log_without_user_or_time_is_told_what_to_add(refused, mtrec, role, remedy):
    names = [name for name in ("user", "item", "time", "like") if name != role]
    write(",".join(names) + "\n" + "a1,b2,1\n" * 9)
    message = refused()
    assert message.startswith(f"data.columns.{role}: no column '{role}' in '")
    assert f"Known: {', '.join(sorted(names))}." in message
    assert remedy in message
    code, out, err = mtrec("init", "log.csv")
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: No column looks like the {role} in '")
    assert f"(columns: {', '.join(names)})" in err


@pytest.mark.parametrize(
    ("content", "found"), [(HEADER, "the log is empty: no row in 1 file"), ("", "log.csv' is empty")]
)
def test_an_empty_log(refused, content, found):
    write(content)
    assert found in refused()


def test_a_task_whose_labels_are_all_missing(refused):
    write(HEADER + "".join(line.rpartition(",")[0] + ",\n" for line in rows().splitlines()))
    message = refused()
    assert message.startswith(
        "tasks.like: all labels of the train split are missing (label: like). Correct the expression"
    )


def test_bytes_that_are_not_utf8_are_counted_and_their_row_shown(refused, prepared):
    write((HEADER + rows()).encode() + "ué,i1,1000009000,1\n".encode("latin-1"))
    message = refused()
    assert message.startswith("data.logs: 1 of 41 rows (2.4%) cannot be used, more than data.max_bad_share 1.0%.")
    assert "row 41 of log.csv: not UTF-8" in message
    assert "raise data.max_bad_share" in message
    _, said = prepared("data.max_bad_share=0.05")
    assert "1 bad rows are in prepared/" in said


def test_a_shard_that_is_not_parquet(refused):
    os.mkdir("logs")
    write(HEADER + rows(), "logs/part-1.parquet")
    message = refused("data.logs=logs")
    assert "/logs/part-1.parquet' (" in message
    assert "is not a complete Parquet file" in message
    assert (
        "Remedy: write it again, take it out of the config's paths, or, for a log of another kind, set data" in message
    )


def test_a_name_on_the_hub_without_a_network(refused):
    message = refused("backbone.name=someone/model")
    assert message.startswith(
        "backbone.name: 'someone/model' is neither a folder nor could it be fetched from the Hugging"
    )
    assert (
        "run `hf download someone/model --local-dir DIR` on a machine that has one and set backbone.name: DIR"
        in message
    )


def test_one_candidate_can_be_prepared_but_not_split_by_time(refused, prepared):
    write(HEADER + "u1,i1,1000000000,1\n")
    message = refused()
    assert message.startswith(
        "1 candidate(s) are too few for a split by time into 80% train, 10% validation and 10% test"
    )
    assert "give a longer log" in message
    _, said = prepared("split.by=user")
    assert "1 users have fewer than 3 candidates: all in train" in said
    assert "No candidate is in valid" in said


def test_users_without_history_are_prepared(prepared):
    write(HEADER + "".join(f"u{u},i{u % 6},{START + u},{u % 2}\n" for u in range(30)))
    folder, _ = prepared(NANO)
    found = requests(folder)
    assert len(found) == 30
    assert all(row["history_ids"] == [] and row["candidate_events"] == [0] for row in found)
    assert all(row["candidate_ids"] for row in found)


def test_texts_longer_than_the_window_are_cut_counted_and_shown(prepared):
    write("item,title\n" + "".join(f"i{i},{'word ' * 50}\n" for i in range(6)), "items.csv")
    folder, said = prepared(NANO, "history.event_tokens=7", "history.candidate_tokens=5")
    events = sum(len(row["history_ends"]) for row in requests(folder))
    assert events > 40
    assert f"{events} events in histories and 40 candidates have texts longer than history.event_tokens or" in said
    for row in requests(folder):
        assert np.diff(row["candidate_ends"], prepend=0).tolist() == [5] * len(row["item"])
        assert max(np.diff(row["history_ends"], prepend=0), default=0) <= 7
