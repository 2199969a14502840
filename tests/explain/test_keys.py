from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Field, PositiveInt

from mtrec_ray.config import Part, Run, Stage, Task
from mtrec_ray.explain.keys import all_keys, first_sentence, keys_of
from mtrec_ray.model.towers.ple import ProgressiveLayeredExtraction

KEYS = {key.path: key for key in all_keys(Run)}


class Documented(Part):
    """As pydantic reads the docstrings of attributes, by which ours are checked."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    width: int = 3
    """Of a layer,
    in numbers."""
    depth: int
    other: Annotated[float, Field(gt=0)] = 0.5
    """Something else."""


class Derived(Documented):
    depth: int = 2
    """Now with a docstring."""
    width: int = 4


def test_the_docstring_of_a_key_is_the_one_pydantic_finds_also_of_inherited_keys():
    for part in (Documented, Derived):
        found = {key.path: key.doc for key in keys_of(part)}
        assert found == {name: field.description or "" for name, field in part.model_fields.items()}
    assert {key.path: key.doc for key in keys_of(Derived)} == {
        "width": "",
        "depth": "Now with a docstring.",
        "other": "Something else.",
    }


def test_parameters_inherit_keys_and_docstrings():
    found = {key.path: (key.default, key.doc) for key in keys_of(ProgressiveLayeredExtraction.Params)}
    assert found["experts"] == ("2", "Of each task.")
    assert set(found) == set(ProgressiveLayeredExtraction.Params.model_fields)


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("train.batch_requests", "whole number > 0", "32"),
        ("train.warmup", "number ≥ 0, ≤ 1", "0.05"),
        ("train.clip_norm", "number > 0", "1.0"),
        ("train.lora_plus", "number ≥ 1", None),
        ("history.lag", "duration", "0.0"),
        ("tasks.<name>.window", "duration", None),
        ("split.by", "time | user | column", "time"),
        ("data.period", "duration", None),
        ("data.logs", "text or list of texts", None),
        ("data.categories", "list of texts or mappings", "[]"),
        ("data.users.time_unit", "s | ms | us | ns | iso", None),
        ("backbone", "text or mapping", None),
        ("features.hidden", "list of whole numbers > 0", "[128]"),
        ("strategy.stages[].train", "list of adapters | towers | tables", "[adapters, towers, tables]"),
        ("augment.domains", "mapping of names to numbers > 0, ≤ 1", "{}"),
        ("compare.methods", "list of texts or mappings", "[{method: sum}]"),
        ("engine.activation_checkpointing", "true | false", "false"),
    ],
)
def test_type_and_default_in_words(path, kind, default):
    assert (KEYS[path].takes, KEYS[path].default) == (kind, default)


def test_only_keys_without_a_default_are_required():
    required = {path for path, key in KEYS.items() if key.required}
    assert {"name", "data", "tasks", "data.columns.user", "strategy.stages[].until"} <= required
    assert not required & {"train.lora_plus", "seed", "backbone"}


def test_every_part_is_found_below_its_key():
    parts = {path: key.part for path, key in KEYS.items() if key.part is not None}
    assert parts["tasks"] is Task
    assert parts["strategy.stages"] is Stage
    assert KEYS["adapter.kind"].choices[:2] == ("lora", "dora")
    assert {f"train.learning_rate.{group}" for group in ("adapters", "towers", "tables")} <= set(KEYS)


@pytest.mark.parametrize(
    ("path", "asked", "fits"),
    [
        ("tasks.<name>.kind", "tasks.kind", True),
        ("tasks.<name>.kind", "tasks.click.kind", True),
        ("tasks.<name>.kind", "tasks.<name>.kind", True),
        ("tasks.<name>.kind", "tasks.click.label", False),
        ("tasks", "tasks.click", False),
        ("strategy.stages[].layers", "strategy.stages[0].layers", True),
        ("strategy.stages[].layers", "strategy.stages.layers", True),
        ("data.items.key", "data_items.key", False),
    ],
)
def test_a_path_may_have_the_names_of_a_config(path, asked, fits):
    assert KEYS[path].is_at(asked) == fits


@pytest.mark.parametrize(
    ("doc", "first"),
    [
        ("One. Two.", "One."),
        ("As-of, e.g. `user`; or not. More.", "As-of, e.g. `user`; or not."),
        (
            "A rate of 0.5 of (Zhu et al. 2017,\n    section 4) it.\n\n    Rest.",
            "A rate of 0.5 of (Zhu et al. 2017, section 4) it.",
        ),
        ("Without an end", "Without an end"),
        (None, ""),
    ],
)
def test_first_sentence(doc, first):
    assert first_sentence(doc) == first


def test_literals_within_unions_count_as_choices_and_bounds_of_positive_numbers_are_told():
    class Mixed(Part):
        word: Literal["a", "b"] | None = None
        count: PositiveInt | None = None

    word, count = keys_of(Mixed)
    assert (word.choices, word.takes, word.default) == (("a", "b"), "a | b", None)
    assert count.takes == "whole number > 0"
