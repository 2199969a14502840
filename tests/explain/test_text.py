import re

import pytest

from mtrec_ray.check.finding import CHECKS
from mtrec_ray.config import Run, Tune
from mtrec_ray.errors import ConfigError
from mtrec_ray.evaluate.judged import METRICS, base_name
from mtrec_ray.explain.keys import all_keys
from mtrec_ray.explain.names import families
from mtrec_ray.explain.text import FILLED, LANGUAGES, WORDS, explain, overview, table_in
from mtrec_ray.model.towers import TOWERS
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.search.reading import READERS
from mtrec_ray.tasks.kinds import KINDS

PATHS = {key.path for key in all_keys(Run)}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def section(title: str) -> dict[str, str]:
    """Name -> its line, of one section of the overview."""
    body = re.search(rf"^{title}[^\n]*\n(.*?)(?:\n\n|\Z)", overview(), re.MULTILINE | re.DOTALL)
    assert body is not None, title
    return dict(re.match(r"  (\S+)\s*(.*)", line).groups() for line in body[1].splitlines())


def test_the_overview_has_a_line_of_text_for_every_part_choice_and_registered_name():
    shown = {
        "Parts of a config": set(Run.model_fields),
        "Keys with a choice": set(WORDS) | {key.path for key in all_keys(Run) if key.choices},
        "Task kinds": set(KINDS.names()),
        "Tower architectures": set(TOWERS.names()),
        "Balance methods": set(METHODS.names()),
        "Metrics": {base_name(name) for name in METRICS.names() if METRICS[name].__module__.startswith("mtrec_ray.")},
        "Checks": set(CHECKS.names()),
    }
    for title, names in shown.items():
        found = section(title)
        assert set(found) == names, title
        assert all(found.values()), title
    assert section("Balance methods")["sum"] == "The sum weighted by the config's task weights alone."


def test_the_keys_that_are_told_of_apart_exist_and_are_all_that_names_stand_at():
    assert {*LANGUAGES, *WORDS, *FILLED} <= PATHS
    assert {place for family in families() for place in (family.where, family.params) if place} - {
        "mtrec check"
    } == FILLED


def test_no_name_hides_behind_a_part_of_the_config():
    assert not set(Run.model_fields) & {name for family in families() for name in family.members}


def test_a_part_shows_all_its_keys_and_where_further_keys_are():
    shown = explain("train")
    assert [line.split(":")[0].strip() for line in shown.splitlines() if re.match(r"  train\.\w+:", line)] == [
        path for path in (key.path for key in all_keys(Run)) if re.fullmatch(r"train\.\w+", path)
    ]
    assert "train.batch_requests: whole number > 0, default 32" in shown
    assert "Requests per optimizer step, over all workers." in shown
    assert "train.guards: mapping of names to mappings, default {}; `mtrec explain train.guards`" in shown
    assert "train.guards.<name>.loses_at_most: number ≥ 0" in explain("train.guards")


def test_a_name_shows_its_docstring_parameters_and_all_places_it_stands_at():
    ple = explain("ple")
    assert "Tang et al. 2020" in ple
    assert "Parameters (towers.params)" in ple
    assert "experts: whole number > 0, default 2" in ple
    both = explain("novelty")
    assert "novelty: a task kind (tasks.<name>.kind)" in both
    assert "novelty: a metric (train.metric)" in both
    assert "Lower is better. Reported for regression, watch_time." in explain("mae")
    assert "Metrics: auc (the main one), gauc, logloss." in explain("binary")


def test_params_show_those_of_every_name_that_has_some():
    shown = explain("tasks.params")
    assert {kind for kind in KINDS.names() if KINDS[kind].Params.model_fields} == set(
        re.findall(r"^(\w+)$", shown, re.MULTILINE)
    )
    assert "gamma: number ≥ 0, default 2.0" in shown


def test_a_key_is_found_by_its_end():
    shown = explain("learning_rate")
    assert "train.learning_rate.towers: number, default 0.001" in shown
    assert "pretrain.learning_rate: number > 0, default 0.002" in shown
    assert explain("max_events") == explain("history.max_events")


def test_a_key_filled_with_a_name_lists_the_names():
    assert re.search(r"^  cagrad +Conflict-averse descent", explain("balance.method"), re.MULTILINE)
    assert re.search(r"^  gauc +GAUC: AUC within each user", explain("train.metric"), re.MULTILINE)


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("trian", "Did you mean 'train'?"),
        ("pcgrd", "Did you mean 'pcgrad'?"),
        ("train.epoch", "train has no key 'epoch'. Did you mean 'epochs'?"),
        ("tasks.click.labl", "Did you mean 'tasks.label'?"),
        ("max_event", "Did you mean 'max_events'?"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(what, hint):
    with pytest.raises(ConfigError) as refused:
        explain(what)
    assert hint in str(refused.value)


def test_tables_of_docstrings_hold_the_words_of_the_code():
    def words(path: str) -> set[str]:
        return set(re.findall(r"^    (\w+)", table_in(LANGUAGES[path]), re.MULTILINE))

    assert words("tune.space") == set(READERS)
    schedulers = next(key for key in all_keys(Tune) if key.path == "scheduler").choices
    assert words("tune.scheduler") == set(schedulers)
    for path in LANGUAGES:
        assert table_in(LANGUAGES[path]) in re.sub(r"^  ", "", explain(path), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("word", "key"), [("lora", "adapter.kind"), ("asha", "tune.scheduler"), ("pal", "position.method")]
)
def test_a_word_that_a_key_takes_leads_to_the_key(word, key):
    assert re.search(rf"^  {re.escape(key)}: ", explain(word), re.MULTILINE)
    with pytest.raises(ConfigError, match=f"Did you mean '{word}'"):
        explain(f"{word}z")
