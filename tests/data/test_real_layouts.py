"""Real logs as production has them: DeskDrop in late, shuffled, repeated partitions; public samples without times."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrec_ray.config import Run
from mtrec_ray.config_file import parse
from mtrec_ray.data.inspection.inspect import propose_config
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.prepared import Prepared
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.requests.ids import bucket_of
from mtrec_ray.errors import DataError
from tests.data.by_hand import config
from tests.data.test_prepare import requests

TYPES = ["LIKE", "BOOKMARK", "COMMENT CREATED", "FOLLOW"]
HEADER = ["timestamp", "eventType", "contentId", "personId", "sessionId"]
PARTITIONS = 10
REPEATED = 0.1
Row = dict[str, str]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def deskdrop_rows(folder: Path) -> list[Row]:
    """The rows of every 16th person, by time; a view before what was done about it in the same second."""
    with open(folder / "interactions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if bucket_of(row["personId"], 16) == 0]
    return sorted(rows, key=lambda row: (int(row["timestamp"]), ["VIEW", *TYPES].index(row["eventType"])))


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def deliver(folder: str, rows: list[Row], late: random.Random | None) -> None:
    """All in one partition in order, or shuffled: each row in that of its time or a later one, some once more."""
    parts: list[list[Row]] = [[] for _ in range(PARTITIONS)]
    for place, row in enumerate(rows):
        own = place * PARTITIONS // len(rows)
        arrivals = [late.randrange(own, PARTITIONS) for _ in range(1 + (late.random() < REPEATED))] if late else [0]
        for day in arrivals:
            parts[day].append(row)
    for day, part in enumerate(parts):
        if late:
            late.shuffle(part)
        write(Path(folder, f"dt=2026-01-{day + 1:02}", "part.csv"), part)
    write(Path(folder, "dt=2026-02-01", "part.csv"), rows[:50])  # outside the range


def partitioned(folder: str, articles: Path, layout: str) -> Run:
    january = {"dt": {"first": "2026-01-01", "last": "2026-01-31"}}
    tasks = {kind.split()[0].lower(): {"event": kind, **({"window": "7d"} if kind == "LIKE" else {})} for kind in TYPES}
    columns = {"user": "personId", "item": "contentId", "time": "timestamp"}
    feedback = [
        {"logs": f"{folder}/{kind[:4]}", "type": kind, "partitions": january, "unique_by": HEADER} for kind in TYPES
    ]
    return config(
        data={
            "logs": f"{folder}/VIEW",
            "layout": layout,
            "candidate_event": "VIEW" if layout == "behaviours" else None,
            "columns": columns,
            "partitions": january,
            "feedback": feedback,
            "unique_by": HEADER,
            "items": {"path": str(articles), "key": "contentId", "text": "{title}", "categories": ["lang"]},
            "buckets": 2,
        },
        tasks=tasks,
        backbone={"name": "nano", "vocab_size": 300},
        features__aggregates=["user", "running item", "user * lang"],
    )


def assert_same_content(ours: Prepared, theirs: Prepared) -> None:
    """All but ids of rows, which say in which file they are; numbers up to the order in which sums are taken."""
    for split in SPLITS:
        pair = [sorted(requests(p, split), key=lambda r: (r["user"], r["time"], r["item"])) for p in (ours, theirs)]
        assert len(pair[0]) > 0
        for one, other in zip(*pair, strict=True):
            np.testing.assert_allclose(one.pop("numbers"), other.pop("numbers"), rtol=1e-5, atol=1e-6)
            for request in (one, other):
                del request["row_id"], request["request_uid"]
            assert json.dumps(one) == json.dumps(other)
    left, right = (p.manifest for p in (ours, theirs))
    assert (left.tasks, left.categories, left.boundaries) == (right.tasks, right.categories, right.boundaries)
    deliveries = {"rows_read", "repeats", "duplicates"}
    assert {k: v for k, v in left.counts.items() if k not in deliveries} == {
        k: v for k, v in right.counts.items() if k not in deliveries
    }
    tokenizers = [Path(p.path, "tokenizer", "tokenizer.json").read_text() for p in (ours, theirs)]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize("layout", ["behaviours", "impressions"])
def test_deskdrop_late_and_shuffled_is_as_at_once(deskdrop: Path, layout: str) -> None:
    rows = deskdrop_rows(deskdrop)
    for folder, late in (("once", None), ("late", random.Random(7))):
        for kind in ["VIEW", *TYPES]:
            deliver(f"{folder}/{kind[:4]}", [row for row in rows if row["eventType"] == kind], late)
    once, late = (
        prepare(partitioned(folder, deskdrop / "articles.csv", layout), serial_tasks) for folder in ("once", "late")
    )
    counts = once.manifest.counts, late.manifest.counts
    assert counts[0]["rows_read"] == len(rows)
    more = counts[1]["rows_read"] - len(rows)
    assert 0.05 * len(rows) < more == counts[1]["repeats"] - counts[0]["repeats"]
    assert sum(task.positives["train"] for task in once.manifest.tasks) > 20
    assert_same_content(once, late)
    if layout == "behaviours":
        write(Path("all.csv"), rows)
        whole = partitioned("once", deskdrop / "articles.csv", layout)
        data = whole.data.model_dump() | {"logs": "all.csv", "partitions": {}, "feedback": []}
        data["columns"] |= {"event": "eventType"}
        assert_same_content(prepare(Run.model_validate(whole.model_dump() | {"data": data}), serial_tasks), once)


SAMPLES = {
    "aliexpress_train_sample.csv": ("user", {"item_id"}),
    "ali_ccp_train_sample.csv": ("user", {"item_id", "request_id"}),
    "kuairand_sample.csv": ("time", set()),
    "mind_sample.csv": ("time", set()),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_without_user_or_time_are_refused_and_the_remedy_helps(log_samples: Path, name: str) -> None:
    """As the remedy says: requests as users, one time for all, and a column that holds rows out."""
    lacking, added = SAMPLES[name]
    with pytest.raises(DataError, match=rf"No column looks like the {lacking} .*`request_id` .* column `split`"):
        propose_config([str(log_samples / name)])
    with open(log_samples / name, newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))[:600]
    for number, row in enumerate(rows):
        row |= {"time": 1_600_000_000, "split": ["train", "train", "train", "valid", "test"][number // 3 % 5]}
        row |= {column: number // 3 if column == "request_id" else number % 7 for column in added}
    with open("log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text, notes = propose_config(["log.csv"])
    assert "'split' says which rows are held out (split.by: column)" in notes
    prepared = prepare(parse(text, ["backbone=none"]), serial_tasks)
    sizes = [sum(shard.candidates for shard in prepared.manifest.shards[split]) for split in SPLITS]
    assert sizes == [sum(row["split"] == split for row in rows) for split in SPLITS]
    assert prepared.manifest.counts["rows_quarantined"] == 0
    assert not any(request["event_item"] for split in SPLITS for request in requests(prepared, split))
