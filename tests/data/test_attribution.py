"""Attribution windows on logs by hand: labels before, at and after the ends of windows and of what is known."""

from pathlib import Path

import numpy as np
import pytest

from mtrec_ray.config import Task
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.fitting.collect import collect
from mtrec_ray.data.fitting.delays import delay_entry
from mtrec_ray.data.fitting.fit import fit
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.requests.attribution import log_end
from mtrec_ray.data.requests.bucket import build_bucket
from mtrec_ray.data.requests.rows import from_table
from mtrec_ray.data.requests.splits import Key, TimeSplit
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.shards import Shards
from tests.data.by_hand import INTEGERS, SECOND, behaviours, config, table
from tests.data.encoding import encoded

NAN = float("nan")
CUT = TimeSplit(Key(100 * SECOND), Key(200 * SECOND))
"""Rows before 100 s are train, from 200 s on test."""
MODES = ("unobserved", "negative", "excluded")


def shown(inside=None, layout="impressions", **task):
    """A run with a window of 10 s."""
    settings = {"window": 10, **({} if inside is None else {"inside_window": inside}), **task}
    if layout == "behaviours":
        return behaviours(tasks={"buy": {"event": "BUY", **settings}})
    return config(tasks={"buy": {"label": "buy", "feedback_time": "t", **settings}})


def row(item, time, buy=0, at=None, **more):
    """An impression; `at`: when the feedback came."""
    return {"user": "1", "item": str(item), "time": time, "buy": buy, "buy_time": at, **more}


def view(item, time):
    return {"user": "1", "item": str(item), "time": time, "event": "VIEW"}


def bought(item, time, user="1"):
    return {"user": user, "item": str(item), "time": time, "event": "BUY", "buy": 1}


def built(run, rows, end=10**6, boundaries=CUT):
    return build_bucket(table(run, rows), run, INTEGERS, boundaries, end * SECOND)


def labels(run, rows, **more):
    return built(run, rows, **more).labels[:, 0]


@pytest.mark.parametrize("inside", MODES)
def test_a_window_that_is_over_decides_whatever_is_said_of_open_ones(inside):
    rows = [row(1, 10), row(2, 20, 1, 20), row(3, 30, 1, 40), row(4, 40, 1, 50.000001), row(5, 50, 1, 99)]
    assert labels(shown(inside), rows).tolist() == [0, 1, 1, 0, 0]  # a microsecond too late is too late


def test_the_last_instant_of_a_window_decides_whether_it_is_over():
    """Impressions know what came at the cut-off itself: the window of the row at 90 s ends with it."""
    rows = [row(1, 89), row(2, 90), row(3, 90.000001), row(4, 99, 1, 100), row(5, 99.5, 1, 100.000001)]
    np.testing.assert_array_equal(labels(shown("unobserved"), rows), [0, 0, NAN, 1, NAN])
    np.testing.assert_array_equal(labels(shown("negative"), rows), [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(labels(shown("excluded"), rows), [0, 0, NAN, NAN, NAN])


def test_in_behaviours_what_comes_at_the_cut_off_is_not_known():
    rows = [view(1, 89), view(2, 90), view(3, 95), bought(3, 99.999999), view(4, 96), bought(4, 100)]
    np.testing.assert_array_equal(labels(shown("unobserved", "behaviours"), rows), [0, NAN, 1, NAN])
    np.testing.assert_array_equal(labels(shown("negative", "behaviours"), rows), [0, 0, 1, 0])
    np.testing.assert_array_equal(labels(shown("excluded", "behaviours"), rows), [0, NAN, NAN, NAN])


def test_excluded_is_the_default_and_negative_that_of_kind_delayed():
    rows = [row(1, 95), row(2, 96, 1, 97)]
    np.testing.assert_array_equal(labels(shown(), rows), [NAN, NAN])
    np.testing.assert_array_equal(labels(shown(kind="delayed"), rows), [0, 1])


def test_in_behaviours_the_event_counts_from_the_candidate_on():
    rows = [
        *(bought(1, 5), view(1, 10)),
        *(bought(2, 15), view(2, 20), bought(2, 28), bought(2, 29)),
        *(view(3, 30), bought(3, 30)),
        *(view(4, 40), bought(4, 50.000001)),
        *(view(5, 50), bought(5, 55, user="2")),
    ]
    found = built(shown(layout="behaviours"), rows)
    assert found.labels[:, 0].tolist() == [0, 1, 1, 0, 0]
    np.testing.assert_array_equal(found.delays.delays[:, 0], [NAN, 8, 0, NAN, NAN])
    without = behaviours(tasks={"buy": {"event": "BUY"}})
    assert labels(without, rows).tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("inside", MODES)
def test_valid_and_test_rows_are_measured_where_the_log_goes_on_to_the_end_of_the_window(inside):
    rows = [row(1, 150, 1, 155), row(2, 160, 1, 171), row(3, 210, 1, 220), row(4, 211, 1, 212), row(5, 212)]
    found = labels(shown(inside), rows, end=220)
    np.testing.assert_array_equal(found, [1, 0, 1, NAN, NAN])
    np.testing.assert_array_equal(labels(shown(inside), rows, end=222), [1, 0, 1, 1, 0])


def test_train_rows_without_a_cut_off_are_as_of_the_end_of_the_log():
    run = config(
        tasks={"buy": {"label": "buy", "feedback_time": "t", "window": 10}}, split={"by": "column", "column": "part"}
    )
    rows = [row(1, 10, split="train"), row(2, 15, split="train"), row(3, 16, 1, 18, split="train")]
    found = built(run, rows, end=20, boundaries=None)
    np.testing.assert_array_equal(found.labels[:, 0], [0, NAN, NAN])
    np.testing.assert_array_equal(found.delays.elapsed, [10, 5, 4])
    assert np.isnan(build_bucket(table(run, rows), run, INTEGERS, None).delays.elapsed).all()


def test_by_user_the_cut_off_is_each_users_own():
    run = config(tasks={"buy": {"label": "buy", "feedback_time": "t", "window": 10}}, split={"by": "user"})
    rows = [{**row(i, 10 * i + 100 * u), "user": str(u)} for u in (1, 2) for i in range(4)]
    found = built(run, rows, boundaries=None)
    np.testing.assert_array_equal(found.delays.elapsed, [20, 10, NAN, NAN] * 2)
    np.testing.assert_array_equal(found.labels[:, 0], [0, 0, 0, 0] * 2)


def test_delays_are_those_of_positives_and_elapsed_times_those_of_train_rows():
    rows = [row(1, 80, 1, 83.5), row(2, 82), row(3, 96), row(4, 99, 1, 100), row(5, 150, 1, 152)]
    found = built(shown("negative"), rows).delays
    np.testing.assert_array_equal(found.delays[:, 0], [3.5, NAN, NAN, 1, 2])
    np.testing.assert_array_equal(found.elapsed, [20, 18, 4, 1, NAN])


def test_feedback_without_a_time_came_at_once_and_has_no_delay():
    rows = [row(1, 10, 1, None), row(2, 20, 1, 15), row(3, 97, 1, None)]
    found = built(shown("unobserved"), rows)
    assert found.labels[:, 0].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(found.delays.delays[:, 0], [NAN, 0, NAN])


def test_what_is_not_observed_stays_so():
    rows = [row(1, 10, None), row(2, 20, 0), row(3, 95, None, 96)]
    np.testing.assert_array_equal(labels(shown("negative"), rows), [NAN, 0, NAN])


def test_other_tasks_are_left_alone():
    tasks = {
        "buy": {"label": "buy", "feedback_time": "t", "window": 10},
        "like": {"label": "like", "feedback_delay": 0},
    }
    found = built(config(tasks=tasks), [{**row(1, 95), "like": 1}, {**row(2, 150), "like": 0}])
    np.testing.assert_array_equal(found.labels, [[NAN, 1], [0, 0]])
    assert np.isnan(found.delays.delays).all()


def test_the_end_of_the_log_is_the_last_time_that_it_mentions():
    run = shown()
    of = lambda rows: log_end(from_table(table(run, rows), run, True), run)  # noqa: E731
    assert of([row(1, 10, 1, 30), row(2, 20)]) == 30 * SECOND
    assert of([row(1, 10), row(2, 20)]) == 20 * SECOND
    assert of([]) == -1
    supposed = config(tasks={"like": {"label": "like", "feedback_delay": "1h"}})
    rows = [{"user": "1", "item": "1", "time": 10, "like": 1, "like_time": 3610}]
    assert log_end(from_table(table(supposed, rows), supposed, True), supposed) == 10 * SECOND  # no row says so


def test_delays_are_fitted_on_rows_whose_window_was_over():
    run = shown("negative")
    rows = [row(i, 2 * i, 1, 2 * i + i % 10) for i in range(40)] + [row(50, 97, 1, 98), row(51, 30)]
    bucket = built(run, rows)
    found = fit(Gathered.of([collect(bucket, run, Tables(None, None), 10)]), run, Tables(None, None)).tasks[0].delays
    assert found.window == 10
    assert found.mean == pytest.approx((4 * sum(range(10)) + 1) / 41)
    np.testing.assert_allclose(found.quantiles, np.quantile(list(range(10)) * 4, np.arange(101) / 100))
    assert delay_entry(10.0, [np.zeros((0, 2))]) is None
    assert delay_entry(10.0, [np.array([[3.0, 5.0]])]).quantiles == []
    assert delay_entry(10.0, [np.array([[3.0, np.inf]])]).quantiles == [3.0] * 101


def test_request_rows_have_them_where_a_task_has_a_window():
    rows = [row(1, 80, 1, 83), row(2, 96)]
    (request,) = encoded(shown("negative"), rows, CUT)[0].requests["train"].to_pylist()
    assert request["labels"] == [1, 0]
    np.testing.assert_array_equal(request["delays"], [3, NAN])
    np.testing.assert_array_equal(request["elapsed"], [20, 4])
    without = config(tasks={"buy": {"label": "buy", "feedback_time": "t"}})
    assert not {"delays", "elapsed"} & set(encoded(without, rows, CUT)[0].requests["train"].column_names)


def test_without_an_end_nothing_changes_but_what_the_window_says():
    rows = [row(1, 150, 1, 155), row(2, 250)]
    run = shown()
    found = build_bucket(table(run, rows), run, INTEGERS, CUT)
    assert found.labels[:, 0].tolist() == [1, 0]


def test_windows_are_part_of_what_prepared_data_depends_on():
    runs = [shown(), shown("negative"), shown("excluded"), shown(window=20), shown(kind="delayed")]
    found = [str(settings(run)) for run in runs]
    assert len(set(found)) == len(found)
    delayed = [shown(kind="delayed", params={"loss": loss}) for loss in ("dfm", "fnw")]
    assert settings(delayed[0]) == settings(delayed[1])


LOG = """user,item,time,buy,t,part,place,chance
1,10,1600000000,1,1600000004,train,3,
1,11,1600000010,1,1600000030,train,,
2,10,1600000094,0,,train,7,
2,11,1600000099,1,1600000100,train,2,
2,12,1600000150,1,1600000152,valid,9,0.5
3,10,1600000250,0,,test,12,
3,11,1600000400,0,,test,1,
"""


def test_from_a_log_to_the_batch_and_the_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOG)
    columns = {"data__columns__position": "place", "data__columns__propensity": "chance", "data__buckets": 2}
    task = {"kind": "delayed", "label": "buy", "feedback_time": "t", "window": 10}
    split = {"train_until": 1600000100, "valid_until": 1600000200}
    prepared = prepare(config(tasks={"buy": task}, split=split, features__aggregates=[], **columns), serial_tasks)
    manifest = prepared.manifest
    assert (manifest.positions, manifest.propensities) == ([2, 7], 0)  # of train rows alone
    delays = manifest.tasks[0].delays
    assert (delays.window, delays.mean, delays.quantiles) == (10, 2.5, [4.0] * 101)
    shards = Shards(prepared.path, manifest, "train")
    batch = Collator(manifest)(shards.rows(np.arange(shards.num_requests)))
    order = batch.row_ids.argsort()
    np.testing.assert_array_equal(batch.labels[order, 0], [1, 0, 0, 1])
    np.testing.assert_array_equal(batch.delays[order, 0], [4, NAN, NAN, 1])
    np.testing.assert_array_equal(batch.elapsed[order], [100, 90, 6, 1])
    test = Shards(prepared.path, manifest, "test")
    found = Collator(manifest)(test.rows(np.arange(test.num_requests)))
    np.testing.assert_array_equal(found.labels[found.row_ids.argsort(), 0], [0, NAN])  # the log ends with the last row
    assert found.elapsed.isnan().all()


def test_in_several_buckets_it_is_as_in_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOG)
    task = {"label": "buy", "feedback_time": "t", "window": 10}
    split = {"train_until": 1600000100, "valid_until": 1600000200}
    parts = {"tasks": {"buy": task}, "split": split, "features__aggregates": [], "data__columns__position": "place"}
    one, several = (prepare(config(**parts, data__buckets=b), serial_tasks).manifest for b in (1, 5))
    assert one.tasks == several.tasks
    assert one.positions == several.positions == [2, 7]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"label": "buy", "window": "7d"}, "`window` needs `feedback_time`"),
        ({"label": "buy", "window": "7d", "feedback_delay": "1h"}, "`window` needs `feedback_time`"),
        (
            {"label": "buy", "kind": "regression", "window": "7d", "feedback_time": "t"},
            "is for labels 0 and 1, and kind",
        ),
        ({"event": "BUY", "value": "n", "window": "7d"}, "is for labels 0 and 1"),
        ({"label": "buy", "feedback_time": "t", "window": 0}, "greater than 0"),
        ({"label": "buy", "feedback_time": "t", "inside_window": "negative"}, "inside_window needs `window`"),
        ({"label": "buy", "feedback_time": "t", "kind": "delayed"}, "kind 'delayed' needs `window`"),
        (
            {"label": "buy", "feedback_time": "t", "kind": "delayed", "window": "7d", "inside_window": "unobserved"},
            "inside_window is unobserved, but kind 'delayed' learns from the rows inside the window",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        Task.model_validate(task)
    assert (
        Task(label="buy", feedback_time="t", kind="delayed", window="7d", inside_window="negative").inside == "negative"
    )
