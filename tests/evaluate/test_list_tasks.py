"""Tasks about lists from predictions to the page: a ranking task, and objectives over the lists that it orders."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray import config_file
from mtrec_ray.data.manifest import NumberEntry, TaskEntry
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.evaluate import baselines
from mtrec_ray.evaluate.evaluate import evaluate_run
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.evaluate.judged import Judged
from mtrec_ray.evaluate.metrics import METRICS
from mtrec_ray.tasks.kinds import build_kinds
from tests.evaluate.outline import outline_of
from tests.evaluate.world import DAY, make_world, write_log, write_predictions, write_prepared

CONFIG = """
name: lists
data: {logs: logs.csv, columns: {user: user, item: item, time: time}, categories: [genres]}
tasks:
  like: {kind: ranking, label: rating >= 4, feedback_delay: 0s}
  rating: {kind: regression, label: rating, feedback_delay: 0s}
  mood: {kind: multiclass, classes: 3, label: mood, feedback_delay: 0s}
  varied: {kind: diversity, parent: like, weight: 0.1, params: {by: genres}}
  fresh: {kind: novelty, parent: like, weight: 0.1}
evaluate: {bootstrap: 30, baselines: [constant, running_rates, gbdt]}
"""
OBJECTIVES = {"varied": "diversity", "fresh": "novelty"}


@pytest.fixture(scope="module")
def world():
    """Few users and days, so that several rows of a user are on one day: they were shown together."""
    found = make_world(users=8)
    shown = np.bincount(found.item[found.split == "train"], minlength=found.item.max() + 1)
    nothing = np.full((len(found.user), len(OBJECTIVES)), np.nan)
    return replace(
        found,
        time=(found.time // DAY // 4 * 4 + 1) * DAY,
        number=np.log1p(shown[found.item]),
        labels=np.concatenate([found.labels, nothing], axis=1),
    )


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    manifest = write_prepared(folder, world)
    none = dict.fromkeys(manifest.shards, 0)
    tasks = [task.model_copy(update={"kind": "ranking"}) if task.name == "like" else task for task in manifest.tasks]
    tasks += [
        TaskEntry(name=name, kind=kind, labels="none", observed=none, positives=none, mean=0.0, std=0.0)
        for name, kind in OBJECTIVES.items()
    ]
    numbers = [NumberEntry(name="item.shown", index=0, kind="aggregate", mean=0, std=1, quantiles=[0])]
    manifest = manifest.model_copy(update={"tasks": tasks, "numbers": numbers})
    (folder / "manifest.json").write_text(manifest.to_json())
    return str(folder), manifest


@pytest.fixture(scope="module")
def run():
    return config_file.parse(CONFIG)


@pytest.fixture(scope="module")
def evaluated(prepared, world, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lists"
    folder.mkdir()
    path = folder / "predictions.parquet"
    write_predictions(path, world)
    table = pq.read_table(path)
    score = table.column("score.like").to_numpy()
    logit = pa.array(np.log(score / (1 - score)))  # no probability, as a ranking task gives it
    pq.write_table(table.set_column(table.column_names.index("score.like"), "score.like", logit), path)
    write_log(folder / "metrics.jsonl")
    return folder, evaluate_run(str(folder), prepared[0], run)


def lists(world, split="test"):
    """Rows of each list of a split, by a loop: one user, one day."""
    found: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(world.split == split):
        found.setdefault((world.user[row], world.time[row]), []).append(row)
    return list(found.values())


def test_facts_are_looked_up_in_the_shards(prepared, world, run):
    folder, manifest = prepared
    rows = np.flatnonzero(world.split == "test")[::-2]
    kinds = build_kinds(manifest, run.tasks)
    look_up = facts_of(Shards(folder, manifest, "test"))
    facts = look_up(rows, kinds)
    same = facts.users[:, None] == facts.users[None, :]
    np.testing.assert_array_equal(same, world.user[rows][:, None] == world.user[rows][None, :])
    np.testing.assert_array_equal(facts.traits["varied"], world.genres[rows])
    most = np.log1p((world.split == "train").sum())
    kept = rows % 50 != 0  # the others are missing: never shown
    expected = (most - world.number[rows]) / np.log(2)
    np.testing.assert_allclose(facts.traits["fresh"][kept], expected[kept], rtol=1e-5)
    np.testing.assert_allclose(facts.traits["fresh"][~kept], most / np.log(2), rtol=1e-5)
    again = look_up(rows[:3], kinds)
    np.testing.assert_array_equal(again.traits["varied"], facts.traits["varied"][:3])


def test_the_ranking_task_is_measured_within_what_was_shown_together(evaluated, world):
    entry = evaluated[1]["splits"]["test"]["tasks"]["like"]
    mixed = [rows for rows in lists(world) if {0.0, 1.0} <= set(world.labels[rows, 0].tolist())]
    assert entry["lists"] == len(mixed) > 10
    assert 0 < entry["ndcg@10"] <= 1
    assert "logloss" not in entry
    low, high = entry["intervals"]["ndcg@10"]
    assert low <= entry["ndcg@10"] <= high


def test_an_objective_is_measured_on_the_scores_of_its_parent(evaluated, world):
    folder, found = evaluated
    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    test = table[table["split"] == "test"]
    rows = test["row_id"].to_numpy()
    judged = Judged(
        np.zeros(len(rows)), test["score.like"].to_numpy(), test["user"].to_numpy(), 0.0, test["shown"].to_numpy()
    )
    varied = found["splits"]["test"]["tasks"]["varied"]
    assert varied["ild@10"] == pytest.approx(METRICS["ild@10"](judged._replace(traits=world.genres[rows])))
    assert varied["n"] == len(rows)
    fresh = found["splits"]["test"]["tasks"]["fresh"]
    assert fresh["coverage@10"] == pytest.approx(METRICS["coverage@10"](judged._replace(items=test["item"].to_numpy())))
    assert fresh["intervals"]["coverage@10"] is None
    assert fresh["novelty@10"] > 0


def test_baselines_score_no_objective_but_their_lists_are_measured(evaluated, prepared, run):
    for name in baselines.COMPUTED:
        scored = baselines.score(name, *prepared, run, ["test"])
        assert not OBJECTIVES.keys() & (scored.scores["test"].keys() | scored.notes.keys())
    test = evaluated[1]["splits"]["test"]
    assert {"varied", "fresh", "like"} <= test["baselines"]["gbdt"].keys()
    difference = test["tasks"]["varied"]["difference"]["gbdt"]["ild@10"]["value"]
    assert difference == pytest.approx(
        test["tasks"]["varied"]["ild@10"] - test["baselines"]["gbdt"]["varied"]["ild@10"]
    )


def test_a_constant_orders_nothing(evaluated):
    like = evaluated[1]["splits"]["test"]["baselines"]["constant"]["like"]
    assert like["gauc"] == pytest.approx(0.5)
    assert like["ndcg@10"] < evaluated[1]["splits"]["test"]["tasks"]["like"]["ndcg@10"]


def test_the_page_shows_them(evaluated):
    page = (evaluated[0] / "report.html").read_text(encoding="utf-8")
    outline = outline_of(page)
    assert outline.open == []
    text = " ".join("".join(outline.text).split())
    for expected in (
        "NDCG@10",
        "ILD@10",
        "novelty@10",
        "coverage@10",
        "varied",
        "lists that define them",
        "ROC of like",
    ):
        assert expected in text, expected
    assert "Calibration of like" not in text  # its scores are no probabilities
    json.loads((evaluated[0] / "metrics.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
