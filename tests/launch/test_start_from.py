"""Verbs whose run starts from another one: what is refused before anything begins, and what each training starts from.
Without Ray."""

from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.compare.plan import make_plan
from mtrec_ray.errors import ConfigError
from mtrec_ray.launch import compare, pretrain, train, tune
from mtrec_ray.launch.jobs import located
from mtrec_ray.search.space import Space
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.pretrained import MARKER
from mtrec_ray.train.start import Start
from mtrec_ray.train.worker import fit
from tests.train import starting
from tests.train.starting import NANO, NOW, STILL, best, config, data_of
from tests.training import distance

FROM = ("train.start_from={place}/plain", "features.history_dim=4", "cluster.storage={place}/runs")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `plain`, without a backbone, and `nano`."""
    folder = tmp_path_factory.mktemp("runs")
    starting.train(folder, "plain", NOW, "features.history_dim=4")
    starting.train(folder, "nano", NOW, NANO)
    model = Path(Start.read(f"{folder}/nano").language_model())
    model.mkdir(parents=True)
    (model / MARKER).write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def _nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(cluster: Any) -> None:
        raise AssertionError("a session was opened")

    for verb in (compare, pretrain, train, tune):
        monkeypatch.setattr(verb, "ray_session", begin)


def refused(place: Path, verb: Any, name: str, *overrides: str) -> str:
    run = config(place, name, NOW, *FROM, *overrides)
    with pytest.raises(ConfigError) as error:
        verb(run)
    assert not (place / "runs" / name).exists(), "a folder was taken"
    return str(error.value)


@pytest.mark.parametrize("mode", ["stacked", "distributed"])
def test_a_search_among_settings_that_its_start_does_not_fit_is_refused(place: Path, mode: str) -> None:
    space = "tune.space={train.learning_rate.towers: {loguniform: [1e-3, 1e-2]}, towers.z_dim: [8, 16]}"
    message = refused(place, tune.tune, "search", space, f"tune.mode={mode}")
    assert message.startswith(f"tune.space.towers.z_dim: towers.z_dim is 16, but 8 in '{place}/plain'")
    message = refused(place, tune.tune, "search", "tune.space={train.start_from: [null, runs/x]}")
    assert "all trials start from the same weights" in message


def test_a_comparison_with_a_way_that_the_start_does_not_fit_is_refused(place: Path) -> None:
    variants = "compare.variants={wide: {towers.z_dim: 16}}"
    message = refused(place, compare.compare, "compared", variants)
    assert message.startswith(f"wide: towers.z_dim is 16, but 8 in '{place}/plain'")
    cold = variants.replace("16", "16, train.start_from: null")  # from nothing it may be as wide as it likes
    with pytest.raises(AssertionError, match="a session was opened"):
        compare.compare(config(place, "compared", NOW, *FROM, cold))


def test_all_trainings_of_a_comparison_start_from_it_unless_told_otherwise(place: Path) -> None:
    """Each task alone too, also with the towers of tasks that it does not learn."""
    ways = ("compare.methods=[sum, uncertainty]", "compare.variants={cold: {train.start_from: null}}")
    plan = make_plan(config(place, "all", NOW, *FROM, *ways, STILL, "train.max_steps=1"))
    old, known = best(place, "plain").parameters, {}
    for variant, seed in plan.trainings():
        run = plan.run_of(variant, seed)
        data, context = data_of(place, "plain", NOW), LocalContext(place / "all" / run.name)
        fitted = fit(run, NOW.manifest(), data, context, lambda: None)
        known[variant.name] = distance(fitted.engine.parameters(), old) == 0
    assert known == {
        **{f"{task} alone": True for task in ("like", "stars", "kind")},
        "sum": True,
        "uncertainty": True,
        "cold": False,
    }


@pytest.mark.parametrize("below", ["", "/sum-seed0"])
@pytest.mark.parametrize("verb", [train.train, tune.tune, compare.compare])
def test_what_a_run_would_replace_is_not_what_it_starts_from(place: Path, verb: Any, below: str) -> None:
    """With --overwrite the old run would be deleted before it is read."""
    (place / "deep").mkdir(exist_ok=True)
    if not (place / "deep/plain").exists():
        starting.train(place / "deep", "plain", NOW)
    own = ("train.start_from={place}/deep/plain" + below, "cluster.storage={place}/deep")
    run = config(place, "plain", NOW, *own, "tune.space={towers.dropout: [0.1, 0.2]}")
    with pytest.raises(ConfigError, match=r"lies in .*/deep/plain, the folder that this run itself writes.*plain-next"):
        verb(run, overwrite=True)
    assert best(place / "deep", "plain").state.step > 0
    with pytest.raises(AssertionError, match="a session was opened"):
        train.train(config(place, "plain-next", NOW, "train.start_from={place}/deep/plain", *own[1:]), overwrite=True)


def test_there_is_nothing_to_pretrain_for_a_run_that_has_the_language_model_of_another(place: Path) -> None:
    nano = (NANO, "train.start_from={place}/nano")
    assert refused(place, pretrain.pretrain, "next", *nano).startswith(
        "train.start_from: the run that starts from another one has its language model"
    )
    for more in ([NANO], [*nano, "train.start_from=null"]):  # `plain` has none
        with pytest.raises(AssertionError, match="a session was opened"):
            pretrain.pretrain(config(place, "next", NOW, *FROM, *more))


def test_a_search_starts_its_trials_on_the_language_model_of_the_other_run(place: Path) -> None:
    """So all trials of a stack can share it, and none pretrains its own."""
    space = "tune.space={towers.dropout: [0.1, 0.2]}"
    run = located(config(place, "search", NOW, NANO, "train.start_from={place}/nano", space))
    model = Start.read(f"{place}/nano").language_model()
    assert run.backbone.name == model
    assert {probe.backbone.name for _, probe in Space.parse(run).probes(run)} == {model}
