"""Numbers of the moment at which a candidate is shown: hour and weekday on its user's clock, gaps to the user's earlier
events, and the age of its item. Each is known strictly before that moment, and has the same meaning in every split.
"""

from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.reading.zones import on_clocks
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.rows import Rows

Array = np.ndarray[Any, np.dtype[Any]]

TIME_FEATURES = ("time.hour_sin", "time.hour_cos", "time.weekday", "time.gap", "time.user_age", "time.item_age")
_DAY_US = 86_400_000_000


def time_features(bucket: Bucket, zones: Array, published: Array, item_past: Array) -> list[Array]:
    """float64 [C] each, in the order of `TIME_FEATURES`, NaN = nothing was known before.

    The last three are log(1 + seconds) since the user's last event and first event, and since the item was published.

    Args:
        zones: object [N], see `zones_of`.
        published: int64 [N], see `published_of`.
        item_past: float64 [C, .], see `item_past.answer`: the item's first event.
    """
    candidates, events, ends = bucket.candidates, bucket.events, bucket.ends
    asof = candidates.asof
    clock = on_clocks(asof, zones[candidates.row])
    angle = 2 * np.pi * (clock % _DAY_US) / _DAY_US
    weekday = (clock // _DAY_US + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    first = events.starts[candidates.user]
    seen = ends > 0
    last_time, first_time = np.full((2, len(asof)), np.nan)
    last_time[seen] = events.time[first[seen] + ends[seen] - 1]
    first_time[seen] = events.time[first[seen]]
    born = _born(published[candidates.row], item_past[:, 0], asof)
    ages = [np.log1p(np.maximum(asof - since, 0) / 1e6) for since in (last_time, first_time, born)]
    return [np.sin(angle), np.cos(angle), weekday.astype(np.float64), *ages]


def zones_of(rows: Rows, run: Run, tables: Tables) -> Array:
    """object [N] IANA name of the zone that the user's clock is in: what the log or the table of users says as of the
    row's time, else `data.time_zone`."""
    said = rows.time_zone
    if tables.users is not None and tables.users.time_zones is not None:
        found = tables.rows_of("user", rows)
        said = np.where(found >= 0, tables.users.time_zones[found], "")
    return np.where(said == "", run.data.time_zone, said)


def published_of(rows: Rows, tables: Tables) -> Array:
    """int64 [N] since when the item is there, microseconds; 0 = the table of items does not say."""
    if tables.items is None or tables.items.published is None:
        return np.zeros(rows.num_rows, dtype=np.int64)
    found = tables.rows_of("item", rows)
    return np.where(found >= 0, tables.items.published[found], 0)


def _born(published: Array, first_event: Array, asof: Array) -> Array:
    """float64 [C]: since when an item is there, as it was known then. A time of publication that was still to come was
    not known, or is that of a later edition: then, and without one, the item's first event in the log counts."""
    return np.where((published > 0) & (published <= asof), published.astype(np.float64), first_event)
