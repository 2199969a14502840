"""The config of a run on a generated log, as a user would write it."""

from typing import Any

import yaml

from mtrec_ray.data.sample.scenario import DAY, HOUR, MINUTE, Stage
from mtrec_ray.data.sample.simulate import World
from mtrec_ray.data.sample.tables import DWELL

_FEATURES: dict[str, Any] = {
    "aggregates": ["user", "running item", "category", "title", "taste title fading 20d"],
    "number_dim": 8,
    "interactions": True,
}
"""Chosen on logs of seed 1; see docs/RESULTS.md. No fitted means of items, which those that appear
after the train period lack."""
_BACKBONE, _TRAIN = "none", {"batch_requests": 16, "epochs": 6}


def run_yaml(world: World, folder: str, feedback_files: bool, random_test: bool = False) -> str:
    """Split by time, or, with `random_test`, by the column that leaves only uniformly drawn rows in the test split."""
    scenario, size = world.scenario, world.size
    columns = {"user": "user_id", "item": "item_id", "time": "time", "request": "request_id"}
    columns |= {"position": "position", "propensity": "propensity", "policy": "policy", "domain": "domain"}
    if scenario.seeded:
        columns["query"] = "seed_title"
    data: dict[str, Any] = {"logs": f"{folder}/logs/**/*.parquet", "columns": columns}
    if feedback_files:
        columns["impression"] = "impression_id"
        feedback = {"logs": f"{folder}/feedback/**/*.parquet", "event": "event", "by": "impression"}
        data["feedback"] = [feedback]
    shown: list[Any] = ["domain"] if len(scenario.domains) > 1 else []
    features = dict(_FEATURES)
    if scenario.seeded:
        shown.append(_words("seed_title"))
        features["matches"] = ["seed_title ~ title"]
    data["numbers"] = ["position", "item_age_days"]
    data["items"] = {
        "path": f"{folder}/items.parquet",
        "key": "item_id",
        "text": "{title}",
        "categories": ["category", _words("title")],
        "numbers": ["price"],
    }
    if scenario.seeded and scenario.item_graph:
        shown.append("seed_item_id")
        data["items"]["categories"].append(_words("linked_from"))
        features["matches"].append("seed_item_id * linked_from")
    told = ([] if scenario.hidden_segments else ["segment"]) + ([_words("friends")] if scenario.user_graph else [])
    if told:
        data["users"] = {"path": f"{folder}/users.parquet", "key": "user_id", "categories": told}
    if shown:
        data["categories"] = shown
    tasks = {stage.name: _task(stage, feedback_files) for stage in scenario.stages}
    if scenario.dwell is not None:
        source = {"event": DWELL, "value": "value"} if feedback_files else {"label": "log(dwell_s)"}
        known = {} if feedback_files else {"feedback_delay": _duration(scenario.dwell.window)}
        tasks[DWELL] = {"kind": "regression", **source, **known, "weight": 0.5}
    split = {"train_until": size.train_until, "valid_until": size.valid_until}
    run = {
        "name": f"{scenario.name}_random" if random_test else scenario.name,
        "data": data,
        "tasks": tasks,
        "split": {"by": "column", "column": "random_split"} if random_test else split,
        "features": features,
        "backbone": _BACKBONE,
        "train": _TRAIN,
    }
    return yaml.safe_dump(run, sort_keys=False, width=120)


def _words(column: str) -> dict[str, str]:
    """A category of which a cell holds several values."""
    return {"column": column, "separator": " "}


def _task(stage: Stage, feedback_files: bool) -> dict[str, Any]:
    window = {} if stage.parent is None else {"window": _duration(stage.window)}
    if feedback_files:
        return {"event": stage.name, **window}
    if stage.parent is None:
        return {"label": stage.name, "feedback_delay": _duration(stage.window)}
    return {"label": stage.name, "feedback_time": f"{stage.name}_time", **window}


def _duration(seconds: int) -> str:
    for unit, letter in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m")):
        if seconds % unit == 0:
            return f"{seconds // unit}{letter}"
    return f"{seconds}s"
