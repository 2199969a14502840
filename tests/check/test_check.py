from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtrec_ray.check import checks
from mtrec_ray.check.check import Checked, check
from mtrec_ray.check.finding import CHECKS
from mtrec_ray.config_file import load, parse
from mtrec_ray.data.sample import write_sample
from mtrec_ray.errors import DataError
from tests.check.conftest import SIZE
from tests.check.planted import PLANTS, Log, Plant, item_clicks, user_total

pytestmark = pytest.mark.filterwarnings("error")


def said(checked: Checked) -> list[str]:
    return [f"{finding.check}: {finding.what}" for finding in checked.findings]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_found_in_a_clean_log(tmp_path: Path, seed: int) -> None:
    write_sample(str(tmp_path), seed=seed, **SIZE)
    checked = check(load(tmp_path / "config.yaml"))
    assert said(checked) == []
    assert not checked.failed
    assert list(checked.silent) == checks.ORDER == sorted(CHECKS.names(), key=checks.ORDER.index)


def test_every_check_has_a_plant() -> None:
    assert {plant.check for plant in PLANTS} == set(checks.ORDER)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.change.__name__)
def test_a_planted_leak_is_found_by_its_check_alone(tmp_path: Path, clean: Log, plant: Plant) -> None:
    plant.change(clean, np.random.default_rng(5))
    run, bad = clean.write(tmp_path)
    checked = check(run)
    found = Counter(finding.check for finding in checked.findings)
    assert found[plant.check] >= 1, said(checked)
    assert set(found) <= {plant.check, *plant.also}, said(checked)
    finding = next(f for f in checked.findings if f.check == plant.check)
    assert finding.severity == plant.severity
    assert checked.failed == any(f.severity == "error" for f in checked.findings)
    assert finding.rows
    places = {(Path(place.file).name, place.row) for place in finding.rows}
    assert all(Path(place.file).is_file() for place in finding.rows)
    if bad is not None:
        assert places <= bad, finding.rows


@pytest.mark.parametrize("plant", [user_total, item_clicks], ids=lambda plant: plant.__name__)
def test_a_part_of_a_large_log_shows_it_too(tmp_path: Path, clean: Log, plant: object) -> None:
    plant(clean, np.random.default_rng(5))  # type: ignore[operator]
    run, _ = clean.write(tmp_path)
    most = len(clean.rows) * 2 // 3
    checked = check(run, most_rows=most)
    read = checked.log.read
    assert 0 < read.of_users.num_rows <= most
    assert 0 < read.of_items.num_rows <= most
    assert (read.user_share, read.item_share) == (0.5, 0.5)
    assert read.rows_read == len(clean.rows)
    assert [finding.check for finding in checked.findings if finding.severity == "error"] == [
        {"user_total": "counted_forward", "item_clicks": "later_tables"}[plant.__name__]  # type: ignore[attr-defined]
    ]


def test_a_log_whose_one_user_is_too_large_is_refused(tmp_path: Path, clean: Log) -> None:
    clean.rows["user_id"] = 1
    run, _ = clean.write(tmp_path)
    with pytest.raises(DataError, match=r"One user has more than 5,000 rows.*--rows"):
        check(run, most_rows=5_000)


def test_columns_of_the_past_are_no_leaks(tmp_path: Path, clean: Log) -> None:
    """Counts and rates up to each row, the size of the request, and a trait that says how active a user is."""
    rows = clean.rows.sort_values(["user_id", "time"], kind="stable")
    per_time = rows.groupby(["user_id", "time"])["click"].agg(["sum", "size"])
    before = per_time.groupby(level=0).cumsum() - per_time
    keys = pd.MultiIndex.from_frame(rows[["user_id", "time"]])
    rows["so_far"] = before["size"].reindex(keys).to_numpy()
    rows["rate"] = (before["sum"].reindex(keys).to_numpy() + 1) / (rows["so_far"] + 5)
    rows["shown"] = rows.groupby("request_id")["item_id"].transform("size")
    active = rows.groupby("user_id")["item_id"].transform("size")
    noise = pd.Series(np.random.default_rng(0).lognormal(0, 0.3, 10**4)).reindex(rows["user_id"]).to_numpy()
    rows["tier"] = np.log(active * noise).round(1)
    clean.rows = rows
    clean.config["data.numbers"] = ["position", "so_far", "rate", "shown", "tier"]
    run, _ = clean.write(tmp_path)
    checked = check(run)
    assert not checked.failed, said(checked)
    assert {finding.check for finding in checked.findings} <= {"drift"}, "counts since the beginning grow with time"


BEHAVIOURS = """\
name: pairs
data:
  logs: {path}
  layout: behaviours
  columns: {{user: user, item: item, time: time, event: event}}
  candidate_event: VIEW
tasks:
  like: {{event: LIKE}}
"""


def test_feedback_before_the_first_view_of_a_pair(tmp_path: Path) -> None:
    lines = ["user,item,time,event"]
    for n in range(300):
        user, item, time = n % 20, n, 1_600_000_000 + 3_000 * n
        lines.append(f"{user},{item},{time},VIEW")
        if n % 10 == 0:
            lines.append(f"{user},{item},{time - 500 if n == 100 else time + 40},LIKE")
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    found = [f for f in check(parse(BEHAVIOURS.format(path=path))).findings if f.check == "feedback_times"]
    assert [f.what for f in found] == [
        "'like': 1 of 30 (3.3%) feedbacks (event 'LIKE') are dated before the row that they belong to."
    ]
    assert [(place.row, place.note) for place in found[0].rows] == [(111, "user 0, item 100, 500 s before")]
    assert lines[111] == "0,100,1600300000,VIEW"
