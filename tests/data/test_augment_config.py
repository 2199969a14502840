"""Settings of augmentation: which are refused, which can be searched."""

import pytest

from mtrec_ray.config import Augment
from mtrec_ray.config_file import validate
from mtrec_ray.errors import ConfigError
from mtrec_ray.search.space import Space
from mtrec_ray.tasks.kinds import check_run
from tests.data.by_hand import config

TABLE = {"path": "others.csv", "key": "key", "text": "{name}"}


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"history_mask": 1}, "less than 1"),
        ({"negatives": 0}, "greater than 0"),
        ({"item_text": {}}, "give a table"),
        ({"item_text": {"path": "x", "key": "k"}}, "give a table"),
        ({"item_text": {**TABLE, "function": "f"}}, "not both"),
        ({"histroy_crop": 0.1}, "unknown key 'augment.histroy_crop'"),
    ],
)
def test_settings_that_say_nothing_are_refused(switch, message):
    tree = {**config().model_dump(mode="json"), "augment": switch}
    with pytest.raises(ConfigError, match=message):
        validate(tree)


def space_of(switch, **parts):
    tree = config(**parts).model_dump(mode="json")
    tree["tune"] = {"space": switch}
    return Space.parse(validate(tree))


def test_a_search_may_try_switches_that_do_something():
    nano = {"backbone": {"name": "nano"}}
    assert space_of({"augment.history_crop": {"uniform": [0, 1]}}, **nano).paths == ["augment.history_crop"]
    assert space_of({"augment.negatives": [0.2, 1.0]}).paths == ["augment.negatives"]
    for path, parts, reason in [
        ("augment.token_noise", {}, "backbone.name is none"),
        ("augment.history_reorder", {"features__history_dim": 4}, "backbone.name is none"),
        ("augment.history_mask", {}, "nothing reads the history"),
        ("augment.history_mask", {**nano, "history__max_events": 0}, "history.max_events is 0"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            space_of({path: {"uniform": [0, 0.5]}}, **parts)
    with pytest.raises(ConfigError, match="read once, before the first trial"):
        space_of({"augment.item_text": [None, TABLE]}, **nano)


def test_candidates_are_not_left_out_of_lists_that_an_objective_is_about():
    tasks = {"like": {"label": "like", "feedback_delay": 0}, "new": {"kind": "novelty", "parent": "like"}}
    run = config(tasks=tasks, features__aggregates=["item"])
    check_run(run)
    with pytest.raises(ConfigError, match=r"task 'new' is an objective over whole lists; set augment\.negatives: 1"):
        check_run(run.model_copy(update={"augment": Augment(negatives=0.5)}))
