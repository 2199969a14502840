"""`mtrec compare` without Ray: what is trained when, and what becomes of trainings that fail or are interrupted."""

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mtrec_ray import cli, config_file
from mtrec_ray.compare.plan import make_plan
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.launch import compare as verb
from mtrec_ray.launch.runs import RunFolder
from tests.compare.made_up import summary, worsen, write_log
from tests.evaluate.world import CONFIG, make_world, write_predictions, write_prepared

pytestmark = pytest.mark.slow

SMALL = ["compare.seeds=2", "evaluate.bootstrap=0", "evaluate.baselines=[constant]"]


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    return Prepared(str(folder), write_prepared(folder, world))


@dataclass
class Trainer:
    """Stands for Ray: leaves what a training leaves, and fails where it is told to."""

    world: object
    trained: list[str] = field(default_factory=list)
    raises: dict[str, BaseException] = field(default_factory=dict)

    def __call__(self, run, prepared: str, folder: RunFolder) -> None:
        error = self.raises.pop(run.name, None)
        if error is not None:
            raise error
        self.trained.append(run.name)
        variant = next(v for v in make_plan(self.config).variants if run.name.startswith(v.slug))
        path = Path(folder.path, "predictions.parquet")
        write_predictions(path, self.world, seed=7)
        worsen(path, {"like": 0.6} if variant.name == "like alone" else {}, run.seed)
        Path(folder.path, "training.json").write_text(json.dumps(summary(variant)))
        write_log(Path(folder.path, "metrics.jsonl"), variant, run.seed)


@pytest.fixture
def trainer(world, prepared, monkeypatch) -> Trainer:
    trainer = Trainer(world)
    monkeypatch.setattr(verb, "ray_session", lambda cluster: nullcontext())
    monkeypatch.setattr(verb, "check_resources", lambda cluster: None)
    monkeypatch.setattr("mtrec_ray.data.prepare.prepare", lambda run: prepared)
    monkeypatch.setattr(verb, "train_prepared", trainer)
    for name in ("read_results", "write_report"):  # fewer resamples, for speed
        monkeypatch.setattr(verb, name, partial(getattr(verb, name), resamples=50))
    return trainer


@pytest.fixture
def config(tmp_path, trainer):
    def load(*overrides: str):
        trainer.config = config_file.parse(CONFIG, [f"cluster.storage={tmp_path}", *SMALL, *overrides])
        return trainer.config

    return load


ALL = [f"{slug}-seed{seed}" for seed in (0, 1) for slug in ("alone-like", "alone-rating", "alone-mood", "sum")]


def test_everything_is_trained_once_and_told(config, trainer, tmp_path):
    done = verb.compare(config())
    assert trainer.trained == ALL
    assert done.report == f"{tmp_path}/demo/report.html"
    assert done.failed == 0
    found = json.loads((tmp_path / "demo/compare.json").read_text())
    assert found["differences"]["sum"]["like"]["auc"]["tone"] == "better"
    assert done.sentences[0].startswith("Learning together (sum) is better on like")
    assert done.table.splitlines()[0].split() == ["alone", "sum"]
    assert found["baselines"]["constant"]["like"]["auc"] == 0.5
    with_baselines = [path.parent.name for path in (tmp_path / "demo").glob("*/baselines")]
    assert with_baselines == ["sum-seed0"]


def test_an_interrupted_comparison_goes_on_where_it_was(config, trainer):
    trainer.raises["sum-seed0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        verb.compare(config())
    assert trainer.trained == ALL[:3]
    verb.compare(config())
    assert trainer.trained == ALL
    verb.compare(config())
    assert trainer.trained == ALL


def test_a_comparison_grows_by_what_is_new(config, trainer, tmp_path):
    verb.compare(config("compare.seeds=1"))
    verb.compare(config("compare.seeds=1", "compare.methods=[sum, rlw]"))
    assert trainer.trained == [*ALL[:4], "rlw-seed0"]
    assert json.loads((tmp_path / "demo/compare.json").read_text())["differences"].keys() == {"sum", "rlw"}


def test_a_training_that_fails_stops_no_other_and_is_tried_again(config, trainer, tmp_path):
    trainer.raises["alone-like-seed1"] = UserError("step 7: the loss of like is not finite.\nLower the rate.")
    done = verb.compare(config())
    assert trainer.trained == [name for name in ALL if name != "alone-like-seed1"]
    assert done.failed == 1
    found = json.loads((tmp_path / "demo/compare.json").read_text())
    failed = [run for run in found["runs"] if run["status"] == "failed"]
    assert [(run["folder"], run["error"]) for run in failed] == [
        ("alone-like-seed1", "step 7: the loss of like is not finite.")
    ]
    assert found["differences"]["sum"]["like"]["auc"]["of_seeds"] == [0]
    assert found["differences"]["sum"]["rating"]["rmse"]["of_seeds"] == [0, 1]
    assert verb.compare(config()).failed == 0
    assert sorted(trainer.trained) == sorted(ALL)


def test_a_defect_is_told_by_what_it_began_with(config, trainer, tmp_path):
    class WorkersError(Exception):
        worker_failures = {1: ValueError("later"), 0: ValueError("no such column")}  # noqa: RUF012

    trainer.raises["sum-seed0"] = WorkersError("a long story")
    verb.compare(config())
    found = json.loads((tmp_path / "demo/compare.json").read_text())
    assert [run["error"] for run in found["runs"] if run["error"]] == ["ValueError: no such column"]


def test_another_config_does_not_mix_with_what_is_finished(config, trainer):
    verb.compare(config("compare.seeds=1"))
    with pytest.raises(
        ConfigError, match=r"alone-like-seed0 holds a run with another config \(train.epochs 3.0 -> 9.0\)"
    ):
        verb.compare(config("compare.seeds=1", "train.epochs=9"))
    verb.compare(config("compare.seeds=1", "evaluate.bootstrap=7"))
    assert len(trainer.trained) == 4
    verb.compare(config("compare.seeds=1", "train.epochs=9"), overwrite=True)
    assert len(trainer.trained) == 8


def test_a_folder_of_a_run_is_left_alone(config, trainer):
    run = config()
    RunFolder.of(run).open(run, overwrite=False)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"demo holds a run or a search.*--set name=demo-compare"):
            verb.compare(run, overwrite=overwrite)
    assert trainer.trained == []


def test_what_the_data_cannot_judge_is_refused_before_anything_is_trained(config, trainer):
    run = config("compare.variants={x: {train.metric: like/acu}}")
    with pytest.raises(ConfigError, match=r"x: train.metric 'like/acu' is unknown"):
        verb.compare(run)
    assert trainer.trained == []


def test_a_task_alone_is_a_run_with_a_config_of_its_own(config, trainer, tmp_path):
    verb.compare(config("compare.seeds=[3]"))
    run = RunFolder(str(tmp_path / "demo/alone-rating-seed3")).config()
    assert {name: task.weight for name, task in run.tasks.items()} == {"like": 0, "rating": 1, "mood": 0}
    assert (run.seed, run.train.metric, run.evaluate.baselines) == (3, "rating/rmse", [])


@pytest.mark.parametrize(("fails", "code"), [(False, 0), (True, 1)])
def test_the_command_ends_with_the_path_of_the_report(config, trainer, tmp_path, fails, code):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    settings = [f"cluster.storage={tmp_path}", *SMALL]
    config()
    if fails:
        trainer.raises["sum-seed1"] = UserError("lost")
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = CliRunner().invoke(cli.app, ["compare", str(path), *arguments])
    assert done.exit_code == code, done.output
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == f"{tmp_path}/demo/report.html"
    assert any(re.match(r"like AUC ↑ ", line) for line in lines)
    assert any(line.startswith("Learning together (sum) is better on like") for line in lines)
    assert ("1 training failed" in done.stderr) == fails
