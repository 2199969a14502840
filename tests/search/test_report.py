"""The page and the JSON of made-up searches."""

import json
import re
import shlex
from itertools import pairwise

import pytest

from mtrec_ray import config_file
from mtrec_ray.search.report import hours, seconds, title, write_report
from mtrec_ray.search.select import select
from mtrec_ray.search.summary import command, cost, rungs
from tests.evaluate.outline import outline_of
from tests.search.searches import AUC, CONFIG, FINISH, LOSS, made_up, search_run, trial


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A search of two objectives, with what HTML would trip over."""
    folder, records, run = tmp_path_factory.mktemp("tuned"), made_up(), search_run("data.logs=a<b>&c.csv")
    records[5] = records[5].ended("failed", "expected <rank> & found nothing")
    records[7] = records[7].ended("running")
    selection = select(records, [AUC, FINISH], run.tune)
    facts = {"mode": "stacked, since every trial fits"}
    return folder, write_report(str(folder), run, records, [AUC, FINISH], selection, 0, "my configs/a.yaml", facts)


@pytest.fixture(scope="module")
def page(written):
    return (written[0] / "report.html").read_text(encoding="utf-8")


def test_tune_json_is_what_was_returned(written):
    folder, found = written
    assert json.loads((folder / "tune.json").read_text(), parse_constant=lambda text: pytest.fail(text)) == found
    assert found["counts"] == {"finished": 8, "stopped": 13, "failed": 2, "running": 1}
    assert [trial["number"] for trial in found["trials"]] == list(range(24))
    assert found["selected"]["trial"] in found["front"]
    assert {best["trial"] for best in found["best"].values()} <= set(found["front"])
    assert 0 < found["hypervolume"]["history"][0] < found["hypervolume"]["value"] < 1
    assert found["cost"]["seconds"] == found["cost"]["startup_seconds"] + found["cost"]["step_seconds"]


def test_the_page_is_well_formed_and_loads_nothing(page):
    outline = outline_of(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert all(link.startswith("#") for link in outline.links)
    assert not re.search(r"@import|url\((?!#)|<script|<link", page)


def test_figures_take_their_colours_from_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert {colour for drawing in drawings for colour in re.findall(r"#[0-9a-f]{6}\b", drawing)} == set()
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) <= set(re.findall(r"(--[a-z0-9-]+):", page))


def test_the_page_says_what_it_must(page, written):
    text = " ".join("".join(outline_of(page).text).split())
    found = written[1]
    for expected in (
        found["selected"]["reason"],
        found["selected"]["command"],
        "8 finished, 13 stopped early, 2 failed, 1 end not seen",
        "finish AUC against like AUC",
        "Hypervolume over trials",
        "Parameters of the trials",
        "Budget per evaluation",
        "like AUC of all trials",
        "expected <rank> & found nothing",
        "trials/00005/config.yaml",
        "stacked, since every trial fits",
        "a<b>&c.csv",
        "CPU hours",
    ):
        assert expected in text, expected
    # the front, its growth, parameters, two curves, the budget, and importance where there is one
    drawn = 6 + sum(entry["reason"] is None for entry in found["importance"])
    assert outline_of(page).counts["svg"] == drawn


def test_the_command_gives_the_config_of_the_trial():
    values = {"tasks.like.weight": 1e-5, "adapter.kind": "frozen", "towers.hidden": [64, 32], "train.patience": None}
    words = shlex.split(command(search_run(), trial(3, 0.5, **values), "my configs/a.yaml"))
    assert words[:3] == ["mtrec", "train", "my configs/a.yaml"]
    assert set(words[3::2]) == {"--set"}
    run = config_file.parse(CONFIG, words[4::2])
    assert run.name == "tuned-trial-00003"
    assert run.tasks["like"].weight == 1e-5
    assert (run.adapter.kind, run.towers.hidden, run.train.patience) == ("frozen", [64, 32], None)


def test_rungs_count_every_trial_where_it_ended():
    found = rungs(made_up())
    assert found[0]["reached"] == 24
    for before, after in pairwise(found):
        assert before["on"] == after["reached"]
    assert all(
        sum(rung[key] for key in ("on", "finished", "stopped", "failed", "running")) == rung["reached"]
        for rung in found
    )
    assert found[-1] == {"evaluation": 9, "reached": 8, "on": 0, "finished": 8, "stopped": 0, "failed": 0, "running": 0}


def test_cost_splits_start_up_only_where_all_trials_tell_it():
    records = made_up(6)
    assert cost(records)["startup_seconds"] == 6 * 20.0
    for report in records[2].reports:
        del report["startup_seconds"]
    assert cost(records)["startup_seconds"] is None
    assert cost(records)["by_status"]["failed"]["startup_seconds"] == 20.0
    assert cost([])["seconds"] == 0


def test_one_objective_and_a_search_without_a_default(tmp_path):
    records, run = made_up(10), search_run("tune.objectives=[like/auc]", "tune.select=best")
    found = write_report(str(tmp_path), run, records, [AUC], select(records, [AUC], run.tune))
    page = (tmp_path / "report.html").read_text()
    assert found["hypervolume"] is None
    assert found["best_so_far"]["history"] == sorted(found["best_so_far"]["history"])
    assert "Best like AUC so far" in page
    assert "config as it was" not in page


def test_three_objectives_of_either_direction(tmp_path):
    objectives, records = [LOSS, AUC, FINISH], made_up(12)
    for record in records:
        for line in record.reports:
            line["like/logloss"] = 1.2 - line["like/auc"]
    run = search_run("tune.objectives=[like/logloss, like/auc, finish/auc]")
    found = write_report(str(tmp_path), run, records, objectives, select(records, objectives, run.tune), 0)
    losses = [t["objectives"]["like/logloss"] for t in found["trials"] if t["status"] in ("finished", "stopped")]
    assert found["best"]["like/logloss"]["value"] == min(losses)
    assert found["best_so_far"]["history"] == sorted(found["best_so_far"]["history"], reverse=True)
    assert (tmp_path / "report.html").read_text().count(" against ") >= 3


def test_a_search_in_which_all_failed_has_a_page(tmp_path):
    records = [trial(n, None, status="failed") for n in range(3)]
    found = write_report(str(tmp_path), search_run(), records, [AUC, FINISH], None)
    page = (tmp_path / "report.html").read_text()
    assert found["selected"] is None
    assert "none is chosen" in page
    assert page.count('<td class="text">lost</td>') == 3


def test_a_search_without_reports_and_one_with_a_single_trial(tmp_path):
    nothing = [trial(0, None, status="failed")]
    nothing[0] = type(nothing[0])(0, "a", {"adapter.rank": 2}, "failed", "lost")
    write_report(str(tmp_path), search_run(), nothing, [AUC, FINISH], None)
    assert "No trial reported an evaluation" in (tmp_path / "report.html").read_text()
    single, run = [trial(0, 0.7)], search_run()
    write_report(str(tmp_path), run, single, [AUC, FINISH], select(single, [AUC, FINISH], run.tune), 0)
    assert "No parameter differs" in (tmp_path / "report.html").read_text()


def test_words():
    assert [title(name) for name in ("like/auc", "auto", "x/guest")] == ["like AUC", "train.metric", "x guest"]
    assert (title("like/logloss", arrow=True), title("auto", arrow=True)) == ("like log loss ↓", "train.metric ↑")
    assert [seconds(value) for value in (None, 42, 750, 11_520)] == ["–", "42 s", "12.5 min", "3.2 h"]
    assert [hours(value) for value in (36, 7200, 3_960_000)] == ["0.01", "2", "1,100"]


@pytest.mark.parametrize(("status", "said"), [("finished", ""), ("stopped", ", stopped at evaluation 9")])
def test_a_default_that_was_stopped_is_said_to_be_so(tmp_path, status, said):
    run = search_run()
    records = [made_up()[0].ended(status), *made_up()[1:]]
    write_report(str(tmp_path), run, records, [AUC, FINISH], select(records, [AUC, FINISH], run.tune), 0, "a.yaml", {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"config as it was{said}</th>" in page
    assert f"against the config as it was{said}<" in page
