"""Leaks and skews, each planted in a clean generated log, and the rows that a check must point at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.config_file import override, validate

DAY = 86_400


@dataclass
class Log:
    """A log that something is done to; row numbers are given when it is written."""

    rows: pd.DataFrame
    """With a column `part`, the file"""
    items: pd.DataFrame
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted path -> value"""
    bad: str | None = None
    """Boolean column of the rows that a check may point at; None: any"""

    def write(self, folder: Path) -> tuple[Run, set[tuple[str, int]] | None]:
        """The run, and (file name, row) of the bad rows."""
        (folder / "logs").mkdir(parents=True)
        places: set[tuple[str, int]] = set()
        for part, rows in self.rows.groupby("part", sort=True):
            name = f"part-{part}.parquet"
            if self.bad is not None:
                places |= {(name, row + 1) for row in np.flatnonzero(rows[self.bad])}
            pq.write_table(
                pa.Table.from_pandas(rows.drop(columns=["part"]), preserve_index=False), folder / "logs" / name
            )
        pq.write_table(pa.Table.from_pandas(self.items, preserve_index=False), folder / "items.parquet")
        tree: dict[str, Any] = {
            "name": "planted",
            "data": {
                "logs": str(folder / "logs"),
                "columns": {"user": "user_id", "item": "item_id", "time": "time", "request": "request_id"},
                "numbers": ["position"],
                "items": {
                    "path": str(folder / "items.parquet"),
                    "key": "item_id",
                    "text": "{title}",
                    "categories": ["topic"],
                    "numbers": ["price"],
                },
            },
            "tasks": {
                "click": {"label": "click", "feedback_delay": "30s"},
                "like": {"label": "like", "feedback_time": "like_time"},
                "purchase": {"label": "purchase", "feedback_delay": "1h"},
                "dwell": {"kind": "regression", "label": "log(dwell_s + 1)", "feedback_delay": "10m"},
            },
        }
        for dotted, value in self.config.items():
            override(tree, dotted, value)
        return validate(tree), places if self.bad is not None else None


@dataclass(frozen=True)
class Plant:
    """`change` plants; `check` must find it; `also` may."""

    change: Callable[[Log, np.random.Generator], None]
    check: str
    also: tuple[str, ...] = ()
    severity: str = "error"


def _number(log: Log, name: str) -> None:
    log.config["data.numbers"] = ["position", name]


def user_total(log: Log, rng: np.random.Generator) -> None:
    log.rows["user_rows"] = log.rows.groupby("user_id")["item_id"].transform("size")
    _number(log, "user_rows")


def clicks_to_come(log: Log, rng: np.random.Generator) -> None:
    later = log.rows.sort_values("time", ascending=False)
    per_time = later.groupby(["user_id", "time"], sort=False)["click"].sum()
    so_far = per_time.groupby(level=0, sort=False).cumsum() - per_time
    keys = pd.MultiIndex.from_frame(log.rows[["user_id", "time"]])
    log.rows["coming"] = so_far.reindex(keys).to_numpy()
    _number(log, "coming")


def rows_of_the_day_as_text(log: Log, rng: np.random.Generator) -> None:
    day = log.rows["time"] // DAY
    log.rows["day_rows"] = log.rows.groupby(["user_id", day])["item_id"].transform("size").astype(str)
    log.config["data.categories"] = ["day_rows"]


def item_clicks(log: Log, rng: np.random.Generator) -> None:
    clicks = log.rows.groupby("item_id")["click"].sum()
    log.items["clicks"] = clicks.reindex(log.items["item_id"]).fillna(0).to_numpy()
    log.config["data.items.numbers"] = ["price", "clicks"]


def item_rate_of_the_last_days(log: Log, rng: np.random.Generator) -> None:
    last = log.rows[log.rows["time"] > log.rows["time"].quantile(0.8)]
    rate = last.groupby("item_id")["click"].mean()
    log.items["rate"] = rate.reindex(log.items["item_id"]).to_numpy()
    log.config["data.items.numbers"] = ["price", "rate"]


def likes_before(log: Log, rng: np.random.Generator) -> None:
    liked = log.rows["like"] == 1
    log.rows["early"] = liked & (rng.random(len(liked)) < 0.5)
    log.rows.loc[log.rows["early"], "like_time"] = log.rows["time"] - 60
    log.bad = "early"


def likes_at_once(log: Log, rng: np.random.Generator) -> None:
    log.rows["now"] = log.rows["like"] == 1
    log.rows.loc[log.rows["now"], "like_time"] = log.rows["time"]
    log.bad = "now"


def rows_split_at_random(log: Log, rng: np.random.Generator) -> None:
    log.rows["split"] = rng.choice(["train", "valid", "test"], len(log.rows), p=[0.8, 0.1, 0.1])
    log.config |= {"split.by": "column", "split.column": "split"}


def impressions_again(log: Log, rng: np.random.Generator) -> None:
    """Test rows come once more, ten seconds later, in a request of train."""
    cuts = log.rows["time"].quantile([0.8, 0.9]).to_numpy()
    log.rows["split"] = np.array(["train", "valid", "test"])[np.searchsorted(cuts, log.rows["time"])]
    log.rows["twice"] = (log.rows["split"] == "test") & (log.rows["position"] == 0)
    again = log.rows[log.rows["twice"]].copy()
    again["split"], again["time"], again["request_id"] = "train", again["time"] + 10, again["request_id"] + 10**15
    again["like_time"] += 10
    log.rows = pd.concat([log.rows, again])
    log.bad = "twice"
    log.config |= {"split.by": "column", "split.column": "split"}


def label_with_noise(log: Log, rng: np.random.Generator) -> None:
    log.rows["score"] = log.rows["click"] + rng.normal(0, 0.4, len(log.rows))
    _number(log, "score")


def label_as_category(log: Log, rng: np.random.Generator) -> None:
    flipped = np.where(rng.random(len(log.rows)) < 0.02, 1 - log.rows["click"], log.rows["click"])
    log.rows["kind"] = np.where(flipped == 1, rng.choice(["a", "c"], len(log.rows)), "b")
    log.config["data.categories"] = ["kind"]


def clicked_first(log: Log, rng: np.random.Generator) -> None:
    log.rows = log.rows.sort_values(["part", "request_id", "click"], ascending=[True, True, False], kind="stable")


def sorted_by_label(log: Log, rng: np.random.Generator) -> None:
    log.rows = log.rows.sort_values("click", kind="stable")
    log.rows["part"] = 0


def file_by_label(log: Log, rng: np.random.Generator) -> None:
    log.rows["part"] = log.rows["click"]


def users_by_label(log: Log, rng: np.random.Generator) -> None:
    high = log.rows["user_id"] >= log.rows["user_id"].median()
    log.rows["click"] = np.where(rng.random(len(high)) < 0.03, ~high, high).astype(np.int8)


def sessions_cut(log: Log, rng: np.random.Generator) -> None:
    """Each visit goes on ten minutes later with the same items in another place, and visits are split at random."""
    again = log.rows.copy()
    again["time"], again["request_id"] = again["time"] + 600, again["request_id"] + 10**15
    again["item_id"] = again.groupby("part")["item_id"].transform(lambda items: np.roll(items, 7))
    again["like_time"] = again["like_time"] + 600
    log.rows = pd.concat([log.rows, again]).drop_duplicates(["request_id", "item_id"])
    drawn = pd.Series(rng.random(log.rows["request_id"].nunique()), index=log.rows["request_id"].unique())
    share = log.rows["request_id"].map(drawn)
    log.rows["split"] = np.where(share < 0.8, "train", np.where(share < 0.9, "valid", "test"))
    log.rows["held"] = log.rows["split"] == "test"
    log.bad = "held"
    log.config |= {"split.by": "column", "split.column": "split"}


def there_after_the_click(log: Log, rng: np.random.Generator) -> None:
    log.rows["landing"] = np.where(log.rows["click"] == 1, rng.normal(size=len(log.rows)), np.nan)
    _number(log, "landing")


def begun_late(log: Log, rng: np.random.Generator) -> None:
    begun = log.rows["time"] > log.rows["time"].quantile(0.5)
    log.rows["app"] = np.where(begun, rng.choice(["new", "newer"], len(begun)), None)
    log.rows["lacks"] = ~begun
    log.bad = "lacks"
    log.config["data.categories"] = ["app"]


def file_delivered_twice(log: Log, rng: np.random.Generator) -> None:
    again = log.rows[log.rows["part"] == 0].copy()
    again["part"] = 9
    log.rows["twice"] = log.rows["part"] == 0
    again["twice"] = True
    log.rows = pd.concat([log.rows, again])
    log.bad = "twice"


def delivered_again_later(log: Log, rng: np.random.Generator) -> None:
    chosen = rng.random(len(log.rows)) < 0.02
    log.rows["twice"] = chosen
    again = log.rows[chosen].copy()
    again["time"] += 120
    again["like_time"] += 120
    log.rows = pd.concat([log.rows, again])
    log.bad = "twice"


def shifted_scale(log: Log, rng: np.random.Generator) -> None:
    log.rows["late"] = log.rows["time"] > log.rows["time"].quantile(0.9)
    log.rows["score"] = rng.normal(size=len(log.rows)) + 2 * log.rows["late"]
    log.bad = "late"
    _number(log, "score")


def clicks_lost_lately(log: Log, rng: np.random.Generator) -> None:
    log.rows["late"] = log.rows["time"] > log.rows["time"].quantile(0.88)
    lost = log.rows["late"] & (rng.random(len(log.rows)) < 0.6)
    log.rows.loc[lost, "click"] = 0
    log.bad = "late"


def other_zone(log: Log, rng: np.random.Generator) -> None:
    log.rows["moved"] = log.rows["part"] == 1
    log.rows.loc[log.rows["moved"], ["time", "like_time"]] += 9 * 3600
    log.bad = "moved"


def other_unit(log: Log, rng: np.random.Generator) -> None:
    log.rows["moved"] = log.rows["part"].eq(1) & (rng.random(len(log.rows)) < 0.05)
    log.rows.loc[log.rows["moved"], "time"] *= 1000
    log.bad = "moved"


def default_date(log: Log, rng: np.random.Generator) -> None:
    log.rows["moved"] = rng.random(len(log.rows)) < 0.002
    log.rows.loc[log.rows["moved"], "time"] = 978_307_200  # 2001-01-01
    log.rows.loc[log.rows["moved"], "request_id"] = np.arange(log.rows["moved"].sum()) + 10**15
    log.rows.loc[log.rows["moved"], "like_time"] = np.nan
    log.bad = "moved"


def feedback_in_other_zone(log: Log, rng: np.random.Generator) -> None:
    log.rows["like_time"] += 3 * 3600


def constant_column(log: Log, rng: np.random.Generator) -> None:
    log.rows["surface"] = "home"
    log.config["data.categories"] = ["surface"]


def label_stops(log: Log, rng: np.random.Generator) -> None:
    time = log.rows["time"]
    log.rows["dark"] = (time > time.quantile(0.3)) & (time < time.quantile(0.6))
    log.rows["purchase"] = log.rows["purchase"].where(~log.rows["dark"])
    log.bad = "dark"


def cells_that_are_no_ids(log: Log, rng: np.random.Generator) -> None:
    log.rows["lost"] = rng.random(len(log.rows)) < 0.02
    log.rows["item_id"] = log.rows["item_id"].astype("Int64").mask(log.rows["lost"])
    log.bad = "lost"


PLANTS = [
    Plant(user_total, "counted_forward"),
    Plant(clicks_to_come, "counted_forward", also=("drift",)),
    Plant(rows_of_the_day_as_text, "counted_forward"),
    Plant(item_clicks, "later_tables"),
    Plant(item_rate_of_the_last_days, "later_tables"),
    Plant(likes_before, "feedback_times"),
    Plant(likes_at_once, "feedback_times", severity="warning"),
    Plant(rows_split_at_random, "same_request", also=("sessions",)),
    Plant(impressions_again, "same_request", also=("sessions",)),
    Plant(label_with_noise, "single_feature"),
    Plant(label_as_category, "single_feature"),
    Plant(clicked_first, "request_order"),
    Plant(sorted_by_label, "row_order", also=("request_order",)),
    Plant(file_by_label, "row_order", also=("request_order",)),
    Plant(users_by_label, "row_order"),
    Plant(sessions_cut, "sessions"),
    Plant(there_after_the_click, "missing"),
    Plant(begun_late, "missing", severity="warning"),
    Plant(file_delivered_twice, "duplicates"),
    Plant(delivered_again_later, "duplicates"),
    Plant(shifted_scale, "drift", severity="warning"),
    Plant(clicks_lost_lately, "drift", severity="warning"),
    Plant(other_zone, "times", severity="warning"),
    Plant(other_unit, "times"),
    Plant(default_date, "times"),
    Plant(feedback_in_other_zone, "times", severity="warning"),
    Plant(constant_column, "empty_columns", severity="warning"),
    Plant(label_stops, "empty_columns"),
    Plant(cells_that_are_no_ids, "unreadable"),
]
