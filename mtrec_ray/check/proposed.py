"""A config for logs that have none: the one that `mtrec init` proposes, and the columns that it leaves out."""

import numpy as np

from mtrec_ray.config import Category, Number, Run
from mtrec_ray.config_file import load, parse
from mtrec_ray.data.inspection.glimpse import Glimpse
from mtrec_ray.data.inspection.inspect import propose_config
from mtrec_ray.data.reading.cells import guess_unit
from mtrec_ray.data.reading.events import event_schema
from mtrec_ray.data.reading.expressions import columns_of
from mtrec_ray.data.reading.logs import find_files
from mtrec_ray.errors import ConfigError

_MOST_CATEGORIES = 50


def run_of(
    config_or_logs: list[str], items: str | None, users: str | None, overrides: list[str]
) -> tuple[Run, frozenset[str], list[str]]:
    """The run of a config, or of logs; the features in it that no config uses; and what was assumed.

    Raises:
        ConfigError: a config with tables, or several of them.
        DataError: as `propose_config`.
    """
    if not any(path.endswith((".yaml", ".yml")) for path in config_or_logs):
        return proposed_run(config_or_logs, items, users, overrides)
    if len(config_or_logs) > 1 or items or users:
        raise ConfigError("Give one config, which names its logs and tables itself; or logs, with --items and --users.")
    return load(config_or_logs[0], overrides), frozenset(), []


def proposed_run(
    logs: list[str], items: str | None, users: str | None, overrides: list[str]
) -> tuple[Run, frozenset[str], list[str]]:
    """The run that is proposed for logs, the features in it that the proposal does not use, and what was assumed.

    Columns of numbers, and of a few categories, are looked at as if they were features, since they may become some.

    Raises:
        DataError: as `propose_config`.
    """
    text, assumed = propose_config(logs, items, users)
    run = parse(text, overrides, source="proposed config")
    log = Glimpse([*find_files(run.data)], "data.logs")
    named = _named(run)
    taken = {name.split(".", 1)[1] for name in event_schema(run).names if "." in name}
    numbers, categories = [], []
    for name in log.names:
        if name in named or name in taken or log.is_list(name) or log.is_timestamp(name):
            continue
        if guess_unit(log.raw(name).drop_null()) is not None:
            continue
        values = log.numbers(name)
        if values is not None and not _is_id(values):
            numbers.append(Number(column=name))
        elif values is None and 1 <= len(set(log.texts(name))) <= _MOST_CATEGORIES:
            categories.append(Category(column=name))
    data = run.data.model_copy(
        update={"numbers": [*run.data.numbers, *numbers], "categories": [*run.data.categories, *categories]}
    )
    unused = frozenset([n.feature for n in numbers] + [c.column for c in categories])
    if unused:
        assumed = [*assumed, f"looked at as if they were features: {', '.join(sorted(unused))}"]
    return run.model_copy(update={"data": data}), unused, assumed


def _named(run: Run) -> set[str]:
    """Columns of the log that the config names in any part."""
    named = {column for column in run.data.columns.model_dump().values() if column is not None}
    named |= {number.column for number in run.data.numbers} | {category.column for category in run.data.categories}
    named |= set(run.data.unique_by) | {vector.column for vector in run.data.vectors}
    if run.split.column is not None:
        named.add(run.split.column)
    for task in run.tasks.values():
        named |= {column for column in (task.value, task.feedback_time) if column is not None}
        for expression in (task.label, task.observed):
            named |= set() if expression is None else set(columns_of(expression))
    return named


def _is_id(values: np.ndarray) -> bool:
    """Whole numbers that hardly repeat."""
    whole = bool((values == np.floor(values)).all())
    return whole and len(np.unique(values)) > 0.5 * len(values)
