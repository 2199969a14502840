"""Hours and weekdays on the user's own clock, and the age of items, each as it was known then."""

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mtrec_ray.config import Run, Table
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.features.item_past import answered
from mtrec_ray.data.features.moments import TIME_FEATURES, published_of, time_features, zones_of
from mtrec_ray.data.features.side_features import number_names
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.tables import read_entities
from mtrec_ray.data.reading.zones import on_clocks, unknown_zones
from mtrec_ray.data.requests.splits import Key, TimeSplit
from tests.data.by_hand import SECOND, behaviours, bucket, config
from tests.data.encoding import encoded
from tests.data.log_files import read

PLACES = ["Europe/Oslo", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 2_145_916_800), st.sampled_from(PLACES)), max_size=20))
def test_clocks_show_what_the_zones_rules_say(moments: list[tuple[int, str]]) -> None:
    """Against `zoneinfo`, at any time to 2037 and place, so also on days on which clocks are put on and back."""
    micros = np.array([seconds * SECOND + 7 for seconds, _ in moments], dtype=np.int64)
    zones = np.array([zone for _, zone in moments], dtype=object)
    expected = [datetime.fromtimestamp(seconds, ZoneInfo(zone)).replace(tzinfo=None) for seconds, zone in moments]
    since = [round((moment - datetime(1970, 1, 1)).total_seconds()) * SECOND + 7 for moment in expected]
    assert on_clocks(micros, zones).tolist() == since


def test_names_of_zones() -> None:
    names = pa.array(["Europe/Oslo", None, "Mars/Olympus", "utc+2", "UTC", "Europe", "../x"])
    assert unknown_zones(names).tolist() == [False, False, True, True, False, True, True]
    assert unknown_zones(pa.array([None, None], pa.string())).tolist() == [False, False]


def moments(run: Run, rows: list[dict[str, Any]], boundaries: TimeSplit | None = None) -> dict[int, dict[str, float]]:
    """Row id -> time features of the candidate."""
    result, _, _ = encoded(run, rows) if boundaries is None else encoded(run, rows, boundaries)
    names = [name for name, _ in number_names(run)]
    found = {}
    for table in result.requests.values():
        for request in table.to_pylist():
            numbers = np.reshape(request["numbers"], (len(request["item"]), -1))
            for row_id, row in zip(request["row_id"], numbers, strict=True):
                found[row_id] = {name: float(row[names.index(name)]) for name in TIME_FEATURES}
    return found


def row(user: int, item: int, time: float, **more: Any) -> dict[str, Any]:
    return {"user": str(user), "item": str(item), "time": time, "like": 1, **more}


def clock(found: dict[str, float]) -> tuple[float, float]:
    """Weekday, 0 = Monday, and hour, with what the float32 of its sine and cosine leave of it."""
    angle = np.arctan2(found["time.hour_sin"], found["time.hour_cos"])
    return found["time.weekday"], round(float(angle / (2 * np.pi) * 24) % 24, 3)


def at(zone: str, *date: int) -> float:
    return datetime(*date, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type, misc]


# Summer time began in Oslo on Sunday the 28th of March 2021 at 2:00, which was 3:00.
WINTER, SUMMER = at("UTC", 2021, 3, 28, 0, 30), at("UTC", 2021, 3, 28, 1, 30)


def test_the_log_says_whose_clock_a_row_goes_by() -> None:
    run = config(data__columns__time_zone="tz", features__aggregates=[])
    zones = ["Europe/Oslo", "Europe/Oslo", "America/New_York", None]
    rows = [row(1, 7, t, time_zone=z) for t, z in zip([WINTER, SUMMER, SUMMER + 60, SUMMER + 120], zones, strict=True)]
    found = moments(run, rows)
    assert [clock(found[n]) for n in range(4)] == [(6, 1.5), (6, 3.5), (5, 21.517), (6, 1.533)]
    elsewhere = run.model_copy(update={"data": run.data.model_copy(update={"time_zone": "Asia/Kathmandu"})})
    assert clock(moments(elsewhere, rows)[3]) == (6, 7.283), "where nothing is said, data.time_zone"


def test_the_table_of_users_says_where_their_clocks_are_as_of_then() -> None:
    """User 1 moves; of user 2 nothing is known, and of user 3 the table has no zone."""
    Path("users.csv").write_text(
        f"id,tz,since\n1,Asia/Kathmandu,{WINTER + 60:.0f}\n1,Europe/Oslo,{WINTER - 9:.0f}\n3,,1e9\n"
    )
    users = {"path": "users.csv", "key": "id", "time_zone": "tz", "valid_from": "since"}
    run = config(data__users=users, data__time_zone="America/New_York", features__aggregates=[])
    found = moments(run, [row(1, 7, WINTER), row(1, 7, SUMMER), row(2, 7, SUMMER), row(3, 7, SUMMER)])
    assert [clock(found[n]) for n in range(4)] == [(6, 1.5), (6, 7.25), (5, 21.5), (5, 21.5)]


def test_one_clock_for_all_is_that_of_the_logs_zone() -> None:
    found = {
        zone: clock(moments(config(data__time_zone=zone, features__aggregates=[]), [row(1, 7, SUMMER)])[0])
        for zone in ("UTC", "Europe/Oslo", "America/New_York")
    }
    assert found == {"UTC": (6, 1.5), "Europe/Oslo": (6, 3.5), "America/New_York": (5, 21.5)}


def test_rows_with_an_unknown_zone_are_quarantined() -> None:
    Path("log.csv").write_text(
        f"user,item,time,tz,like\n1,7,{SUMMER:.0f}, Europe/Oslo ,1\n1,8,{SUMMER:.0f},Oslo,1\n1,9,{SUMMER:.0f},,1\n"
    )
    events = read(config(data__logs="log.csv", data__columns__time_zone="tz"))
    assert events.table["context.time_zone"].to_pylist() == ["Europe/Oslo", None]
    assert events.quarantine.select(["row", "reason"]).to_pylist() == [
        {"row": 2, "reason": "column 'tz' is no IANA time zone, as Europe/Oslo"}
    ]
    Path("users.csv").write_text("id,tz\n1,Europe/Oslo\n2,Oslo\n3,\n")
    table = read_entities(Table(path="users.csv", key="id", time_zone="tz"), "data.users")
    assert (table.keys.to_pylist(), [bad.row for _, bad in table.bad]) == (["1", "3"], [2])
    assert table.time_zones is not None
    assert table.time_zones.tolist() == ["Europe/Oslo", ""]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"data__items": {"path": "i", "key": "k", "time_zone": "tz"}}, "data.items.time_zone: items have no clock"),
        ({"data__users": {"path": "u", "key": "k", "published": "p"}}, "data.users.published: users are not published"),
        (
            {"data__users": {"path": "u", "key": "k", "time_zone": "tz"}, "data__columns__time_zone": "tz"},
            "both say a user's zone",
        ),
        ({"data__time_zone": "Oslo"}, "'Oslo' is no time zone"),
    ],
)
def test_settings_that_contradict_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**parts)
    assert message in str(error.value)


def ages(run: Run, rows: list[dict[str, Any]], boundaries: TimeSplit | None = None) -> list[float]:
    """Seconds, NaN = the item was not there before, in the order of the row ids."""
    found = moments(run, rows, boundaries)
    return [round(float(np.expm1(found[n]["time.item_age"])), 1) for n in sorted(found)]


def test_an_items_age_counts_from_when_anybody_first_saw_it() -> None:
    """Also of an item that is new after the train period."""
    late = TimeSplit(Key(55 * SECOND), Key(65 * SECOND))
    rows = [row(1, 7, 10), row(2, 7, 40), row(1, 7, 50), row(2, 8, 60), row(1, 8, 75), row(2, 7, 80)]
    run = config(features__aggregates=[])
    np.testing.assert_array_equal(ages(run, rows, late), [np.nan, 30, 40, np.nan, 15, 70])
    lagging = config(features__aggregates=[], history__lag=20)
    np.testing.assert_array_equal(ages(lagging, rows, late), [np.nan, 30, 40, np.nan, np.nan, 70])


def test_an_items_age_counts_from_its_publication_where_that_is_known() -> None:
    """Of what was published at some later time nothing was known of that."""
    Path("items.csv").write_text("id,since\n7,5\n8,\n9,58\n")
    items = {"path": "items.csv", "key": "id", "published": "since"}
    base = at("UTC", 2021, 1, 1)
    shifted = Path("items.csv").read_text().replace("7,5", f"7,{base + 5:.0f}").replace("9,58", f"9,{base + 58:.0f}")
    Path("items.csv").write_text(shifted)
    rows = [row(1, 7, 10), row(2, 8, 40), row(1, 8, 50), row(2, 9, 54), row(1, 9, 56), row(1, 9, 60), row(1, 6, 61)]
    rows = [{**r, "time": base + r["time"]} for r in rows]
    found = ages(config(data__items=items, features__aggregates=[]), rows)
    np.testing.assert_array_equal(found, [5, np.nan, 10, np.nan, 2, 2, np.nan])
    without = ages(config(features__aggregates=[]), rows)
    np.testing.assert_array_equal(without, [np.nan, np.nan, 10, np.nan, 2, 6, np.nan])


def test_a_time_of_publication_that_cannot_be_read_is_a_bad_row() -> None:
    Path("items.csv").write_text(f"id,since\n7,{WINTER:.0f}\n8,soon\n9,\n10,3\n")
    table = read_entities(Table(path="items.csv", key="id", published="since"))
    assert (table.keys.to_pylist(), [bad.row for _, bad in table.bad]) == (["7", "9"], [2, 4])
    assert table.published is not None
    assert table.published.tolist() == [round(WINTER) * SECOND, 0]


EVENT = st.fixed_dictionaries(
    {"user": st.sampled_from("12"), "item": st.sampled_from("78"), "time_zone": st.sampled_from([*PLACES, None])}
)
TYPES = {"impressions": {}, "behaviours": {"event": "VIEW"}}


@pytest.mark.parametrize("layout", TYPES)
@pytest.mark.parametrize("lag", [0, 7])
@settings(max_examples=60, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_nothing_at_a_candidates_time_or_later_changes_its_ages_and_its_clock(
    layout: str, lag: int, data: st.DataObject
) -> None:
    make = config if layout == "impressions" else behaviours
    run = make(data__columns__time_zone="tz", features__aggregates=[], history__lag=lag)
    cut = data.draw(st.integers(1, 40))
    before = data.draw(st.lists(st.tuples(EVENT, st.integers(0, cut)), min_size=1, max_size=10))
    after = data.draw(st.lists(st.tuples(EVENT, st.integers(cut, 60)), max_size=6))
    rows = [{**event, **TYPES[layout], "time": t, "like": 1, "row_id": n} for n, (event, t) in enumerate(before)]
    noise = [{**event, **TYPES[layout], "time": t, "like": 0, "row_id": 99 + n} for n, (event, t) in enumerate(after)]
    boundaries = TimeSplit(Key(data.draw(st.integers(0, 60)) * SECOND), Key(61 * SECOND))
    ours, theirs = (of_candidates(run, log, boundaries) for log in (rows, [*rows, *noise]))
    for row_id in ours.keys() & theirs.keys():
        np.testing.assert_array_equal(ours[row_id], theirs[row_id])


def of_candidates(run: Run, rows: list[dict[str, Any]], boundaries: TimeSplit) -> dict[int, list[float]]:
    """Row id -> time features, straight from the bucket."""
    built, nothing = bucket(run, rows, boundaries), Tables(None, None)
    zones, published = zones_of(built.rows, run, nothing), published_of(built.rows, nothing)
    columns = np.stack(time_features(built, zones, published, answered(built, run)), axis=1)
    return dict(zip(built.rows.row_id[built.candidates.row].tolist(), columns.tolist(), strict=True))


def test_numbers_of_time_are_the_same_with_any_buckets_and_none_without_the_switch() -> None:
    lines = [f"{u},{7 + (u + t) % 3},{10**9 + 60 * t + u},{PLACES[u % 5]},{t % 2}" for u in range(12) for t in range(9)]
    Path("log.csv").write_text("\n".join(["user,item,time,tz,like", *lines]) + "\n")
    prepared = [
        prepare(
            config(
                data__logs="log.csv", data__columns__time_zone="tz", data__buckets=n, features__aggregates=[], **parts
            ),
            serial_tasks,
        )
        for n, parts in ((1, {}), (4, {}), (1, {"features__time": False}))
    ]
    one, several, without = ([n for n in p.manifest.numbers if n.kind == "time"] for p in prepared)
    assert [entry.name for entry in one] == list(TIME_FEATURES)
    assert one == several
    assert without == []
    age = next(entry for entry in one if entry.name == "time.item_age")
    assert age.std > 0
