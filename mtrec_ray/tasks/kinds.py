"""All built-in kinds in one registry, and the kinds of a run's tasks."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from mtrec_ray.config import Run, Task
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest
from mtrec_ray.tasks import (
    binary,
    conversion,
    delayed,
    lists,
    matching,
    multiclass,
    ordinal,
    query_match,
    ranking,
    regression,
    watch_time,
)
from mtrec_ray.tasks.columns import CategoryColumns, FeatureColumns, NumberColumn
from mtrec_ray.tasks.kind import KINDS, FittedTask, ProbabilityKind, TaskKind
from mtrec_ray.tasks.lists import ORDERING, ListObjective

__all__ = [
    "KINDS",
    "binary",
    "build_kinds",
    "check_run",
    "check_tasks",
    "conversion",
    "delayed",
    "lists",
    "matching",
    "multiclass",
    "ordinal",
    "query_match",
    "ranking",
    "regression",
    "watch_time",
]


class KindedTask(FittedTask, Protocol):
    """A fitted task that knows its kind: the manifest's `TaskEntry`."""

    @property
    def kind(self) -> str: ...


class Shard(Protocol):
    """The manifest's `ShardEntry`."""

    @property
    def candidates(self) -> int: ...


class FittedData(Protocol):
    """The part of the manifest that kinds are built from."""

    @property
    def tasks(self) -> Sequence[KindedTask]: ...

    @property
    def categories(self) -> Sequence[CategoryColumns]: ...

    @property
    def numbers(self) -> Sequence[NumberColumn]: ...

    @property
    def shards(self) -> Mapping[str, Sequence[Shard]]: ...


def build_kinds(fitted: FittedData, tasks: Mapping[str, Task]) -> list[TaskKind]:
    """The kinds of all tasks, in the order of `fitted.tasks` (the manifest's), with their parents.

    Raises:
        ConfigError: see `check_tasks`.
    """
    check_tasks(tasks)
    made: dict[str, TaskKind] = {}
    place = {task.name: (index, task) for index, task in enumerate(fitted.tasks)}
    train_rows = sum(shard.candidates for shard in fitted.shards.get("train", ()))
    columns = FeatureColumns.of(fitted.categories, fitted.numbers, train_rows)

    def make(name: str) -> TaskKind:
        if name not in made:
            index, task = place[name]
            config = tasks[name]
            parent = None if config.parent is None else make(config.parent)
            made[name] = KINDS[task.kind](task, index, config.params, parent, columns)
        return made[name]

    return [make(task.name) for task in fitted.tasks]


def check_run(run: Run) -> None:
    """What can be wrong with a run's tasks and what they need of the rest of the config; needs no data.

    Raises:
        ConfigError: see `check_tasks`; also a column that a kind needs and the config does not name.
    """
    check_tasks(run.tasks)
    for name, task in run.tasks.items():
        if task.window is not None and KINDS[task.kind].labels != "binary":
            raise ConfigError(
                f"tasks.{name}.window is for labels 0 and 1, and kind '{task.kind}' has others; remove it."
            )
        KINDS[task.kind].check_run(name, run)


def check_tasks(tasks: Mapping[str, Task]) -> None:
    """What can be wrong with tasks as a whole; needs no data.

    Raises:
        ConfigError: an unknown kind or parameter, a parent that is missing or does not fit, or no task with a weight.
    """
    for name, task in tasks.items():
        where = f"tasks.{name}"
        if task.kind not in KINDS:
            raise ConfigError(f"{where}.kind: '{task.kind}' is unknown.{suggest(task.kind, KINDS.names())}")
        kind = KINDS[task.kind]
        kind.check(name, task.params)
        if kind.chained and task.parent is None:
            what = "a step after another task, as a purchase after a click"
            if issubclass(kind, ListObjective):
                what = "an objective over lists that another task orders"
            others = suggest("", [other for other in tasks if other != name])
            raise ConfigError(f"{where}.parent: kind '{task.kind}' is {what}; name that task.{others}")
        if task.parent is not None:
            _check_parent(name, tasks)
    if not any(task.weight > 0 for task in tasks.values()):
        raise ConfigError("tasks: all weights are 0, so there is nothing to learn; give one task a weight above 0.")


def _check_parent(name: str, tasks: Mapping[str, Task]) -> None:
    where, parent = f"tasks.{name}.parent", tasks[name].parent
    assert parent is not None
    if parent not in tasks or parent == name:
        others = [other for other in tasks if other != name]
        raise ConfigError(f"{where}: there is no other task '{parent}'.{suggest(parent, others)}")
    kind = KINDS[tasks[parent].kind]
    if kind.matches:
        raise ConfigError(
            f"{where}: '{parent}', of kind '{tasks[parent].kind}', has no tower that another task could build on; name "
            "a task of another kind."
        )
    if issubclass(KINDS[tasks[name].kind], ListObjective):
        if not issubclass(kind, ORDERING):
            raise ConfigError(
                f"{where}: '{parent}' is of kind '{tasks[parent].kind}', whose score does not rise with one logit, and "
                f"'{name}' learns to order lists by it; name a task of kind binary, conversion, ranking or regression."
            )
        return  # an objective over lists is nobody's parent, so there is no circle
    if kind.labels == "binary" and KINDS[tasks[name].kind].chained and not issubclass(kind, ProbabilityKind):
        raise ConfigError(
            f"{where}: the scores of '{parent}', of kind '{tasks[parent].kind}', are no probabilities, which a step "
            "after it is computed with; give it kind 'binary'."
        )
    if kind.labels != "binary":
        raise ConfigError(
            f"{where}: '{parent}' is of kind '{tasks[parent].kind}'; a parent happens or does not: give it a kind with "
            "labels 0 and 1."
        )
    line, above = [name], tasks[name].parent
    while above is not None:
        if above in line:
            raise ConfigError(
                f"{where}: the tasks {' -> '.join([*line, above])} are in a circle; leave out one parent."
            )
        line.append(above)
        above = tasks[above].parent if above in tasks else None
