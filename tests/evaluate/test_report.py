"""evaluate_run on a hand-written run folder: the files, their schema, and the page."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from mtrec_ray import config_file
from mtrec_ray.errors import DataError
from mtrec_ray.evaluate.evaluate import evaluate_run
from mtrec_ray.evaluate.report import facts
from tests.evaluate.outline import outline_of
from tests.evaluate.world import CONFIG, TASKS, write_log, write_predictions

NOTE = "one sequence per candidate: BloomModel cannot be packed"


@pytest.fixture(scope="module")
def evaluated(prepared, world, tmp_path_factory):
    """A run named with what HTML would trip over, and its metrics."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    folder.mkdir()
    write_predictions(folder / "predictions.parquet", world)
    write_log(folder / "metrics.jsonl")
    with (folder / "metrics.jsonl").open("a") as file:  # noted again after a restart
        file.writelines(json.dumps({"kind": "note", "step": step, "text": NOTE}) + "\n" for step in (0, 20))
    run = config_file.parse(CONFIG, ["evaluate.bootstrap=50", "data.logs=a<b>&c.csv"])
    return folder, evaluate_run(str(folder), prepared[0], run)


@pytest.fixture(scope="module")
def page(evaluated):
    return (evaluated[0] / "report.html").read_text(encoding="utf-8")


def test_metrics_json_is_what_was_returned_and_holds_the_contract(evaluated, world):
    folder, returned = evaluated
    found = json.loads((folder / "metrics.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert found == json.loads(json.dumps(returned))
    like = found["splits"]["test"]["tasks"]["like"]
    assert {"auc", "gauc", "logloss", "ne", "calibration", "n", "positives", "users", "intervals"} <= like.keys()
    assert {"rows_read", "rows_quarantined", "requests", "candidates"} <= found["data"].keys()
    assert found["data"]["quarantine"] == {"no time": 2, "no user": 1}
    assert found["throughput"].keys() == {"candidates_per_s", "tokens_per_s", "ingest_wait_share"}
    assert found["throughput"]["tokens_per_s"] == 52_000
    assert found["training"] == {"notes": [NOTE]}
    assert found["baselines"].keys() == {"constant", "running_rates", "gbdt"}
    assert found["baselines"]["gbdt"]["like"].keys() == like.keys() - {"difference"}
    assert found["splits"].keys() == {"valid", "test"}


def test_the_page_tells_what_training_noted(page):
    assert page.count(f"<dd>{NOTE}</dd>") == 1


def test_facts_are_those_of_the_run(prepared):
    changes = [
        "towers.kind=ple",
        "balance.method=pcgrad",
        "strategy.stages=[{until: 0.5, train: [towers]}, {until: 1}]",
    ]
    changes += ["strategy.tasks=round_robin", "position.method=pal", "train.epochs=1"]
    run, manifest = config_file.parse(CONFIG, changes), prepared[1]
    ends = {"train_until": 1_705_017_600_000_000, "valid_until": 1_705_104_000_500_000}
    told = facts(run, manifest.model_copy(update={"boundaries": ends}))
    assert told["split"] == "by time: train until 2024-01-12 00:00:00, valid until 2024-01-13 00:00:00 UTC"
    assert (told["towers"], told["tasks combined by"]) == ("ple, position pal", "pcgrad")
    assert told["strategy"] == "tasks round_robin, 2 stages"
    assert told["training"].startswith("1 epoch, ")
    plain = facts(config_file.parse(CONFIG, ["split.by=user"]), manifest.model_copy(update={"boundaries": {}}))
    assert plain["split"] == "by user: 0.1 valid, 0.1 test"
    assert plain["towers"] == "shared_bottom"
    assert "strategy" not in plain


def test_anyone_can_recompute_the_figures_from_the_files(evaluated):
    folder, found = evaluated
    test = pq.read_table(folder / "predictions.parquet").filter(pc.field("split") == "test").to_pandas()
    scores = pq.read_table(folder / "baselines/gbdt.parquet").filter(pc.field("split") == "test").to_pandas()
    both = test.merge(scores, on="row_id", suffixes=("", "_gbdt")).dropna(subset="label.like")
    entry = found["splits"]["test"]["tasks"]["like"]
    assert entry["n"] == len(both)
    assert entry["auc"] == pytest.approx(roc_auc_score(both["label.like"], both["score.like"]))
    gbdt = roc_auc_score(both["label.like"], both["score.like_gbdt"])
    assert found["baselines"]["gbdt"]["like"]["auc"] == pytest.approx(gbdt, abs=1e-6)
    assert entry["difference"]["gbdt"]["auc"]["value"] == pytest.approx(entry["auc"] - gbdt, abs=1e-6)
    low, high = entry["difference"]["gbdt"]["auc"]["interval"]
    assert low < entry["auc"] - gbdt < high


def test_intervals_hold_the_value(evaluated):
    for entry in evaluated[1]["splits"]["test"]["tasks"].values():
        for name, (low, high) in entry["intervals"].items():
            assert low < entry[name] < high


def test_slices_split_the_rows(evaluated):
    entry = evaluated[1]["splits"]["test"]["tasks"]["rating"]
    rows = {name: part["n"] for name, part in entry["slices"].items()}
    assert sum(n for name, n in rows.items() if name.startswith("history")) == entry["n"]
    assert sum(n for name, n in rows.items() if name.startswith("user")) == entry["n"]
    assert sum(n for name, n in rows.items() if name.startswith("item")) == entry["n"]


def test_constant_has_ne_one(evaluated):
    assert evaluated[1]["baselines"]["constant"]["like"]["ne"] == pytest.approx(1)


@pytest.fixture(scope="module")
def outline(page):
    return outline_of(page)


def test_the_page_is_well_formed(outline):
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))


def test_the_page_loads_nothing(page, outline):
    assert all(link.startswith("#") for link in outline.links)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert not re.search(r"@import|url\((?!#)|<script|<link", page)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(outline.ids)


def test_figures_take_their_colours_from_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    colours = {colour for drawing in drawings for colour in re.findall(r"#[0-9a-f]{6}\b", drawing)}
    assert colours == set()
    assert all("var(--ink)" in drawing and "var(--series-0)" in drawing for drawing in drawings)


def test_the_page_says_what_it_must(outline, evaluated):
    text = " ".join("".join(outline.text).split())
    found = evaluated[1]
    like = found["splits"]["test"]["tasks"]["like"]
    assert f"{like['auc']:.4f}" in text
    for expected in (
        "demo",
        "gradient-boosted trees",
        "running rates",
        "user in train",
        "no time",
        "52,000",
        "2.0%",
        "batch_requests: 32",
        "Validation AUC",
        "ROC of like",
        "Errors of rating",
        found["run"]["machine"],
        "0123456789abcdef",
        "a<b>&c.csv",
        "How the baselines were made",
        "Results on valid",
    ):
        assert expected in text, expected
    baselines = {name: by_task["like"]["auc"] for name, by_task in found["baselines"].items()}
    best = max(baselines, key=baselines.get)
    titles = {"running_rates": "running rates", "gbdt": "gradient-boosted trees", "constant": "constant"}
    lead = f"{like['auc'] - baselines[best]:+.4f}".replace("-", "−")
    assert f"{lead} against {titles[best]}" in text, "the tile of the task"
    assert "can make this model look worse, never better" in text
    # 2 x (like, rating), train loss, and the four validation metrics of the log
    assert outline.counts["svg"] == 4 + 1 + 5


def test_the_best_of_each_column_is_marked(page):
    assert page.count('class="best"') >= 2 * sum([4, 2, 2])


def test_an_unscored_task_and_no_log_and_one_split(prepared, world, tmp_path):
    table = pq.read_table(_predictions(tmp_path, world))
    labels = pa.array(np.full(table.num_rows, np.nan))
    table = table.set_column(table.column_names.index("label.like"), "label.like", labels)
    pq.write_table(table.filter(pc.field("split") == "valid"), tmp_path / "predictions.parquet")
    run = config_file.parse(CONFIG, ["evaluate.bootstrap=0", "evaluate.baselines=[constant]", "backbone=none"])
    found = evaluate_run(str(tmp_path), prepared[0], run)
    like = found["splits"]["valid"]["tasks"]["like"]
    assert (like["n"], like["auc"], like["undefined"]["auc"]) == (0, None, "no observed rows")
    assert like["intervals"]["auc"] is None
    page = (tmp_path / "report.html").read_text()
    assert "no observed rows" in page
    assert "no training log" in page


def test_the_page_tells_what_a_run_began_with(prepared, world, tmp_path):
    _predictions(tmp_path, world)
    part = {"part": "ids.user", "unit": "rows", "carried": 1234, "fresh": 5, "left": 0}
    start = {"from": "runs/monday", "from_step": 70, "parts": [part]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "start", "step": 0, "epoch": 0.0} | start) + "\n")
    run = config_file.parse(CONFIG, ["evaluate.bootstrap=0", "evaluate.baselines=[]", "backbone=none"])
    assert evaluate_run(str(tmp_path), prepared[0], run)["start"] == start
    page = (tmp_path / "report.html").read_text()
    assert "The weights of runs/monday, step 70:" in page
    assert "<td>ids.user</td><td>rows</td><td>1,234</td><td>5</td><td>0</td>" in page


def _predictions(folder, world):
    write_predictions(folder / "predictions.parquet", world)
    return folder / "predictions.parquet"


def test_side_features_are_a_run_below_the_run(prepared, world, tmp_path):
    _predictions(tmp_path, world)
    below = tmp_path / "side_features"
    below.mkdir()
    write_predictions(below / "predictions.parquet", world, seed=5)
    run = config_file.parse(CONFIG, ["evaluate.bootstrap=0", "evaluate.baselines=[side_features]"])
    found = evaluate_run(str(tmp_path), prepared[0], run)
    assert found["baselines"]["side_features"]["like"]["n"] == found["splits"]["test"]["tasks"]["like"]["n"]
    (below / "predictions.parquet").unlink()
    with pytest.raises(DataError, match=r"side_features/predictions\.parquet does not exist"):
        evaluate_run(str(tmp_path), prepared[0], run)


def test_extra_columns_must_score_the_same_rows(prepared, world, tmp_path):
    path = _predictions(tmp_path, world)
    pq.write_table(pq.read_table(path).slice(0, 200), tmp_path / "other.parquet")
    run = config_file.parse(CONFIG, ["evaluate.baselines=[]"])
    with pytest.raises(DataError, match=r"other.parquet scores \d+ rows of split 'valid'"):
        evaluate_run(str(tmp_path), prepared[0], run, {"other run": str(tmp_path / "other.parquet")})


@pytest.mark.parametrize("task", TASKS)
def test_predictions_without_a_task_are_refused(prepared, world, tmp_path, task, run):
    path = _predictions(tmp_path, world)
    pq.write_table(pq.read_table(path).drop_columns([f"score.{task}"]), path)
    with pytest.raises(DataError, match=rf"lacks the columns score\.{task}"):
        evaluate_run(str(tmp_path), prepared[0], run)
