"""A run that begins with the weights of another one."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrec_ray.errors import BackboneError, ConfigError
from mtrec_ray.evaluate.training_log import read_log
from mtrec_ray.model.backbone import Backbone
from mtrec_ray.model.towers import TOWERS, Towers
from mtrec_ray.model.towers.shared_bottom import SharedBottom
from mtrec_ray.train import checkpoint, pretrained
from mtrec_ray.train.building import adapt
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.stack import Report, Stack
from mtrec_ray.train.start import CONFIG, SUMMARY, Start, check_settings, check_start, follow
from mtrec_ray.train.worker import Fitted, fit
from tests.train.starting import NANO, NOW, STILL, best, config, data_of, finish, train
from tests.training import CPU, distance, small_backbone, small_model
from tests.worlds import LATER, World, names

OF_STACK = (NANO, "adapter={rank: 2, alpha: 4}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `plain`, without a backbone, and `nano`."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder, "plain", NOW, "features.history_dim=4", "train.epochs=8")
    train(folder, "nano", NOW, NANO)
    return folder


@pytest.mark.parametrize("engine", ["{name: plain}", "{zero_stage: 1}", "{zero_stage: 3}"])
def test_without_learning_it_scores_as_the_finished_run_does(place: Path, engine: str) -> None:
    """Side features, towers and adapters, at any ZeRO stage; but the optimizer is a new one."""
    old, name = best(place, "nano"), f"again-{engine.strip('{}').replace(': ', '-')}"
    run = ("train.start_from={place}/nano", NANO, STILL, f"engine={engine}", "train.max_steps=1", "seed=4")
    found = train(place, name, NOW, *run)
    assert distance(found.engine.parameters(), old.parameters) == 0
    assert found.best_metric == pytest.approx(old.state.best, abs=1e-6)
    state = checkpoint.read(place / name / "latest").optimizer
    assert {int(values["step"].max()) for values in state.values() if "step" in values} == {1}
    found.engine.close()


def test_what_is_carried_over_is_reported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(place, "later", LATER, "train.start_from={place}/plain", "features.history_dim=4", "train.max_steps=1")
    said = [line for line in capsys.readouterr().err.splitlines() if "carried over" in line]
    step = best(place, "plain").state.step
    assert len(said) == 1
    assert said[0].startswith(
        f"starts from {place}/plain, step {step}, with a fresh optimizer; carried over: ids.user (9"
    )
    start = read_log(f"{place}/later/metrics.jsonl").start
    assert start is not None
    assert (start["from"], start["from_step"]) == (f"{place}/plain", step)
    parts = {(part["part"], part["unit"]): part for part in start["parts"]}
    assert parts["ids.user", "rows"] == {"part": "ids.user", "unit": "rows", "carried": 9, "fresh": 2, "left": 0}
    assert parts["tower of buy", "numbers"]["carried"] == 0
    assert read_log(f"{place}/plain/metrics.jsonl").start is None


def test_killed_and_resumed_equals_never_stopped_and_the_old_run_may_be_gone(place: Path, tmp_path: Path) -> None:
    settings = ("train.start_from={place}/plain", "features.history_dim=4")
    for name in ("plain", "plain-prepared"):
        shutil.copytree(place / name, tmp_path / name)
    for path in (tmp_path / "plain").glob("training.json"):
        path.write_text(json.dumps({"prepared": str(tmp_path / "plain-prepared")}))
    whole = train(tmp_path, "whole", LATER, *settings)
    with pytest.raises((ConnectionError, RuntimeError)):
        train(tmp_path, "stopped", LATER, *settings, fails_at=5)
    shutil.rmtree(tmp_path / "plain")
    resumed = train(tmp_path, "stopped", LATER, *settings)
    assert distance(resumed.engine.parameters(), whole.engine.parameters()) == 0
    logs = [read_log(f"{tmp_path}/{name}/metrics.jsonl") for name in ("whole", "stopped")]
    assert logs[0].valid == logs[1].valid
    assert logs[0].start == logs[1].start


def test_what_was_learned_on_one_domain_is_known_on_another(place: Path) -> None:
    """Likes follow a number, and no id of the other domain is known."""
    other = World(users=tuple(names("x", 5)), items=tuple(names("y", 7)), tasks=("like", "buy"))
    settings = ("features.history_dim=4", STILL, "train.max_steps=1")
    learned = train(place, "warm", other, "train.start_from={place}/plain", *settings)
    fresh = train(place, "cold", other, *settings)
    assert learned.best_metric > max(0.7, fresh.best_metric)


def trial(folder: Path, name: str, report: Report, *overrides: str, resume: Path | None = None) -> Fitted:
    """One that starts from a run `old` in this folder, in a stack; the run is trained here unless it is there."""
    if not (folder / "old").exists():
        run = config(folder, "old", NOW, *OF_STACK, "train.max_steps=4")

        def build() -> Backbone:
            backbone = Backbone(small_model())
            adapt(backbone, run)
            return backbone

        fit(run, NOW.manifest(), data_of(folder, "old", NOW), LocalContext(folder / "old"), build)
        finish(folder, "old", run)
    own = config(folder, name, LATER, *OF_STACK, "train.start_from={place}/old", *overrides)
    stack = Stack(Backbone(small_model()), LATER.manifest(), own, CPU)
    return stack.fit(0, own, data_of(folder, name, LATER), str(folder / name), report, resume)


def test_a_trial_in_a_stack_starts_from_it_too(tmp_path: Path) -> None:
    still = (STILL, "train.max_steps=1")
    found = trial(tmp_path, "trial", lambda metrics, folder: None, *still).engine.parameters()
    old = best(tmp_path, "old").parameters
    adapters = {name: value for name, value in old.items() if name.startswith("backbone.")}
    assert adapters
    assert all(torch.equal(found[name], value) for name, value in adapters.items())
    assert torch.equal(found["side.parts.1.table.weight"][len(LATER.items)], old["side.parts.1.table.weight"][1]), "i1"


def test_a_trial_that_goes_on_carries_nothing_over_again(tmp_path: Path) -> None:
    """As when a search is resumed, or a trial is cloned: it needs the old run no more."""
    kept = tmp_path / "kept"

    def keep_first(metrics: Mapping[str, float], folder: Path | None) -> None:
        if metrics["evaluation"] == 1:
            assert folder is not None
            shutil.copytree(folder, kept)
            shutil.copytree(tmp_path / "whole/checkpoint", tmp_path / "resumed/checkpoint")

    whole = trial(tmp_path, "whole", keep_first, "train.epochs=2")
    (tmp_path / "old/training.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no training\.json"):
        trial(tmp_path, "fresh", lambda metrics, folder: None)
    resumed = trial(tmp_path, "resumed", lambda metrics, folder: None, "train.epochs=2", resume=kept)
    assert distance(resumed.engine.parameters(), whole.engine.parameters()) == 0
    starts = [read_log(f"{tmp_path}/{name}/metrics.jsonl").start for name in ("whole", "resumed")]
    assert starts[0] is not None
    assert starts[1] is None


def test_another_backbone_under_the_same_name_is_refused(place: Path, tmp_path: Path) -> None:
    run = config(place, "swapped", NOW, NANO, "train.start_from={place}/nano")
    model = small_model()
    with torch.no_grad():
        model.norm.weight.add_(1)
    data = data_of(place, "swapped", NOW)
    with pytest.raises(
        BackboneError, match="was trained on the backbone 'nano' with other weights than those of 'nano'"
    ):
        fit(run, NOW.manifest(), data, LocalContext(tmp_path), lambda: small_backbone(run, model))


LORA = "adapter={kind: lora, rank: 8}"
HASHED = "features={ids: hashed, user_dim: 4, item_dim: 4, user_rows: 50}"
MATCHING = "tasks={like: {label: like}, next: {label: next, kind: retrieval}}"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ([], ["towers.z_dim=9"], "towers.z_dim is 9, but 8"),
        ([], ["towers.hidden=[6, 6]"], r"towers.hidden is \[6, 6\], but \[6\]"),
        ([], ["towers.kind=mmoe"], "towers.kind is 'mmoe', but 'shared_bottom'"),
        (
            ["towers.kind=mmoe"],
            ["towers={kind: mmoe, z_dim: 8, hidden: [6], params: {experts: 3}}"],
            "towers.params is",
        ),
        ([], ["features.hidden=[12, 12]"], "features.hidden is"),
        ([], ["features.user_dim=5"], "features.user_dim is 5, but 4"),
        ([], ["features.number_dim=3"], "features.number_dim is 3, but 2"),
        ([], ["features.ids=hashed"], "features.ids is 'hashed', but 'exact'"),
        ([HASHED], [HASHED, "features.user_rows=51"], "features.user_rows is 51, but 50"),
        ([HASHED], [HASHED, "features.hashes=3"], "features.hashes is 3, but 2"),
        ([MATCHING], [MATCHING, "matching.dim=32"], "matching.dim is 32, but 64"),
        ([MATCHING], [MATCHING, "matching.shared=true"], "matching.shared is True, but False"),
        (
            ["position.method=pal", "data.columns.position=p"],
            ["position.method=additive", "data.columns.position=p"],
            "position.method is 'additive', but 'pal'",
        ),
        ([], ["tasks.kind.classes=4"], "tasks.kind.classes is 4, but 3"),
        ([], ["tasks.like.kind=ranking"], "tasks.like.kind is 'ranking', but 'binary'"),
        ([NANO], [NANO, "backbone.width=32"], "backbone.width is 32, but 16"),
        ([NANO], [NANO, "backbone.pooling=mean"], "backbone.pooling is 'mean', but 'auto'"),
        ([NANO], ["backbone=gpt2"], "backbone.name is 'gpt2', but '.*/backbones/"),
        (["backbone=gpt2"], [NANO], "backbone.name is 'nano', but 'gpt2'"),
        ([NANO], [NANO, "engine.precision=bf16"], "engine.precision is 'bf16', but 'fp32'"),
        ([NANO, LORA], [NANO, LORA, "adapter.rank=4"], "adapter.rank is 4, but 8"),
        ([NANO, LORA], [NANO, LORA, "adapter.top_layers=1"], "adapter.top_layers is 1, but None"),
        ([NANO, LORA], [NANO, "adapter.kind=ia3"], "adapter.kind is 'ia3', but 'lora'"),
    ],
)
def test_settings_that_the_weights_do_not_fit_are_refused(old: list[str], new: list[str], path: str) -> None:
    start = Start("runs/x", NOW.run(*old), "somewhere", NOW.manifest())
    with pytest.raises(ConfigError, match=rf"^{path}.* in 'runs/x', which train.start_from names, and its weights fit"):
        check_settings(NOW.run(*new), start)


@pytest.mark.parametrize(
    "new",
    [
        ["features.user_dim=0", "features.history_dim=8"],  # parts that one of the two has not
        [NANO],
        ["tasks={buy: {label: buy}}"],
        ["towers.dropout=0.5", "train.batch_requests=4", "balance.method=pcgrad", "seed=9"],
    ],
)
def test_settings_that_are_no_weights_or_of_one_run_alone_may_differ(new: list[str]) -> None:
    check_settings(NOW.run(*new), Start("runs/x", NOW.run(), "somewhere", NOW.manifest()))


def test_an_architecture_that_does_not_say_whose_its_weights_are_needs_the_same_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Silent(SharedBottom):
        entries = Towers.entries

    monkeypatch.setitem(TOWERS._parts, "silent", Silent)
    start = Start("runs/x", NOW.run("towers.kind=silent"), "somewhere", NOW.manifest())
    check_settings(NOW.run("towers.kind=silent"), start)
    with pytest.raises(
        ConfigError, match=r"^tasks is \['kind', 'buy', 'like', 'stars'\], but \['like', 'stars', 'kind'\]"
    ):
        check_settings(LATER.run("towers.kind=silent"), start)


def remove(name: str) -> Any:
    return lambda run: (run / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove(CONFIG), "holds no config.yaml, so it is not the folder of a run; give one that `mtrec train` made"),
        (
            remove(SUMMARY),
            "holds no training.json, so its training has not ended; `mtrec train` with its config goes on",
        ),
        (remove("checkpoint/state.json"), "holds no checkpoint/state.json, so its training has not ended"),
        (
            remove("../plain-prepared/manifest.json"),
            "which says whose the rows of its tables are, and cannot be read: ",
        ),
        (
            lambda run: (
                LATER.write(run / "../other") and shutil.copy(run / "../other/manifest.json", run / "../plain-prepared")
            ),
            "was trained on data with the fingerprint 0000000000000000, and .* has 1111111111111111",
        ),
    ],
)
def test_what_is_no_finished_run_is_refused(place: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    for name in ("plain", "plain-prepared"):
        shutil.copytree(place / name, tmp_path / name)
    (tmp_path / "plain" / SUMMARY).write_text(json.dumps({"prepared": str(tmp_path / "plain-prepared")}))
    assert Start.read(str(tmp_path / "plain")).prepared == str(tmp_path / "plain-prepared")
    spoil(tmp_path / "plain")
    with pytest.raises(ConfigError, match=rf"^train.start_from: '{tmp_path}/plain' .*{message}"):
        Start.read(str(tmp_path / "plain"))


def test_before_any_training_both_models_are_compared(place: Path, tmp_path: Path) -> None:
    run = config(place, "next", LATER, "train.start_from={place}/plain", "features.history_dim=4")
    check_start(run, str(tmp_path / "later"), LATER.write(tmp_path / "later"))
    check_start(config(place, "next", LATER), "nowhere", LATER.manifest())  # starts from nothing
    wide = config(place, "next", NOW, "train.start_from={place}/plain", "features.history_dim=4", "features.item_dim=0")
    check_start(wide, str(place / "plain-prepared"), NOW.manifest())


def test_nano_is_that_of_the_run_it_starts_from(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Start.read(f"{place}/nano")
    folder = Path(old.language_model())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / pretrained.MARKER).write_text("{}")
    run = config(place, "next", NOW, NANO, "train.start_from={place}/nano")
    followed = follow(run)
    assert followed.backbone.name == str(folder.resolve())
    assert followed.model_copy(update={"backbone": run.backbone}) == run
    check_start(followed, str(place / "nano-prepared"), NOW.manifest())
    with pytest.raises(ConfigError, match=r"^backbone.name is 'nano', but '.*/backbones/"):
        check_start(run, str(place / "nano-prepared"), NOW.manifest())  # it would be pretrained anew

    def read(start: Start) -> None:
        monkeypatch.setattr(Start, "read", lambda path: start)

    read(replace(old, run=followed))  # the third day: the second one's config names the folder
    assert follow(run) == followed
    read(replace(old, prepared="s3://bucket/prepared/abc"))
    with pytest.raises(ConfigError, match=r"the backbone 'nano' of '.*' lies at s3://bucket/.*copy it to a folder"):
        follow(run)
    untrained = config(place, "next", NOW, NANO, "backbone.pretrained=false", "train.start_from={place}/nano")
    read(replace(old, run=untrained))
    with pytest.raises(ConfigError, match="is not pretrained, and lies nowhere"):
        follow(untrained)
