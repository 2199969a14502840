"""The page, the JSON and the words of a made-up comparison."""

import copy
import json
import re

import pytest

from mtrec_ray.compare import wording
from mtrec_ray.compare.report import render
from mtrec_ray.compare.summary import summarise
from tests.evaluate.outline import outline_of


@pytest.fixture(scope="module")
def page(written):
    return (written[0] / "report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join("".join(outline_of(page).text).split())


def test_compare_json_is_what_was_returned(written):
    folder, found = written
    assert json.loads((folder / "compare.json").read_text(), parse_constant=lambda text: pytest.fail(text)) == found


def test_the_page_is_well_formed_and_loads_nothing(page):
    outline = outline_of(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith("#") for link in outline.links)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert not re.search(r"@import|url\((?!#)|<script|<link", page)


def test_figures_take_their_colours_from_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert {colour for drawing in drawings for colour in re.findall(r"#[0-9a-f]{6}\b", drawing)} == set()
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) <= set(re.findall(r"(--[a-z0-9-]+):", page))


def test_the_first_sentence_says_where_it_does_not_pay(page, written):
    found = written[1]
    rmse = wording.with_interval(found["differences"]["sum"]["rating"]["rmse"])
    first = found["verdicts"][0]["sentences"][0]
    assert first.startswith(f"Learning together (sum) is worse on rating (RMSE {rmse}) and better on like (AUC +")
    assert "; no difference found on mood (accuracy " in first
    assert first in text_of(page)


def test_the_page_says_what_it_must(page, written):
    text, found = text_of(page), written[1]
    for expected in (
        "does learning together pay?",
        "rlw: cosines of gradients",
        "rlw: weights of the method",
        "rlw: experts of like",
        "histories are the same in all trainings and hold the feedback of all tasks: what is compared is the objective",
        "One model for each of the 3 tasks takes 3 trainings: 2:30 of training steps a seed together, against one "
        "joint training: sum 1:15 (50% of that)",
        "Not logged: weights of a balance method, as of the plain sum, which has none; gates",
        "1 of 10 trainings failed",
        "step 7: the loss of <like> & mood is not finite.",
        "rlw-seed1",
        "512 MiB",
        "a<b>&c.csv",
        found["run"]["machine"],
        wording.percent_with_interval(found["relative_change"]["sum"]["of_metric"]),
        wording.percent_with_interval(found["relative_change"]["sum"]["above_chance"]),
    ):
        assert expected in text, expected
    assert "<td>gradient-boosted trees</td><td>0.7100</td>" in page
    # like and mood: their main metric and the loss; rating: one; average; cost; cosines of both, weights, gate
    assert outline_of(page).counts["svg"] == 2 + 2 + 1 + 1 + 1 + 2 * 2 + 2


def test_the_table_of_the_terminal(written):
    lines = wording.table(written[1]).splitlines()
    assert lines[0].split() == ["alone", "sum", "rlw"]
    auc = next(line for line in lines if line.startswith("like AUC ↑"))
    assert re.search(r"0\.\d{4}  \+0\.\d{4} \[\+0\.\d{4}, \+0\.\d{4}\] better  [+−]0\.\d{4} \[.*\]$", auc)
    assert any(line.startswith("rating RMSE ↓") and line.count("worse") == 1 for line in lines)
    assert lines[-1].split() == ["time", "of", "training", "2:30", "1:15", "1:15"]
    assert len({line.rstrip() for line in lines}) == len(lines) == 1 + 3 + 2 + 2 + 2


def test_no_difference_anywhere_opens_with_that(written):
    found = copy.deepcopy(written[1])
    for task in found["tasks"]:
        found["differences"]["sum"][task["name"]][task["metric"]]["tone"] = "even"
    sentence = wording.verdicts(found)[0]["sentences"][0]
    assert sentence.startswith("No difference found between learning together (sum) and each task alone on like (AUC ")


def test_one_seed_is_said_to_be_one(written):
    found = written[1] | {"seeds": [0]}
    assert wording.verdicts(found)[0]["sentences"][-1].startswith(
        "With one seed this is a difference between trainings"
    )


def test_a_comparison_of_failures_still_has_a_page(plan, written):
    from mtrec_ray.compare.results import Results

    failures = {(variant.name, seed): "lost" for variant, seed in plan.trainings()}
    found = summarise(plan, Results("", {}, [], failures)) | {"run": written[1]["run"]}
    found |= {"verdicts": wording.verdicts(found)}
    text = text_of(render(found, plan))
    assert "sum: nothing can be said of like, rating, mood." in text
    assert "10 of 10 trainings failed" in text
    assert "Not all trainings came to their end" in text
    assert wording.table(found).splitlines()[-1].split() == ["time", "of", "training", "–", "–", "–"]
