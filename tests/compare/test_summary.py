"""The figures of a made-up comparison."""

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from mtrec_ray.compare.results import read_results
from mtrec_ray.compare.summary import summarise, tone
from mtrec_ray.errors import DataError
from tests.compare.made_up import write_run, write_runs


@pytest.fixture(scope="module")
def found(written):
    return written[1]


def like_auc(folder, name) -> float:
    table = pq.read_table(folder / name / "predictions.parquet").filter(pc.field("split") == "test")
    observed = table.to_pandas().dropna(subset="label.like")
    return roc_auc_score(observed["label.like"], observed["score.like"])


def test_differences_are_those_of_the_predictions(written):
    folder, found = written
    change = found["differences"]["sum"]["like"]["auc"]
    expected = [like_auc(folder, f"sum-seed{seed}") - like_auc(folder, f"alone-like-seed{seed}") for seed in (0, 1)]
    assert change["seeds"] == pytest.approx(expected)
    assert change["mean"] == pytest.approx(np.mean(expected))
    assert change["interval"][0] < change["mean"] < change["interval"][1]


def test_better_worse_and_even_are_told_apart(found):
    tones = {task: by_metric[metric]["tone"] for task, by_metric in found["differences"]["sum"].items()
             for metric in list(by_metric)[:1]}  # fmt: skip
    assert tones == {"like": "better", "rating": "worse", "mood": "even"}
    assert found["differences"]["sum"]["like"]["logloss"]["tone"] == "better"
    assert found["differences"]["sum"]["rating"]["rmse"]["mean"] > 0


@pytest.mark.parametrize(
    ("interval", "sign", "expected"),
    [([0.1, 0.2], 1, "better"), ([0.1, 0.2], -1, "worse"), ([-0.2, -0.1], -1, "better"), ([-0.1, 0.1], 1, "even"),
     ([0.0, 0.1], 1, "even"), (None, 1, "unknown")],
)  # fmt: skip
def test_tones(interval, sign, expected):
    assert tone({"interval": interval}, sign) == expected


def test_a_failed_training_leaves_the_seeds_that_have_both(found):
    change = found["differences"]["rlw"]["like"]["auc"]
    assert change["of_seeds"] == [0]
    assert found["relative_change"]["rlw"]["of_metric"]["of_seeds"] == [0]
    assert {"name": "rlw", "task": None, "seeds": [0]}.items() <= found["variants"][-1].items()
    failed = [run for run in found["runs"] if run["status"] == "failed"]
    assert [(run["folder"], run["error"][:6]) for run in failed] == [("rlw-seed1", "step 7")]


def test_a_task_alone_is_judged_by_itself_only(found):
    assert found["values"]["like alone"].keys() == {"like"}
    assert found["values"]["sum"].keys() == {"like", "rating", "mood"}


def test_the_relative_change_is_the_mean_of_signed_shares(found):
    shares = []
    for task, metric, sign in (("like", "auc", 1), ("rating", "rmse", -1), ("mood", "accuracy", 1)):
        before = found["values"][f"{task} alone"][task][metric]["seeds"]
        after = found["values"]["sum"][task][metric]["seeds"]
        shares.append([sign * (b - a) / a for a, b in zip(before, after, strict=True)])
    change = found["relative_change"]["sum"]["of_metric"]
    assert change["seeds"] == pytest.approx(np.mean(shares, axis=0).tolist())
    above = found["relative_change"]["sum"]["above_chance"]
    like = found["values"]["like alone"]["like"]["auc"]["seeds"]
    shares[0] = [share * a / (a - 0.5) for share, a in zip(shares[0], like, strict=True)]
    assert above["seeds"] == pytest.approx(np.mean(shares, axis=0).tolist())


def test_the_cost_of_all_tasks_alone_is_the_sum(found):
    assert found["cost"]["all_alone"] == {
        "models": 3,
        "steps": 1200,
        "seconds": 150.0,
        "peak_memory_mib": 512.25,
        "trained_parameters": 3702,
    }
    assert found["cost"]["variants"]["sum"]["seconds"] == 75.0


def test_conflict_is_averaged_over_seeds_and_steps(found):
    conflict = found["conflict"]["sum"]
    assert conflict["cosines"] == pytest.approx({"like~rating": 0.55, "like~mood": -0.15, "rating~mood": 0.2})
    assert conflict["lines"]["cosine"]["like~mood"] == [[10, 20], pytest.approx([-0.2, -0.1])]
    assert conflict["lines"]["balance"] == conflict["lines"]["gate"] == {}
    assert found["conflict"]["rlw"]["lines"]["gate"]["like/1"] == [[10, 20], [0.3, 0.3]]


def test_baselines_come_from_the_run_that_has_them(found):
    assert found["baselines"] == {"gbdt": {"like": {"auc": 0.71, "gauc": 0.6, "logloss": 0.55}}}


def test_nothing_finished_says_nothing(plan, prepared, tmp_path):
    failures = {(variant.name, seed): "lost" for variant, seed in plan.trainings()}
    found = summarise(plan, read_results(plan, prepared.manifest, str(tmp_path), failures, 10), 10)
    assert found["differences"]["sum"] == {"like": {}, "rating": {}, "mood": {}}
    assert found["relative_change"]["sum"] == {"of_metric": None, "above_chance": None}
    assert found["cost"]["all_alone"] is None


def test_runs_over_other_rows_are_refused(plan, prepared, world, tmp_path):
    write_runs(tmp_path, plan, world, {})
    path = tmp_path / "rlw-seed1/predictions.parquet"
    pq.write_table(pq.read_table(path).slice(5), path)
    with pytest.raises(DataError, match=r"alone-like-seed0 and .*rlw-seed1 were not evaluated on the same rows"):
        read_results(plan, prepared.manifest, str(tmp_path), {}, 10)


def test_a_run_without_its_summary_is_named(plan, prepared, world, tmp_path):
    write_run(tmp_path / "alone-like-seed0", plan, plan.variants[0], 0, world, {})
    (tmp_path / "alone-like-seed0/training.json").write_text("{")
    with pytest.raises(DataError, match=r"alone-like-seed0/training.json cannot be read"):
        read_results(plan, prepared.manifest, str(tmp_path), {}, 10)
