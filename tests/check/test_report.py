import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mtrec_ray import cli
from mtrec_ray.config_file import dump
from mtrec_ray.errors import ConfigError
from tests.check.planted import Log, likes_before, user_total
from tests.evaluate.outline import outline_of


def run_check(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["check", *map(str, arguments)])


def test_a_clean_log_ends_well(clean_folder: Path, tmp_path: Path) -> None:
    page, found = tmp_path / "page.html", tmp_path / "found.json"
    done = run_check(clean_folder / "config.yaml", "--report", page, "--json", found)
    assert done.exit_code == 0, done.output
    assert "Nothing found. All " in done.stdout
    assert done.stdout.splitlines()[-1] == str(page)
    (last,) = (line for line in done.stderr.splitlines() if line.startswith("Checking: 14 checks in"))
    assert last.endswith("/s)"), "it is of no single check"
    content = json.loads(found.read_text())
    assert content["findings"] == []
    assert len(content["silent"]) == 14
    profile = content["profile"]
    assert profile["counts"]["candidates"] == profile["counts"]["rows"] == content["rows_read"]
    assert (
        sum(profile["counts"][f"candidates in {split}"] for split in ("train", "valid", "test")) == content["rows_read"]
    )
    assert {column["name"] for column in profile["columns"]} == {"position", "price", "topic"}
    assert profile["shares"]["rows that repeat another"] == 0
    text = page.read_text()
    outline = outline_of(text)
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith("#") for link in outline.links)
    assert outline.counts["svg"] == 4 + 4 + 1, "a rate for each task, users, items, two lengths, delay of like"
    assert "None of the checks found anything" in text
    assert "is to be mended" not in text


def test_errors_are_told_with_rows_and_exit_code_1(clean: Log, tmp_path: Path) -> None:
    likes_before(clean, np.random.default_rng(0))
    run, _ = clean.write(tmp_path)
    (tmp_path / "run.yaml").write_text(dump(run))
    page, found = tmp_path / "page.html", tmp_path / "found.json"
    done = run_check(tmp_path / "run.yaml", "--report", page, "--json", found)
    assert done.exit_code == 1
    assert done.stdout.startswith("error: feedback_times: 'like':")
    assert "look at row" in done.stdout
    assert "1 error. All" in done.stdout
    finding = json.loads(found.read_text())["findings"][0]
    assert finding["severity"] == "error"
    assert finding["rows"][0]["file"].endswith(".parquet")
    text = page.read_text()
    assert "are dated before the row" in text
    assert "is to be mended" in text
    assert text.index("are dated before the row") < text.index("Profile of the data")


def test_logs_without_a_config_are_looked_at_with_all_their_columns(
    clean: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_total(clean, np.random.default_rng(0))
    clean.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = run_check("logs")
    assert done.exit_code == 0, "the proposed config does not use the column"
    assert "warning: counted_forward: Column 'user_rows' of the log" in done.stdout
    assert "(the config does not use it)" in done.stdout
    page = Path(done.stdout.splitlines()[-1])
    assert page.name.endswith("-check.html")
    assert "looked at as if they were features: user_rows" in page.read_text()
    with pytest.raises(ConfigError, match="Give one config"):
        raise run_check("a.yaml", "--items", "items.csv").exception
