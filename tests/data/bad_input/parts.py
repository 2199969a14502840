"""Setups without damage, of parts that are there or not."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.data.bad_input.setup import DAY, FORMATS, START, TIME_COLUMNS, Setup, Source

DAYS, USERS, ITEMS = 3, 6, 8


def make(folder: Path, chance: random.Random) -> Setup:
    """A setup without damage, one of very many: each part of it is there or not, in one of the formats."""
    log = [_log_file(day, chance.choice(FORMATS)) for day in range(DAYS)]
    if chance.random() < 0.6:  # mostly one format for all, so that types can drift
        for source in log:
            source.format = log[0].format
            source.path = f"{source.path.partition('.')[0]}.{source.format}"
    tables = {"items": _items(chance.choice(FORMATS)), "users": _users(chance.choice(FORMATS))}
    config: dict[str, Any] = {
        "name": "damaged",
        "data": {
            "logs": "logs",
            "columns": {"user": "user_id", "item": "item_id", "time": "ts"},
            "prepared_dir": "prepared",
            "buckets": 2,
            "max_bad_share": chance.choice([0.0, 0.3, 1.0, 1.0]),
        },
        "tasks": {"click": {"label": "click", "feedback_delay": "30s"}},
        "backbone": {"name": "none"},
        "features": {"min_count": 1, "folds": 2, "aggregates": chance.choice([[], ["user", "item"], ["running item"]])},
    }
    setup = Setup(folder, chance, config, log, [], tables)
    for part in PARTS:
        if chance.random() < 0.35:
            part(setup)
    return setup


def _log_file(day: int, format: str) -> Source:
    rows = []
    for i in range(12):
        n = day * 12 + i
        rows.append(
            {
                "user_id": n % USERS,
                "item_id": f"i{(n * 5) % ITEMS}",
                "ts": START + day * DAY + i * 3_600,
                "request": f"r{n // 2}",
                "click": (n // 2) % 2,
                "stars": n % 6,
                "liked_at": START + day * DAY + i * 3_600 + 60 if n % 6 > 3 else None,
                "price": 1.5 * (n % 4),
                "tab": ["home", "new", None][n % 3],
                "place": n % 2,
                "chance": 0.5,
                "rate": [1.0, 0.5][n % 2],
                "counts": 1.0,
                "surface": ["app", "web"][n % 2],
                "policy": "ranker",
                "query": "red shoes",
                "impression": f"e{n}",
                "part": ["train", "train", "valid", "test"][n % 4],
            }
        )
    return Source(f"logs/dt=2024-01-0{day + 1}/part-0.{format}", rows, format)


def _items(format: str) -> Source:
    rows = [
        {"item_id": f"i{i}", "title": f"title {i}", "genres": "a|b" if i % 2 else "b", "cost": i, "since": START - DAY}
        for i in range(ITEMS)
    ]
    return Source(f"items.{format}", rows, format)


def _users(format: str) -> Source:
    rows = [{"user_id": u, "age": 20 + u, "city": f"c{u % 2}", "since": START - DAY} for u in range(USERS)]
    return Source(f"users.{format}", rows, format)


def _feedback(setup: Setup, by: str) -> None:
    number, format = len(setup.feedback), setup.random.choice(FORMATS)
    kind = ["like", "buy"][number]
    rows = [
        {
            "user_id": row["user_id"],
            "item_id": row["item_id"],
            "impression": row["impression"],
            "ts": row["ts"] + 120,
            "kind": kind,
            "worth": 2.5,
            "uid": f"{kind}{row['impression']}",
        }
        for source in setup.log
        for n, row in enumerate(source.rows)
        if n % 3 == 0
    ]
    setup.feedback.append(Source(f"{kind}/part-0.{format}", rows, format))
    entry: dict[str, Any] = {"logs": kind, "by": by, "unique_by": setup.random.choice([[], ["uid"]])}
    setup.config["data"].setdefault("feedback", []).append(
        entry | setup.random.choice([{"type": kind}, {"event": "kind"}])
    )
    setup.config["tasks"][kind] = {"event": kind} | setup.random.choice([{}, {"window": "1h"}])
    if setup.random.random() < 0.3:
        setup.config["tasks"][f"{kind}_worth"] = {"kind": "regression", "event": kind, "value": "worth"}


def _by_item(setup: Setup) -> None:
    _feedback(setup, "user+item")


def _by_impression(setup: Setup) -> None:
    setup.config["data"]["columns"]["impression"] = "impression"
    _feedback(setup, "impression")


def _behaviours(setup: Setup) -> None:
    """Rows of types, in place of labels; not with feedback by impression."""
    if setup.feedback:
        return
    for source in setup.log:
        for n, row in enumerate(source.rows):
            row["event"] = "VIEW" if n % 3 else "LIKE"
            row["item_id"] = f"i{n % 3 + n // 6}"
    data = setup.config["data"]
    data |= {"layout": "behaviours", "candidate_event": "VIEW"}
    data["columns"]["event"] = "event"
    setup.config["tasks"] = {"like": {"event": "LIKE"}}


def _partitions(setup: Setup) -> None:
    bounds = setup.random.choice([{}, {"first": "2024-01-01", "last": "2024-01-03"}])
    setup.config["data"]["partitions"] = {"dt": bounds}


def _item_table(setup: Setup) -> None:
    table = {"path": setup.tables["items"].path, "key": "item_id", "text": "{title} of {genres}", "numbers": ["cost"]}
    table["categories"] = [{"column": "genres", "separator": "|", "min_count": 1}]
    setup.config["data"]["items"] = table | setup.random.choice([{}, {"valid_from": "since"}])


def _user_table(setup: Setup) -> None:
    table = {"path": setup.tables["users"].path, "key": "user_id", "numbers": ["age"], "categories": ["city"]}
    setup.config["data"]["users"] = table | setup.random.choice([{}, {"valid_from": "since"}])


def _user_map(setup: Setup) -> None:
    rows = [{"old": u, "new": u // 2, "since": START - DAY} for u in range(USERS - 1)]
    setup.tables["map"] = Source(f"map.{(f := setup.random.choice(FORMATS))}", rows, f)
    table = {"path": setup.tables["map"].path, "key": "old", "user": "new"}
    setup.config["data"]["user_map"] = table | setup.random.choice([{}, {"valid_from": "since"}])


def _context(setup: Setup) -> None:
    columns = {"position": "place", "propensity": "chance", "sampling_rate": "rate", "row_weight": "counts"}
    columns |= {"domain": "surface", "policy": "policy", "query": "query", "request": "request"}
    for role, column in columns.items():
        if setup.random.random() < 0.6:
            setup.config["data"]["columns"][role] = column


def _log_features(setup: Setup) -> None:
    setup.config["data"] |= {"numbers": ["price"], "categories": [{"column": "tab", "min_count": 1}]}


def _rating(setup: Setup) -> None:
    if setup.config["data"].get("layout") != "behaviours":
        setup.config["tasks"]["stars"] = {"kind": "regression", "label": "stars", "observed": "stars > 0"}
        setup.config["tasks"]["like_"] = {"label": "stars >= 4", "feedback_time": "liked_at"}


def _deliveries(setup: Setup) -> None:
    setup.config["data"] |= {"unique_by": ["impression"], "max_user_events": setup.random.choice([5, 100])}


def _split(setup: Setup) -> None:
    splits: list[dict[str, Any]] = [
        {"by": "user"},
        {"by": "column", "column": "part"},
        {"train_until": START + DAY, "valid_until": START + 2 * DAY},
        {"valid": 0.3, "test": 0.3},
    ]
    setup.config["split"] = setup.random.choice(splits)


def _iso_times(setup: Setup) -> None:
    """Times as text, on the clocks of a zone."""

    def text(time: float) -> str:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S")

    for source in setup.sources:
        for row in source.rows:
            row |= {name: text(row[name]) for name in TIME_COLUMNS if row.get(name) is not None}
    split = setup.config.get("split", {})
    split |= {name: text(split[name]) for name in ("train_until", "valid_until") if name in split}
    setup.config["data"] |= {"time_unit": "iso", "time_zone": setup.random.choice(["UTC", "Europe/Oslo"])}


def _history(setup: Setup) -> None:
    setup.config["history"] = setup.random.choice([{"max_events": 0}, {"max_events": 2}, {"lag": "1d"}])


def _text(setup: Setup) -> None:
    """A language model, so that texts are read."""
    setup.config["backbone"] = {"name": "nano", "vocab_size": 300}


PARTS: list[Callable[[Setup], None]] = [
    _by_item,
    _by_impression,
    _behaviours,
    _partitions,
    _item_table,
    _user_table,
    _user_map,
    _context,
    _log_features,
    _rating,
    _deliveries,
    _split,
    _iso_times,
    _history,
    _text,
]
