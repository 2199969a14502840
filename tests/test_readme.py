"""What the README and the headers of the configs tell to type is something that can be typed."""

import re
import shlex
import subprocess
import sys

import pytest
import typer.main
import yaml

from mtrec_ray.cli import app
from mtrec_ray.config_file import parse
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
COMMAND_LINE = typer.main.get_command(app)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the README's shell blocks, help texts and config headers."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(make [a-z-]+|mtrec [^`]+|RAY_ADDRESS=[^`]+)`", README)
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        lines += re.findall(r"^# Command:\s+(.+)", path.read_text(), re.MULTILINE)
    return [line for line in lines if line.strip()]


def words_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words[: words.index(">")] if ">" in words else words


def check_verb(words: list[str]) -> None:
    """The verb exists and takes these options; nothing is run."""
    if words == ["VERB", "--help"]:
        return
    verb = COMMAND_LINE.commands[words[0]]
    verb.make_context(words[0], words[1:])


@pytest.mark.parametrize("line", commands())
def test_a_command_can_be_typed(line):
    words = words_of(line.split(" (or:")[0])
    if words[0] == "make":
        for target in words[1:]:
            done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    elif words[0] == "mtrec":
        check_verb(words[1:])
    elif words[:3] == ["ray", "job", "submit"]:
        python, script, *arguments = words[words.index("--") + 1 :]
        assert python == "python"
        assert (ROOT / script).is_file()
        assert (ROOT / arguments[0]).is_file()
        check_verb([script.removeprefix("jobs/").removesuffix(".py"), *arguments])
    else:
        assert line == "source .venv/bin/activate"


def test_a_command_that_cannot_be_typed_is_noticed():
    with pytest.raises(Exception, match="No such option: --no-such-option"):
        check_verb(["train", "run.yaml", "--no-such-option"])
    with pytest.raises(KeyError):
        check_verb(["explode"])


def test_the_smallest_config_works_and_is_small():
    (text,) = blocks("yaml")
    assert len(text.splitlines()) <= 25
    assert list(parse(text).tasks) == ["click", "like", "dwell"]


def test_the_readme_begins_with_the_two_commands():
    assert [line.split("#")[0].strip() for line in blocks("bash")[0].splitlines()] == ["make quickstart", "make test"]


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci/run").read_text()
    assert script.splitlines()[:2] == ["#!/usr/bin/env bash", "set -euo pipefail"]
    assert script.splitlines()[-1] == "make test"
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_first_lines_of_the_readme_lead_to_a_config_that_runs(tmp_path):
    """`sample`, then `init` on what it wrote: the printed config is accepted."""
    mtrec = [sys.executable, "-m", "mtrec_ray"]
    sizes = ["--users", "30", "--items", "20", "--days", "4", "--shards", "2"]
    subprocess.run([*mtrec, "sample", "my_logs", *sizes], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([*mtrec, "init", "my_logs/logs"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) <= 25
    assert {"click", "like", "purchase"} <= set(parse(done.stdout).tasks)
    assert "Assumed: " in done.stderr
    assert yaml.safe_load((tmp_path / "my_logs/config.yaml").read_text())["name"] == "sample"
