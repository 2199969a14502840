import os
import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from mtrec_ray import cli
from tests.conftest import ROOT

VERBS = ["sample", "init", "check", "prepare", "pretrain", "train", "tune", "compare", "evaluate"]


def mtrec(*arguments, command=("-m", "mtrec_ray"), **options):
    """The finished process of one command."""
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: tiny\ndata:\n  logs: {tmp_path}/absent.csv\n  columns: {{user: u, item: i, time: t}}\n"
        "tasks:\n  click: {label: click}\n"
    )
    return path


def test_help_is_quick_and_names_every_verb():
    started = time.monotonic()
    done = mtrec("--help")
    assert time.monotonic() - started < 3  # about 0.3 s alone; the machine may be busy
    assert done.returncode == 0
    for verb in [*VERBS, "quickstart", "explain"]:
        assert re.search(rf"│ {verb} ", done.stdout), verb


@pytest.mark.parametrize("verb", [*VERBS, "explain"])
def test_a_verbs_help_teaches_by_example(verb):
    done = mtrec(verb, "--help")
    assert done.returncode == 0
    assert f"mtrec {verb}" in done.stdout.split("Example")[1]


def test_help_breaks_paragraphs_where_the_terminal_ends_and_keeps_brackets():
    said = mtrec("compare", "--help", env=os.environ | {"COLUMNS": "70"}).stdout
    assert "\b" not in said
    prose = said.partition("Examples")[0].splitlines()
    lines = [line.strip() for line in prose[prose.index(next(line for line in prose if "`compare` in" in line)) :]]
    short = [line for line, below in pairwise(lines) if line and below and len(line) + len(below.split()[0]) < 66]
    assert short == [], "lines that end before the edge"
    assert "'compare.methods=[sum, uncertainty, cagrad]'" in " ".join(said.split())


@pytest.mark.parametrize("verb", VERBS)
def test_a_job_is_the_verb(verb):
    done = mtrec("--help", command=[ROOT / "jobs" / f"{verb}.py"])
    assert done.returncode == 0
    assert done.stdout.split("Options")[1] == mtrec(verb, "--help").stdout.split("Options")[1]


def test_neither_help_nor_a_wrong_config_starts_ray_or_torch(config):
    code = (
        "import sys; from mtrec_ray import cli; sys.argv[1:] = {}\n"
        "try: cli.main()\n"
        "except SystemExit as end: print(end.code, sorted({{'ray', 'torch', 'mtrec_ray.config'}} & set(sys.modules)))"
    )
    done = mtrec(command=("-c", code.format(["train", "--help"])))
    assert done.stdout.splitlines()[-1] == "0 []"
    done = mtrec(command=("-c", code.format(["train", str(config), "--set", "train.epoch=1"])))
    assert done.stdout.splitlines()[-1] == "2 ['mtrec_ray.config']"
    done = mtrec(command=("-c", code.format(["explain", "tune.scheduler"])))
    assert "asynchronous successive halving" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 ['mtrec_ray.config']"


@pytest.mark.parametrize("verb", ["prepare", "pretrain", "train"])
@pytest.mark.parametrize("form", [["{}"], ["--config", "{}"]])
def test_a_wrong_key_is_one_message_and_exit_code_2(verb, form, config):
    done = mtrec(verb, *(part.format(config) for part in form), "--set", "train.epoch=1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"Error: {config}: unknown key 'train.epoch'. Did you mean 'epochs'?")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["a.yaml", "--config", "b.yaml"]])
def test_one_config_is_needed(arguments):
    done = mtrec("train", *arguments)
    assert done.returncode == 2
    assert "Give one config" in done.stderr


def test_an_unknown_verb_names_the_nearest():
    done = mtrec("trian")
    assert done.returncode == 2
    assert "train" in done.stderr


def test_a_defect_keeps_its_traceback(monkeypatch):
    code = (
        "from mtrec_ray import cli, config_file\n"
        "def load(*_): raise ZeroDivisionError('ours')\n"
        "config_file.load = load\n"
        "import sys; sys.argv[1:] = ['train', 'x.yaml']; cli.main()"
    )
    done = mtrec(command=("-c", code))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: ours" in done.stderr


def test_relative_paths_are_refused_where_they_would_be_lost(config, tmp_path):
    inside = tmp_path / "working_dir_files" / "_ray_pkg_0"
    inside.mkdir(parents=True)
    done = mtrec("train", config, cwd=inside)
    assert done.returncode == 2
    assert "cluster.storage is 'runs'" in done.stderr
    done = mtrec("train", config, "--set", "cluster.storage=s3://bucket/runs", cwd=inside)
    assert "data.prepared_dir is 'prepared'" in done.stderr


def test_verbose_reaches_child_processes(monkeypatch):
    monkeypatch.setenv("MTREC_VERBOSE", "0")
    cli._be_verbose(True)
    from mtrec_ray.progress import verbose

    assert verbose()
