import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Cells
from mtrec_ray.data.features.matches import declared_matches, likened, match_numbers
from mtrec_ray.data.features.value_rows import value_rows
from mtrec_ray.data.fitting.tally import Vocabulary
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate.candidates import read_candidates
from tests.data.by_hand import config

QUERY = {"column": "query_words", "separator": " "}
ITEMS = {"path": "items.csv", "key": "item", "text": "{title}", "categories": [{"column": "title", "separator": " "}]}


def run_of(*matches, **parts):
    return config(data__categories=[QUERY], data__items=ITEMS, features__matches=list(matches), **parts)


def cells(*texts):
    values = [text.split() for text in texts]
    return Cells(values, np.arange(len(values)))


def test_a_share_counts_the_values_themselves_each_once():
    left = cells("red shoe", "red red", "", "blue", "shoe")
    right = cells("shoe of leather", "red", "red", "", "red shoe shoe")
    matches = declared_matches(run_of("query_words * title"))
    found = match_numbers(matches, {"query_words": left, "title": right}, np.arange(5), np.zeros(5, int), None)
    assert found[:, 0].tolist() == pytest.approx([0.5, 1.0, np.nan, np.nan, 1.0], nan_ok=True)


def test_likeness_is_the_cosine_of_the_factors_of_the_statistics_that_a_candidate_is_given():
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(pa.array(["shoe", "red", "blue", "rare"]), 3)
    tastes = [{"title": rng.normal(size=(4, 3)).astype(np.float32)} for _ in range(2)]
    tables = {
        "query_words": cells("red shoe", "blue", "rare", "unheard"),
        "title": cells("blue", "red blue", "red", "red"),
    }
    fitted = _Fitted({"title": vocabulary}, {"query_words": 2, "title": 2}, [_Statistics(of) for of in tastes])
    row, given = np.array([0, 1, 2, 3, 0]), np.array([0, 1, 0, 0, 1])
    matches = declared_matches(run_of("query_words ~ title"))
    found = match_numbers(matches, tables, row, given, fitted)[:, 0]
    codes = {"shoe": 1, "red": 2, "blue": 3}
    for place, (r, k) in enumerate(zip(row, given, strict=True)):
        sides = []
        for name in ("query_words", "title"):
            known = [codes[word] for word in tables[name].values[r] if word in codes]
            sides.append(value_rows(tastes[k]["title"], np.array([[*known, -1, -1][:2]]))[0, 1:])
        expected = sides[0] @ sides[1] if sides[0].any() and sides[1].any() else np.nan
        assert found[place] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found[2:4]).all(), "words that have no factors"


@dataclasses.dataclass
class _Statistics:
    value_factors: dict


@dataclasses.dataclass
class _Fitted:
    categories: dict
    widths: dict
    statistics: list


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_words", "cannot read 'query_words'. Write e.g."),
        ("query_word * title", "no category is called 'query_word'.*Did you mean 'query_words'"),
        ("query_words ~ titel", "no category is called 'titel'.*Did you mean 'title'"),
        ("title * title", "compares a category with itself"),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        declared_matches(run_of(text))
    assert str(error.value).startswith("features.matches[0]: ")


def test_the_same_match_twice_is_refused():
    with pytest.raises(ConfigError, match=r"features.matches\[1\]: 'query_words \* title' is declared twice"):
        declared_matches(run_of("query_words * title", "query_words*title"))


def test_likeness_without_feedback_that_becomes_known_is_refused():
    tasks = {"like": {"label": "like"}}
    message = r"features.matches\[0\]: 'query_words ~ title' is learned from .* e.g. tasks.like.feedback_delay"
    with pytest.raises(ConfigError, match=message):
        declared_matches(run_of("query_words ~ title", tasks=tasks))
    assert declared_matches(run_of("query_words * title", tasks=tasks))


def test_only_likeness_needs_factors_and_data_is_prepared_for_its_matches():
    assert likened(run_of("query_words * title")) == set()
    assert likened(run_of("query_words ~ title")) == {"title"}
    assert settings(run_of("query_words * title")) != settings(run_of("query_words ~ title")) != settings(run_of())


def test_matches_are_numbers_of_prepared_candidates(tmp_path):
    rng = np.random.default_rng(4)
    words = np.array(["red", "blue", "shoe", "hat", "coat", "old"])
    titles = [" ".join(rng.choice(words[3 * (k % 2) : 3 + 3 * (k % 2)], 2, replace=False)) for k in range(12)]
    pa.csv.write_csv(pa.table({"item": [f"i{k}" for k in range(12)], "title": titles}), tmp_path / "items.csv")
    count = 2000
    item, user = rng.integers(0, 12, count), rng.integers(0, 40, count)
    query = rng.choice(words, count)
    has = np.array([query[n] in titles[item[n]].split() for n in range(count)])
    log = {
        "user": [f"u{n}" for n in user],
        "item": [f"i{k}" for k in item],
        "time": 1_700_000_000 + np.sort(rng.integers(0, 10**6, count)),
        "query_words": query,
        "like": (rng.random(count) < np.where(item % 2 == user % 2, 0.8, 0.2)).astype(int),
    }
    pa.csv.write_csv(pa.table(log), tmp_path / "log.csv")
    run = run_of("query_words * title", "query_words ~ title")
    text = run.model_dump(mode="json", exclude_unset=True)
    text["data"] |= {"logs": str(tmp_path / "log.csv"), "time_unit": "s", "prepared_dir": str(tmp_path / "prepared")}
    text["data"]["items"]["path"] = str(tmp_path / "items.csv")
    data = prepare(Run.model_validate(text), serial_tasks)
    names = [entry.name for entry in data.manifest.numbers]
    kinds = {entry.name: entry.kind for entry in data.manifest.numbers}
    assert kinds["query_words * title"] == kinds["query_words ~ title"] == "match"
    parts = [c for split in ("train", "valid", "test") for c in read_candidates(data.path, data.manifest, split)]
    numbers = np.concatenate([part.numbers for part in parts])
    order = np.argsort(np.concatenate([part.row_id for part in parts]))
    assert numbers[order, names.index("query_words * title")].tolist() == has.astype(float).tolist()
    likeness = numbers[order, names.index("query_words ~ title")]
    alike = np.isin(query, words[:3]) == (item % 2 == 0)  # half of the users like one half of the words
    assert likeness[alike].min() > 0.8
    assert likeness[~alike].max() < -0.8
