"""Looks at logs and proposes a config for them: what `mtrec init` writes, with everything it assumed."""

import keyword
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from mtrec_ray.config import is_time_zone
from mtrec_ray.data.filesystem import is_url
from mtrec_ray.data.inspection.glimpse import Glimpse, named, plain
from mtrec_ray.data.inspection.inspect_feedback import describe_feedback
from mtrec_ray.data.inspection.inspect_partitions import describe_partitions
from mtrec_ray.data.inspection.inspect_tables import describe_table, table_beside
from mtrec_ray.data.reading.cells import as_text, guess_unit
from mtrec_ray.data.reading.context import MOST_POSITION
from mtrec_ray.data.reading.formats import DataFile, column_names, find_shards
from mtrec_ray.errors import DataError

_NAMES = {
    role: names.split()
    for role, names in {
        "user": "user userid uid personid person visitorid visitor customerid customer memberid member accountid "
        "reviewerid",
        "item": "item itemid iid movieid movie contentid content productid product articleid article newsid news "
        "videoid video goodsid goods songid song trackid track bookid book asin sku adid ad documentid docid postid "
        "businessid",
        "time": "timestamp time ts eventtime datetime date createdat unixtime unixreviewtime eventtimestamp timems",
        "request": "requestid request impressionid impression searchid queryid pageviewid",
        "event": "eventtype event action actiontype behavior behaviour behaviortype type interactiontype",
        "rating": "rating ratings stars score overall",
        "shown": "position rank slot",
        "position": "position",
        "domain": "domain surface scenario",
        "query": "query searchquery querytext",
        "time_zone": "timezone tz usertimezone usertz",
    }.items()
}
_REMEDIES = {
    "user": "add one that says whose row it is (a session or device id will do)",
    "item": "add one with the id of what was shown",
    "time": "add the time of each row, because a history may only hold what came before",
}
_NO_HISTORY = (
    " Without users or times nobody has a history, and rows can still be learned from: write the log again with a "
    "`request_id` for each list that was shown, a `time` that is the same in all rows, and a column `split` that says "
    "train, valid or test; `mtrec init` then proposes split: {by: column, column: split}, with requests as users."
)
_SPLITS = {"train", "valid", "test"}
_FEEDBACK = re.compile(r"click|like|purchase|buy|bought|order|conver|share|follow|save|cart|comment|forward|mark|label")
_DWELL = re.compile(r"dwell|play.?time|watch.?time|stay.?time|read.?time|time.?spent|view.?time")
_MOST_TASKS = 8
_MOST_SURFACES = 50
_SCHEMAS_READ = 50


def propose_config(
    paths: list[str], items: str | None = None, users: str | None = None, feedback: str | None = None
) -> tuple[str, list[str]]:
    """A config of at most 25 lines for the logs at `paths`, and one sentence for each thing it assumed.

    Args:
        items: table of items; without it, one beside the logs whose key has their item ids is taken.
        users: table of users.
        feedback: files with what came of the log's rows, which then are exposures.

    Raises:
        DataError: no such files, or a log in which no column names the user, the item or the time (with the remedy).
    """
    notes: list[str] = []
    logs, files = _pick_logs(paths, notes)
    log = Glimpse(files, "data.logs")
    notes.append(f"{files[0].format} logs in {len(files):,} file(s); looked at the first {log.rows:,} rows")
    as_given = logs in (paths, paths[0])  # and not single files, which have no folders below them
    partitions, remarks = describe_partitions(files, notes) if as_given else ({}, [])
    data: dict[str, Any] = {"logs": logs} | partitions
    split = _find_split(log, notes)
    columns = _find_columns(log, split is not None, notes)
    event = None if feedback is not None else _find_event(log, columns)
    if event is not None:
        columns["event"] = event
        data["layout"] = "behaviours"
    data["columns"] = columns
    unit = guess_unit(log.raw(columns["time"]))
    if unit != "s" and not log.is_timestamp(columns["time"]):
        data["time_unit"] = unit
    notes.append(f"'{columns['time']}' is in unit {unit}: its values then lie between 1971 and 2099")
    if event is not None:
        data["candidate_event"], tasks = _behaviour_tasks(log, event, notes)
    elif feedback is not None:
        data["feedback"], tasks = _feedback_tasks(log, feedback, columns, notes)
    else:
        tasks = _label_tasks(log, columns, notes)
    if shown := [name for name in named(log.names, _NAMES["shown"]) if log.numbers(name) is not None]:
        data["numbers"] = shown
        notes.append(f"{shown} is known when the item is shown: a number feature of the candidate")
    if vectors := [name for name in log.names if log.is_vector(name)]:
        data["vectors"] = vectors
        notes.append(f"{vectors} holds lists of numbers of one size: a vector of the candidate, as an embedding")
    relative = not is_url(paths[0]) and not os.path.isabs(paths[0])
    items = items or table_beside(log, columns["item"], relative, notes)
    for name, path, key in (("items", items, columns["item"]), ("users", users, columns["user"])):
        if path is not None:
            data[name] = describe_table(path, log, key, name, data.get("time_unit", "s"), notes)
    tree = {"name": _run_name(paths[0]), "data": data, "tasks": tasks}
    tree |= {} if split is None else {"split": {"by": "column", "column": split}}
    return _write(tree, {"partitions": remarks}), notes


def _pick_logs(paths: list[str], notes: list[str]) -> tuple[str | list[str], list[DataFile]]:
    """What to write as `data.logs`, and its files: in a folder of several kinds of files, those with user and time."""
    files = find_shards(paths, "auto", "data.logs")
    some = files[:_SCHEMAS_READ]
    whole = [file for file in some if all(named(column_names(file), _NAMES[role]) for role in ("user", "time"))]
    if not whole or len(whole) == len(some):
        return (paths[0] if len(paths) == 1 else paths), files
    relative = not is_url(paths[0]) and not os.path.isabs(paths[0])
    chosen = [os.path.relpath(file.path) if relative else file.path for file in whole]
    notes.append(f"only files with a user and a time are logs: {', '.join(chosen)}")
    return (chosen[0] if len(chosen) == 1 else chosen), whole


def _find_split(log: Glimpse, notes: list[str]) -> str | None:
    """A column that says of each row whether it is for training."""
    for name in named(log.names, ["split"]):
        if "train" in (said := set(log.texts(name))) and said <= _SPLITS:
            notes.append(f"'{name}' says which rows are held out (split.by: column)")
            return name
    return None


def _find_columns(log: Glimpse, held_out: bool, notes: list[str]) -> dict[str, str]:
    """`held_out`: the log says itself which rows are for training, and so needs no users with a history."""
    found = {}
    for role, remedy in _REMEDIES.items():
        candidates = named(log.names, _NAMES[role])
        if role == "time":
            candidates += [name for name in log.names if name not in candidates and _maybe_time(log, name)]
            candidates = [name for name in candidates if guess_unit(log.raw(name).drop_null()) is not None]
        if not candidates and role == "user" and held_out:
            candidates = named(log.names, _NAMES["request"])
            notes.append("no column names the user: each request is one, without a history")
        if not candidates:
            no_history = _NO_HISTORY if role in ("user", "time") else ""
            raise DataError(
                f"No column looks like the {role} in {log.described()}. Rename it to "
                f"'{role if role == 'time' else role + '_id'}', or name it in a config by hand (data.columns.{role}); "
                f"if the log has none, {remedy}.{no_history}"
            )
        found[role] = candidates[0]
    if request := named(log.names, _NAMES["request"]):
        found["request"] = request[0]
    notes.append(", ".join(f"{role}: '{column}'" for role, column in found.items()))
    return found | _find_context(log, notes)


def _find_context(log: Glimpse, notes: list[str]) -> dict[str, str]:
    """Only columns with the very names, whose cells are such: a place, one of some surfaces, a text."""
    checks: dict[str, tuple[Callable[[Glimpse, str], bool], str]] = {
        "position": (_are_positions, "is the place on the page (data.columns.position)"),
        "domain": (_are_surfaces, "says which surface or scenario a row is of (data.columns.domain)"),
        "query": (_are_texts, "is a search query, read before the candidate's text (data.columns.query)"),
        "time_zone": (_are_zones, "says whose clock hour and weekday go by (data.columns.time_zone)"),
    }
    found = {}
    for role, (fits, meaning) in checks.items():
        for name in [name for name in named(log.names, _NAMES[role]) if fits(log, name)][:1]:
            found[role] = name
            notes.append(f"'{name}' {meaning}")
    return found


def _are_positions(log: Glimpse, name: str) -> bool:
    values = log.numbers(name)
    return values is not None and bool(((values >= 0) & (values <= MOST_POSITION) & (values == np.floor(values))).all())


def _are_surfaces(log: Glimpse, name: str) -> bool:
    return 2 <= len(set(log.texts(name))) <= _MOST_SURFACES


def _are_texts(log: Glimpse, name: str) -> bool:
    return log.numbers(name) is None and not log.is_timestamp(name) and bool(log.texts(name))


def _are_zones(log: Glimpse, name: str) -> bool:
    return bool(log.texts(name)) and all(is_time_zone(text) for text in set(log.texts(name)))


def _maybe_time(log: Glimpse, name: str) -> bool:
    return log.is_timestamp(name) or plain(name).endswith(("time", "timestamp", "date"))


def _find_event(log: Glimpse, columns: dict[str, str]) -> str | None:
    for name in named(log.names, _NAMES["event"]):
        if name not in columns.values() and 2 <= len(set(log.texts(name))) <= 50 and log.numbers(name) is None:
            return name
    return None


def _behaviour_tasks(log: Glimpse, event: str, notes: list[str]) -> tuple[str, dict[str, Any]]:
    """The type that makes a candidate, and a task for each other type."""
    counts = pc.value_counts(as_text(log.raw(event), event).drop_null()).to_pylist()
    types = [entry["values"] for entry in sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))]
    notes.append(f"a row per event: a '{types[0]}', the most frequent type in '{event}', makes a candidate")
    return types[0], _most({_identifier(name): {"event": name} for name in types[1:]}, notes)


def _feedback_tasks(
    log: Glimpse, path: str, columns: dict[str, str], notes: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`data.feedback` and a task for each type of it; adds the impression's id to `columns`."""
    part, values = describe_feedback(path, log, columns, _NAMES["event"], notes)
    if "impression" in part:
        columns["impression"] = part.pop("impression")
        if columns.get("request") == columns["impression"]:
            del columns["request"]  # it names single rows
    tasks = {
        _identifier(name): {"event": name} if column is None else {"kind": "regression", "event": name, "value": column}
        for name, column in values.items()
    }
    return [part], _most(tasks, notes)


def _label_tasks(log: Glimpse, columns: dict[str, str], notes: list[str]) -> dict[str, Any]:
    free = {name: values for name in log.names if (values := _free_numbers(log, columns, name)) is not None}
    tasks: dict[str, Any] = {}
    for name in named(free, _NAMES["rating"]):
        if len(np.unique(free[name])) > 2:
            threshold = 4.0 if free[name].max() <= 5 else float(np.quantile(free[name], 0.6, method="higher"))
            tasks["like"] = {"label": f"{_quoted(name)} >= {threshold:g}"}
            tasks[_identifier(name)] = {"kind": "regression", "label": _quoted(name)}
            notes.append(f"'{name}' is a rating: a like is {threshold:g} or more, and its value is a regression")
    binary = [name for name, values in free.items() if np.unique(values).tolist() == [0, 1]]
    for name in [name for name in binary if _FEEDBACK.search(plain(name))] or binary:
        tasks.setdefault(_identifier(name), {"label": _quoted(name)})
        notes.append(f"'{name}' holds 0 and 1: a binary label")
    durations = [name for name, values in free.items() if "duration" in plain(name) and values.min() >= 0]
    dwells = [name for name, values in free.items() if _DWELL.search(name.lower()) and values.min() >= 0]
    for name in dwells or durations:
        tasks[_identifier(name)] = {"kind": "regression", "label": f"log({_quoted(name)} + 1)"}
        notes.append(f"'{name}' is a duration: a regression of its logarithm, observed where it is not empty")
    if not tasks:
        raise DataError(
            f"No column looks like a label (0 and 1, a rating, a duration) or an event type in {log.described()}. "
            "Write `tasks` into a config by hand, e.g. `like: {label: score > 3}`; or, if what came of the rows is in "
            "files of its own, name these: `mtrec init LOGS --feedback FILES`."
        )
    tasks = _most(tasks, notes)
    for name, task in tasks.items():
        _set_feedback(log, name, task, notes)
    return tasks


def _free_numbers(log: Glimpse, columns: dict[str, str], name: str) -> np.ndarray | None:
    return None if name in columns.values() else log.numbers(name)


def _most(tasks: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    left_out = list(tasks)[_MOST_TASKS:]
    if left_out:
        notes.append(f"the first {_MOST_TASKS} tasks only; left out: {', '.join(left_out)}")
    return {name: task for name, task in tasks.items() if name not in left_out}


def _set_feedback(log: Glimpse, name: str, task: dict[str, Any], notes: list[str]) -> None:
    """A column like `like_time` says when the label became known; without one that is assumed."""
    endings = ("time", "at", "timestamp", "ts")
    own = [column for column in log.names if plain(column) in [plain(name) + ending for ending in endings]]
    if own and guess_unit(log.raw(own[0]).drop_null()) is not None:
        task["feedback_time"] = own[0]
        notes.append(f"'{name}' becomes known at '{own[0]}'")
    elif task["label"].startswith("log("):
        task["feedback_delay"] = "10m"
        notes.append(f"'{name}' becomes known 10 minutes after the row's time (feedback_delay)")
    else:
        task["feedback_delay"] = 0
        notes.append(f"'{name}' is known at the row's own time; set feedback_delay or feedback_time if it comes later")


def _identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _quoted(name: str) -> str:
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"`{name}`"


def _run_name(path: str) -> str:
    parts = [part for part in path.split("/") if part and not re.search(r"[*\[:]", part)]
    generic = {"", "logs", "log", "data", "train", "interactions", "events", "ratings"}
    stems = [re.sub(r"[^A-Za-z0-9_.-]", "-", part.split(".")[0]).strip("-._") for part in reversed(parts)]
    return next((stem for stem in stems if stem.lower() not in generic), "run")


def _write(tree: dict[str, Any], remarks: Mapping[str, list[str]]) -> str:
    """YAML with the small mappings on one line each. `remarks`: by key of `data`, what is said beside it, and below."""
    lines = [f"name: {_inline(tree['name'])}", "data:"]
    for key, value in tree["data"].items():
        if key in ("items", "users"):
            lines.append(f"  {key}:")
            lines += [f"    {part}: {_inline(content)}" for part, content in value.items()]
        else:
            beside, *below = remarks.get(key, [""])
            lines.append(f"  {key}: {_inline(value)}" + (f"  # {beside}" if beside else ""))
            lines += [f"  # {remark}" for remark in below]
    lines.append("tasks:")
    lines += [f"  {_inline(name)}: {_inline(task)}" for name, task in tree["tasks"].items()]
    lines += [f"split: {_inline(tree['split'])}"] if "split" in tree else []
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.strip().removesuffix("...").strip()
