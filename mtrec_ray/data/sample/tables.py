"""The columns of a generated log and of the tables beside it."""

from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.population import CATEGORIES, Array
from mtrec_ray.data.sample.simulate import World

POLICIES = ("logged", "random")
DWELL = "dwell"


def log_table(world: World, rows: Exposures, first: int, labelled: bool) -> pa.Table:
    """Impressions, one row each; with `labelled` the feedback beside them, else their number, counted from `first`.

    `random_split` makes the uniformly drawn rows of the test period a test split of their own; all other rows after the
    train period are for validation.
    """
    size = world.size
    columns = {
        "request_id": rows.request,
        "session_id": rows.session,
        "user_id": rows.user,
        "item_id": rows.item,
        "time": rows.time,
        "position": rows.position.astype(np.int32),
        "propensity": rows.propensity,
        "policy": _named(POLICIES, rows.random),
        "domain": _named([domain.name for domain in world.scenario.domains], rows.domain),
        "item_age_days": np.round(rows.age, 3),
        "random_split": _random_split(rows, size.train_until, size.valid_until),
    }
    if world.scenario.seeded:
        columns |= {"seed_item_id": rows.seed, "seed_title": pa.array(world.items.titles).take(pa.array(rows.seed))}
    if not labelled:
        return pa.table(columns | {"impression_id": first + np.arange(len(rows))})
    for stage in world.scenario.stages:
        label = rows.labels[stage.name]
        columns[stage.name] = pa.array(np.nan_to_num(label).astype(np.int8), mask=np.isnan(label))
        if stage.parent is not None:
            columns[f"{stage.name}_time"] = pa.array(rows.known[stage.name], mask=~(label == 1))
    if world.scenario.dwell is not None:
        columns["dwell_s"] = pa.array(rows.dwell, mask=np.isnan(rows.dwell))
    return pa.table(columns)


def feedback_table(world: World, rows: Exposures, first: int) -> pa.Table:
    """One row for each label of 1, and each dwell time, by time; `value` is the logarithm of dwell seconds."""
    parts = [(stage.name, np.flatnonzero(rows.labels[stage.name] == 1)) for stage in world.scenario.stages]
    times = [rows.known[name][places] for name, places in parts]
    values = [np.full(len(places), np.nan) for _, places in parts]
    if world.scenario.dwell is not None:
        spent = np.flatnonzero(~np.isnan(rows.dwell))
        parts.append((DWELL, spent))
        times.append(rows.time[spent] + world.scenario.dwell.window)
        values.append(np.log(rows.dwell[spent]))
    places, time, value = (np.concatenate(arrays) for arrays in ([p for _, p in parts], times, values))
    event = np.repeat([name for name, _ in parts], [len(p) for _, p in parts])
    order = np.lexsort((event, places, time))
    return pa.table(
        {
            "impression_id": (first + places)[order],
            "user_id": rows.user[places][order],
            "item_id": rows.item[places][order],
            "time": time[order],
            "event": event[order],
            "value": pa.array(value[order], mask=np.isnan(value[order])),
        }
    )


def truth_table(row_ids: Array, truth: Truth) -> pa.Table:
    return pa.table({"row_id": row_ids, **truth.probability, "bot": truth.bot})


def item_table(world: World) -> pa.Table:
    """With an item graph also `linked_from`: the items from which an edge leads to this one."""
    items = world.items
    columns = {
        "item_id": np.arange(len(items.main)),
        "title": items.titles,
        "category": _named(CATEGORIES, items.category),
        "price": np.round(20 * np.exp(0.6 * items.price), 2),
    }
    if items.neighbours is not None:
        columns["linked_from"] = _lists(_edges(items.neighbours)[:, ::-1], len(items.main))
    return pa.table(columns)


def user_table(world: World) -> pa.Table | None:
    """What is told of users: the segment unless it is hidden, with a social graph `friends`; None if it is nothing."""
    users = world.users
    columns: dict[str, Any] = {"user_id": np.arange(len(users.segment))}
    if not world.scenario.hidden_segments:
        names = [f"s{number}" for number in range(world.scenario.segments)]
        columns["segment"] = _named(names, users.segment)
    if users.friends is not None:
        columns["friends"] = _lists(_edges(users.friends), len(users.segment))
    return pa.table(columns) if len(columns) > 1 else None


def edge_table(names: tuple[str, str], neighbours: Array) -> pa.Table:
    """One row per edge, each once."""
    pairs = _edges(neighbours)
    return pa.table({names[0]: pairs[:, 0], names[1]: pairs[:, 1]})


def _edges(neighbours: Array) -> Array:
    """int [E, 2] from and to, each once and none to itself."""
    pairs = np.stack([np.repeat(np.arange(len(neighbours)), neighbours.shape[1]), neighbours.ravel()], axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def _lists(pairs: Array, count: int) -> list[str]:
    """What each of the first has edges to, with blanks between."""
    found: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs.tolist():
        found[a].append(b)
    return [" ".join(map(str, sorted(others))) for others in found]


def _named(names: tuple[str, ...] | list[str], places: Array) -> pa.Array:
    return pa.array(names).take(pa.array(places.astype(np.int64)))


def _random_split(rows: Exposures, train_until: int, valid_until: int) -> pa.Array:
    later = (rows.time >= train_until).astype(int)
    return _named(("train", "valid", "test"), later + ((rows.time >= valid_until) & rows.random))
