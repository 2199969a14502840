import pytest

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump, override, validate
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.launch.jobs import absolute, located
from mtrec_ray.launch.runs import CONFIG, REPORT, SUMMARY, RunFolder
from tests.batches import make_run


def config(folder, **changes) -> Run:
    tree = {
        "name": "first",
        "data": {"logs": "logs", "columns": {"user": "u", "item": "i", "time": "t"}},
        "tasks": {"like": {"label": "like"}},
        "cluster": {"storage": str(folder)},
    }
    for key, value in changes.items():
        override(tree, key.replace("__", "."), value)
    return validate(tree)


def test_a_new_run_gets_its_folder_and_resolved_config(tmp_path):
    run = config(tmp_path)
    folder = RunFolder.of(run)
    folder.open(run, overwrite=False)
    assert (tmp_path / "first" / CONFIG).read_text() == dump(run)
    assert folder.config() == run


def test_a_finished_run_is_refused_with_both_remedies(tmp_path):
    run = config(tmp_path)
    folder = RunFolder.of(run)
    folder.open(run, overwrite=False)
    folder.write(REPORT, "<html>")
    with pytest.raises(ConfigError, match=r"first holds a finished run.*--set name=.*--overwrite"):
        folder.open(run, overwrite=False)
    folder.open(run, overwrite=True)
    assert not folder.has(REPORT)


def test_an_unfinished_run_goes_on_only_with_its_config(tmp_path):
    run = config(tmp_path)
    folder = RunFolder.of(run)
    folder.open(run, overwrite=False)
    folder.open(run, overwrite=False)
    folder.open(config(tmp_path, cluster__workers=2, evaluate__bootstrap=0), overwrite=False)
    with pytest.raises(ConfigError, match=r"train.epochs 3.0 -> 5.0"):
        folder.open(config(tmp_path, train__epochs=5), overwrite=False)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="not the folder of a run"):
        RunFolder(str(tmp_path)).config()
    with pytest.raises(DataError, match="no finished training"):
        RunFolder(str(tmp_path)).summary()


def test_summary_is_what_was_written(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.write(SUMMARY, '{"steps": 3}')
    assert folder.summary() == {"steps": 3}


def test_paths_become_absolute_and_urls_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("runs") == str(tmp_path / "runs")
    assert absolute("s3://bucket/runs") == "s3://bucket/runs"


@pytest.mark.parametrize(("name", "found"), [("models/own", True), ("someone/model", False), ("nano", False)])
def test_a_backbones_folder_is_named_so_that_every_process_finds_it(tmp_path, monkeypatch, name, found):
    monkeypatch.chdir(tmp_path)
    for folder in ("models/own", "nano"):  # a folder called as a built-in is not meant
        (tmp_path / folder).mkdir(parents=True)
    assert located(make_run(f"backbone={name}")).backbone.name == (str(tmp_path / name) if found else name)
