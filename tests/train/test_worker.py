import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.train import checkpoint
from mtrec_ray.train.context import LocalContext
from mtrec_ray.train.worker import Fitted, TrainingData, fit
from tests.batches import Step, make_batch, make_manifest, make_request, make_run
from tests.training import Source, distance, facts_of, run_ranks, small_backbone

FAST = "train.learning_rate={adapters: 0.01, towers: 0.01, tables: 0.01}"


class Requests(Source):
    """In two micro-steps."""

    def batches(self, numbers: list[int]) -> list[Batch]:
        mine = [make_request(number) for number in numbers]
        return [make_batch(part, tokens=True) for part in (mine[:3], mine[3:])]


def train(
    folder: Path,
    *overrides: str,
    fails_at: int | None = None,
    source: type[Source] = Requests,
    context: LocalContext | None = None,
) -> Fitted:
    run = make_run(FAST, "train.epochs=3", "train.patience=null", "train.log_every=2", *overrides)
    data = TrainingData(source(fails_at=fails_at), source(valid=True), facts_of)
    return fit(run, make_manifest(), data, context or LocalContext(folder), lambda: backbone(run))


def backbone(run: Run) -> Any:
    return None if run.backbone.name == "none" else small_backbone(run)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, "backbone=nano")


def test_what_is_logged(whole: tuple[Path, Fitted]) -> None:
    folder, fitted = whole
    logged, valid = lines(folder, "train"), lines(folder, "valid")
    assert [line["step"] for line in logged] == [2, 4, 6, 8, 10, 12]
    assert [(line["step"], line["epoch"]) for line in valid] == [(4, 1.0), (8, 2.0), (12, 3.0)]
    assert set(logged[0]) >= {"loss", "loss/like", "lr_scale", "grad_norm", "candidates_per_s", "ingest_wait_share"}
    assert {"like/auc", "like/gauc", "like/logloss", "like/n"} <= set(valid[0])
    assert valid[0]["metric"] == valid[0]["like/auc"]
    assert fitted.steps == 12
    assert fitted.throughput["candidates_per_s"] > 0
    assert fitted.throughput["tokens_per_s"] > 0
    assert 0 <= fitted.throughput["ingest_wait_share"] <= 1


def test_the_best_weights_are_kept_and_loaded(whole: tuple[Path, Fitted]) -> None:
    folder, fitted = whole
    valid = lines(folder, "valid")
    best = max(valid, key=lambda line: line["metric"])
    assert (fitted.best_step, fitted.best_metric) == (best["step"], best["metric"])
    kept = checkpoint.read(folder / "checkpoint")
    assert kept.state.step == best["step"]
    assert distance(fitted.engine.parameters(), kept.parameters) == 0


@pytest.mark.parametrize("fails_at", [5, 8, 11])
def test_killed_and_resumed_equals_never_stopped(whole: tuple[Path, Fitted], tmp_path: Path, fails_at: int) -> None:
    folder, fitted = whole
    with pytest.raises((ConnectionError, RuntimeError)):
        train(tmp_path, "backbone=nano", fails_at=fails_at)
    resumed = train(tmp_path, "backbone=nano")
    assert distance(resumed.engine.parameters(), fitted.engine.parameters()) == 0
    assert (resumed.best_step, resumed.best_metric) == (fitted.best_step, fitted.best_metric)
    timeless = [
        [{k: v for k, v in line.items() if "_s" not in k} for line in lines(f, "train")] for f in (folder, tmp_path)
    ]
    assert timeless[0] == timeless[1]
    assert lines(folder, "valid") == lines(tmp_path, "valid")
    last = [checkpoint.read(f / "latest") for f in (folder, tmp_path)]
    assert distance(last[0].parameters, last[1].parameters) == 0
    assert all(
        torch.equal(last[0].optimizer[name][key], value)
        for name, state in last[1].optimizer.items()
        for key, value in state.items()
    )


def test_what_is_not_packed_is_told_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "backbone={name: nano, packing: off}", "train.max_steps=1")
    text = "one sequence per candidate: backbone.packing is off"
    assert capsys.readouterr().err == f"{text}\n"
    assert lines(tmp_path, "note") == [{"kind": "note", "step": 0, "epoch": 0.0, "text": text}]


def test_a_finished_run_is_not_trained_again(whole: tuple[Path, Fitted]) -> None:
    folder, fitted = whole
    before = (folder / "metrics.jsonl").read_text()
    again = train(folder, "backbone=nano", fails_at=0)
    assert (folder / "metrics.jsonl").read_text() == before
    assert distance(again.engine.parameters(), fitted.engine.parameters()) == 0


def test_patience_ends_the_run(tmp_path: Path) -> None:
    fitted = train(tmp_path, "train.patience=2", "train.epochs=30", "train.decay=constant", "train.metric=kind/logloss")
    assert fitted.steps == fitted.best_step + 2 * Source.per_epoch < 30 * Source.per_epoch
    again = train(tmp_path, "train.patience=2", "train.epochs=30", "train.metric=kind/logloss", fails_at=fitted.steps)
    assert again.steps == fitted.steps


@pytest.mark.parametrize(
    ("override", "steps", "evaluated"),
    [
        ("train.max_steps=5", 5, [4, 5]),
        ("train.epochs=0.5", 2, [2]),
        ("train.evaluations_per_epoch=2", 12, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_settings_of_when(tmp_path: Path, override: str, steps: int, evaluated: list[int]) -> None:
    assert train(tmp_path, override).steps == steps
    assert [line["step"] for line in lines(tmp_path, "valid")] == evaluated


def test_the_metric_chooses(tmp_path: Path) -> None:
    fitted = train(tmp_path, "train.metric=stars/rmse")
    assert fitted.best_metric == -min(line["stars/rmse"] for line in lines(tmp_path, "valid"))


class Conflicting(Requests):
    """In the validation split stars are the other way round: the better they are learned, the worse the scores are."""

    def steps(self, first: int, last: int) -> Iterator[Step]:
        for step in super().steps(first, last):
            for batch in step.batches:
                if self.valid:
                    batch.labels[:, 1] = 7 - batch.labels[:, 1]
            yield step


RISING = ("train.metric=like/logloss", "train.epochs=6", "train.decay=constant", "train.warmup=0", "seed=1")


def train_conflicting(folder: Path, *overrides: str, **more: Any) -> Fitted:
    return train(folder, *RISING, *overrides, source=Conflicting, **more)


def test_a_guard_chooses_a_checkpoint_in_which_the_guarded_task_is_not_given_up(tmp_path: Path) -> None:
    free = train_conflicting(tmp_path / "free")
    valid = lines(tmp_path / "free", "valid")
    logloss, rmse = ([line[name] for line in valid] for name in ("like/logloss", "stars/rmse"))
    assert logloss == sorted(logloss, reverse=True), "planted: the main task gets better all the time"
    assert rmse == sorted(rmse), "planted: the guarded task gets worse all the time"
    assert free.best_step == 24

    limit = (rmse[2] + rmse[3]) / 2  # between the third and the fourth evaluation, at steps 12 and 16
    for guard in (f"no_worse_than: {limit}", f"loses_at_most: {limit - rmse[0]}"):
        folder = tmp_path / guard.partition(":")[0]
        guarded = train_conflicting(folder, f"train.guards={{stars/rmse: {{{guard}}}}}")
        assert (guarded.best_step, guarded.best_metric) == (12, -logloss[2])
        state = checkpoint.read(folder / "checkpoint").state
        assert (state.step, state.guarded, state.guarded_best) == (12, {"stars/rmse": rmse[2]}, {"stars/rmse": rmse[0]})
        assert distance(guarded.engine.parameters(), free.engine.parameters()) > 1e-3
        assert lines(folder, "note") == []


def test_what_a_guard_has_seen_is_known_after_a_resumption(tmp_path: Path) -> None:
    rmse = [line["stars/rmse"] for line in _valid(tmp_path / "free")]
    guard = f"train.guards={{stars/rmse: {{loses_at_most: {(rmse[2] + rmse[3]) / 2 - rmse[0]}}}}}"
    with pytest.raises((ConnectionError, RuntimeError)):
        train_conflicting(tmp_path / "stopped", guard, fails_at=17)
    resumed = train_conflicting(tmp_path / "stopped", guard)
    assert resumed.best_step == 12
    assert checkpoint.read(tmp_path / "stopped" / "latest").state.guarded_best == {"stars/rmse": rmse[0]}


def _valid(folder: Path) -> list[dict[str, Any]]:
    train_conflicting(folder)
    return lines(folder, "valid")


def test_a_guard_that_nothing_passes_is_told_once_with_the_figure_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = train_conflicting(tmp_path, "train.guards={stars/rmse: {no_worse_than: 0.1}}")
    rmse = [line["stars/rmse"] for line in lines(tmp_path, "valid")]
    assert fitted.best_step == 4, "the one that misses by least"
    (note,) = lines(tmp_path, "note")
    assert note["step"] == 24
    assert f"step 4, which miss by least: stars/rmse is {rmse[0]:.5g}" in note["text"]
    assert "Raise tasks.stars.weight, or loosen train.guards.stars/rmse" in note["text"]
    assert capsys.readouterr().err == f"{note['text']}\n"


def test_reports_say_which_weights_were_kept_where_guards_decide(tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []

    class Recording(LocalContext):
        def report(self, metrics: Any, checkpoint: Path | None) -> None:
            reports.append(dict(metrics))
            super().report(metrics, checkpoint)

    train_conflicting(tmp_path / "free", context=Recording(tmp_path / "free"))
    assert all("kept" not in report for report in reports)
    reports.clear()
    guards = "train.guards={stars/rmse: {no_worse_than: 0.1}}"
    train_conflicting(tmp_path / "guarded", guards, context=Recording(tmp_path / "guarded"))
    assert [report["kept"] for report in reports] == [True, False, False, False, False, False]


def test_several_metrics_choose_together(tmp_path: Path) -> None:
    fitted = train_conflicting(tmp_path, "train.metric={like/logloss: 1, stars/rmse: 2}")
    sums = {line["step"]: -line["like/logloss"] - 2 * line["stars/rmse"] for line in lines(tmp_path, "valid")}
    assert fitted.best_metric == pytest.approx(max(sums.values()))
    assert fitted.best_step == max(sums, key=lambda step: sums[step]) == 12


def test_a_wrong_guard_fails_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.guards 'stars/rms' is unknown\. Did you mean 'stars/rmse'"):
        train(tmp_path, "train.guards={stars/rms: {no_worse_than: 1}}", "backbone=nano")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_metric_fails_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.metric 'like/acu' is unknown\. Did you mean 'like/auc'"):
        train(tmp_path, "train.metric=like/acu", "backbone=nano")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_config_is_refused(whole: tuple[Path, Fitted]) -> None:
    with pytest.raises(UserError, match="does not fit this config"):
        train(whole[0], "backbone=nano", "towers.z_dim=9")


@pytest.mark.distributed
def test_two_ranks_resume_at_zero_2_and_end_as_one_plain_rank(tmp_path: Path) -> None:
    guard = "train.guards={stars/rmse: {loses_at_most: 0.001}}"
    zero = ("backbone=nano", "engine.name=deepspeed", "engine.zero_stage=2", "train.epochs=2", guard)
    never_stopped, resumed = run_ranks(_fit_twice, 2, str(tmp_path), zero)[0]
    plain = train(tmp_path / "plain", "backbone=nano", "train.epochs=2", guard)
    assert distance(resumed["parameters"], never_stopped["parameters"]) == 0
    assert resumed["valid"] == never_stopped["valid"]
    assert distance(resumed["parameters"], plain.engine.parameters()) < 1e-4
    assert [v["metric"] for v in resumed["valid"]] == [v["metric"] for v in lines(tmp_path / "plain", "valid")]


def _fit_twice(folder: str, overrides: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for name, fails_at in (("whole", None), ("stopped", 6)):
        path = Path(folder) / name
        if fails_at is not None:
            with pytest.raises((ConnectionError, RuntimeError)):
                train(path, *overrides, fails_at=fails_at)
        fitted = train(path, *overrides)
        found.append({"parameters": fitted.engine.parameters(), "valid": lines(path, "valid")})
        fitted.engine.close()
    return found
