"""The parts of a run that the passes of `prepare` are given, and nothing else of it: they are part of the keys of what
is made, and what is left out here cannot have changed it.
"""

from typing import Any

from mtrec_ray.config import Backbone, Data, Features, History, Run, Split, Task
from mtrec_ray.labels import FITTED_PARAMS

FEATURES = {"ids", "min_count", "folds", "time", "aggregates", "matches"}
"""What side features are made of; the others are settings of the model."""
_READ = ("label", "event", "value", "observed", "classes", "kind", "feedback_time", "feedback_delay")
"""Of a task: what is asked of a row."""


def reading_part(run: Run) -> Run:
    """What the events of one file depend on, beside the file, the map of users and the number of buckets."""
    feedback = [f.model_copy(update={"within": None}) for f in _somewhere(run.data).feedback]
    tables = {"items": None, "users": None, "user_map": None}
    data = _somewhere(run.data).model_copy(
        update={**tables, "feedback": feedback, "max_user_events": None, "period": None}
    )
    asked = {name: {key: getattr(task, key) for key in _READ} for name, task in run.tasks.items()}
    tasks = {name: Task.model_construct(**of_task) for name, of_task in asked.items()}
    split = Split.model_construct(by=run.split.by, column=run.split.column)
    return _only(run, data=data, tasks=tasks, split=split)


def bucket_part(run: Run) -> Run:
    """What candidates, labels, splits and sums of a bucket depend on, beside its events, the tables, the boundaries of
    a split by time and what is fitted."""
    # With `by: user` the shares say which rows of a user are held out; by time they are in the boundaries.
    kept = {"by", "column", *(("valid", "test") if run.split.by == "user" else ())}
    split = Split.model_construct(**{key: getattr(run.split, key) for key in kept})
    return _only(run, data=_somewhere(run.data), tasks=_fitted_on(run), split=split, history=run.history)


def encoding_part(run: Run) -> Run:
    """What requests depend on, beside a part of a bucket, the rows of its tables, the tokenizer and what was fitted."""
    data = _somewhere(run.data).model_copy(
        update={"user_map": None, "unique_by": [], "max_user_events": None, "buckets": 1, "period": None}
    )
    return _only(run, data=data, tasks=_fitted_on(run), split=Split(), history=run.history)


def fitted_on(task: Task) -> dict[str, Any]:
    """Of a task all but its weight, and of its parameters those that change what is fitted on its labels."""
    params = {name: value for name, value in task.params.items() if name in FITTED_PARAMS.get(task.kind, ())}
    return task.model_dump(mode="json", exclude={"weight", "params"}) | {"params": params}


def _fitted_on(run: Run) -> dict[str, Task]:
    return {name: Task.model_construct(**fitted_on(task)) for name, task in run.tasks.items()}


def _somewhere(data: Data) -> Data:
    """Without where the files lie: it is what they hold that counts."""
    feedback = [f.model_copy(update={"logs": "", "partitions": {}}) for f in data.feedback]
    tables = {
        name: None if table is None else table.model_copy(update={"path": ""})
        for name, table in (("items", data.items), ("users", data.users), ("user_map", data.user_map))
    }
    places = {"logs": "", "partitions": {}, "prepared_dir": "", "max_bad_share": 1.0}
    return data.model_copy(update={**places, **tables, "feedback": feedback})


def _only(run: Run, data: Data, tasks: dict[str, Task], split: Split, history: History | None = None) -> Run:
    """With defaults in all other places; side features belong to what has a history."""
    features = Features() if history is None else Features(**run.features.model_dump(include=FEATURES))
    return Run.model_construct(
        name="part",
        plugins=run.plugins,
        data=data,
        tasks=tasks,
        split=split,
        history=history or History(),
        features=features,
        backbone=Backbone(name="none"),
    )
