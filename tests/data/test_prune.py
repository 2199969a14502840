"""`mtrec prepare --prune`: what it says, deletes, and leaves."""

import json
import os
import re
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from mtrec_ray import cli
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.preparing.prune import prune
from mtrec_ray.errors import DataError
from tests.data.test_incremental import DAY, DAYS, START, content, kinds, run_of, watched, write

PRUNED = re.compile(r"(\d+) pieces that no prepared folder refers to were deleted, (\d+) stay")


@pytest.fixture(autouse=True)
def _without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mtrec_ray.launch.session.ray_session", lambda cluster: nullcontext())
    monkeypatch.setattr("mtrec_ray.data.prepare.prepare", partial(prepare, map_tasks=serial_tasks))
    run = run_of(data__period="1d", split__fit_until=START + DAY)
    Path("run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_unset=True)))
    for day in range(DAYS):
        write(f"log/dt={day}/a.csv", 1, day)


def mtrec(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["prepare", "run.yaml", *arguments])


def prepared_by(result: Result) -> Prepared:
    assert result.exit_code == 0, result.output
    return Prepared.load(result.stdout.strip())


def pruned_by(result: Result) -> tuple[int, int]:
    """How many pieces it says that it deleted, and that stay."""
    (said,) = PRUNED.findall(result.stderr)
    return int(said[0]), int(said[1])


def pieces() -> set[tuple[str, str]]:
    """Kind and key of all that is known."""
    return {(file.parent.name, file.stem) for file in Path("prepared/pieces").glob("*/*.piece")} - {
        ("last", file.stem) for file in Path("prepared/pieces/last").iterdir()
    }


def used_by(prepared: Prepared) -> set[tuple[str, str]]:
    used: dict[str, Any] = json.loads(Path(prepared.path, "pieces.json").read_text())
    return {(kind, key) for kind, keys in used.items() for key in keys}


def test_it_says_what_it_deletes_and_leaves_all_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared_by(mtrec())
    write("log/dt=5/b.csv", 7, 5)
    done = mtrec("--prune")
    second, everything = prepared_by(done), pieces()
    expected = content(second)
    assert pruned_by(done) == (0, len(everything))
    assert everything == used_by(first) | used_by(second)
    shutil.rmtree(first.path)
    done = mtrec("--prune")
    assert prepared_by(done).path == second.path
    assert "Prepared data found" in done.stderr
    assert pieces() == used_by(second)
    assert pruned_by(done) == (len(everything - used_by(second)), len(used_by(second)))
    assert pruned_by(done)[0] > 0
    stems = {file.name.partition(".")[0] for file in Path("prepared/pieces").glob("[!l]*/*")}
    assert stems == {key for _, key in used_by(second)}, "with their files"
    assert content(second) == expected
    shutil.rmtree(second.path)
    with watched(monkeypatch) as made:
        assert content(prepared_by(mtrec())) == expected
    assert not kinds(made), "all that it is made of was there"


def test_a_strangers_old_folder_takes_nothing_else_with_it() -> None:
    for name in ("pieces/shards/a.piece", "kept/b", ".tmp-x/c", "kept.tmp-old/d"):
        Path("prepared", name).parent.mkdir(parents=True, exist_ok=True)
        Path("prepared", name).write_text("")
    for path in [*Path("prepared").rglob("*.tmp-*"), *Path("prepared").glob("*.tmp-*/*")]:
        os.utime(path, (1, 1))
    assert prune("prepared") == (1, 0)
    assert sorted(path.name for path in Path("prepared").rglob("*") if path.is_file()) == ["b"]


def test_while_another_may_be_at_work_nothing_is_deleted() -> None:
    first = prepared_by(mtrec())
    shutil.rmtree(first.path)
    Path(f"{first.path}.tmp-0123").mkdir()
    before = pieces()
    write("log/dt=5/b.csv", 7, 5)
    done = mtrec("--prune")
    assert isinstance(done.exception, DataError)
    assert "another `mtrec prepare` may be at work" in str(done.exception)
    assert Path(done.stdout.strip(), "manifest.json").exists(), "what was prepared is told all the same"
    assert before < pieces()
