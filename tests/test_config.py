import pytest
from pydantic import ValidationError

from mtrec_ray.config import Category, Cluster, Data, History, Number, Run, Split, Task, Train, parse_duration

COLUMNS = {"user": "u", "item": "i", "time": "t"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("7d", 604800), ("1.5h", 5400), ("2w", 1209600)]
)
def test_durations_are_seconds(text, seconds):
    assert parse_duration(text) == seconds
    assert Task(label="click", feedback_delay=text).feedback_delay == seconds


def test_a_duration_without_a_unit_is_seconds():
    assert Task(label="click", feedback_delay=30).feedback_delay == 30
    assert Task(label="click", feedback_delay="30").feedback_delay == 30


@pytest.mark.parametrize("text", ["soon", "5 years", "-3h", "1h30m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValidationError, match="duration"):
        Task(label="click", feedback_delay=text)


def test_parts_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Train().epochs = 5


def test_a_column_name_is_a_short_form():
    data = Data(logs="x", columns=COLUMNS, categories=["page"], numbers=["price"])
    assert data.categories == [Category(column="page")]
    assert data.numbers == [Number(column="price")]
    assert Number(column="title", pattern=r"(\d+)", name="year").feature == "year"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "exactly one of `label`"),
        ({"label": "a", "event": "A"}, "exactly one of `label`"),
        ({"kind": "diversity", "label": "a"}, "kind 'diversity' is an objective over what is shown.*remove `label`"),
        ({"kind": "novelty", "feedback_delay": 0}, "remove `feedback_delay`"),
        ({"kind": "of_a_plugin", "observed": "seen"}, "exactly one of `label`"),
        ({"label": "a", "feedback_time": "t", "feedback_delay": "1h"}, "exclude each other"),
        ({"label": "a", "classes": 3}, "multiclass"),
        ({"label": "a", "kind": "multiclass"}, "multiclass"),
        ({"label": "a", "weight": -1}, "greater than or equal to 0"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(task, message):
    with pytest.raises(ValidationError, match=message):
        Task(**task)


@pytest.mark.parametrize("kind", ["diversity", "novelty", "of_a_plugin"])
@pytest.mark.parametrize("layout", ["impressions", "behaviours"])
def test_an_objective_over_what_is_shown_has_no_label(kind, layout):
    data = {"logs": "x", "layout": layout, "columns": {**COLUMNS, "event": "e"}, "candidate_event": "VIEW"}
    task = Run(name="run", data=data, tasks={"task": {"kind": kind}}).tasks["task"]
    assert not task.labelled
    assert Task(label="a").labelled
    assert Task(event="A").labelled


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "column"}, "split.column"),
        ({"column": "fold"}, "split.column"),
        ({"train_until": 5}, "both"),
        ({"by": "user", "train_until": 5, "valid_until": 6}, "by: time"),
        ({"valid": 0.6, "test": 0.5}, "leave rows"),
        ({"test": 0}, "greater than 0"),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(split, message):
    with pytest.raises(ValidationError, match=message):
        Split(**split)


def test_behaviours_need_event_types():
    with pytest.raises(ValidationError, match="candidate_event"):
        Data(logs="x", layout="behaviours", columns=COLUMNS)


@pytest.mark.parametrize(
    ("layout", "task", "message"),
    [("behaviours", {"label": "click"}, "needs `event`"), ("impressions", {"event": "LIKE"}, "needs `label`")],
)
def test_a_task_must_fit_the_layout(layout, task, message):
    data = {"logs": "x", "layout": layout, "columns": {**COLUMNS, "event": "e"}, "candidate_event": "VIEW"}
    with pytest.raises(ValidationError, match=message):
        Run(name="run", data=data, tasks={"task": task})


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "two words"])
def test_a_name_must_be_a_folder_name(name):
    with pytest.raises(ValidationError, match="name"):
        Run(name=name, data={"logs": "x", "columns": COLUMNS}, tasks={"click": {"label": "click"}})


def test_a_run_needs_a_task():
    with pytest.raises(ValidationError, match="tasks"):
        Run(name="run", data={"logs": "x", "columns": COLUMNS}, tasks={})


def test_the_backbone_has_a_short_form():
    run = Run(name="run", data={"logs": "x", "columns": COLUMNS}, tasks={"c": {"label": "c"}}, backbone="none")
    assert run.backbone.name == "none"


def test_a_history_of_one_event_is_refused_and_of_none_is_not():
    assert History(max_events=0).max_events == 0
    with pytest.raises(ValidationError, match="give 0 for no history, or 2 or more"):
        History(max_events=1)


def test_a_cluster_has_at_least_one_worker():
    with pytest.raises(ValidationError, match="workers"):
        Cluster(workers=0)
