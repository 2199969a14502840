import numpy as np
import pytest

from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.fitting import durations
from mtrec_ray.data.fitting.collect import collect
from mtrec_ray.data.fitting.fit import fit
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.data.requests.splits import Key, TimeSplit
from mtrec_ray.errors import ConfigError
from tests.data.by_hand import SECOND, bucket, config

NO_TABLES = Tables(None, None)


def run_of(**params):
    task = {"kind": "watch_time", "label": "watched", "params": {"duration": "length", **params}}
    return config(tasks={"watch": task}, data__numbers=["length"])


def row(number, length, watched):
    return {
        "user": str(number % 7),
        "item": str(number),
        "time": number,
        "row_id": number,
        "length": length,
        "watch": watched,
    }


def fitted(rows, run, buckets=1):
    parts = [[row for row in rows if int(row["user"]) % buckets == b] for b in range(buckets)]
    collected = [collect(bucket(run, part), run, NO_TABLES, 10**6) for part in parts]
    return fit(Gathered.of(collected), run, NO_TABLES).tasks[0]


ROWS = [row(1, 10, 5), row(2, 10, 30), row(3, 20, 20), row(4, 20, 0), row(5, 40, 10)]
WITHOUT_DURATION = [row(6, None, 7), row(7, 0, 7), row(8, -1, 7), row(9, 50, None)]


def test_the_mean_share_is_of_the_rows_with_a_duration():
    assert fitted(ROWS, run_of()).durations.share == pytest.approx(np.mean([0.5, 1, 1, 0, 0.25]))
    assert fitted(ROWS + WITHOUT_DURATION, run_of()).durations == fitted(ROWS, run_of()).durations
    assert fitted(ROWS, run_of(cap=2.0)).durations.share == pytest.approx(np.mean([0.5, 2, 1, 0, 0.25]) / 2)
    assert fitted([*ROWS, row(6, 10, -3)], run_of()).durations.share == pytest.approx(2.75 / 6)


def test_groups_have_equally_many_rows_and_quantiles_of_their_own():
    rng = np.random.default_rng(0)
    lengths, shares = rng.integers(1, 1000, 4000), rng.random(4000)
    rows = [row(n, int(lengths[n]), float(lengths[n] * shares[n])) for n in range(4000)]
    found = fitted(rows, run_of(method="quantile", groups=4)).durations
    group = np.searchsorted(found.edges, lengths, side="right")
    assert np.bincount(group).tolist() == pytest.approx([1000] * 4, abs=10)
    for g in range(4):
        watched = np.float32(lengths * shares)[group == g]
        expected = np.quantile(watched.astype(np.float64), np.arange(101) / 100)
        np.testing.assert_allclose(found.quantiles[g], expected, rtol=1e-6)


def test_no_group_is_empty_where_durations_are_few():
    found = fitted(ROWS, run_of(method="quantile", groups=50)).durations
    assert found.edges == [20.0]
    assert [(q[0], q[-1]) for q in found.quantiles] == [(5, 30), (0, 20)]
    assert fitted([row(1, 10, 5)], run_of(method="quantile", groups=50)).durations.edges == []


def test_it_does_not_matter_how_users_are_dealt_to_buckets():
    rng = np.random.default_rng(1)
    rows = [row(n, int(rng.integers(1, 50)), float(rng.random())) for n in range(300)]
    assert fitted(rows, run_of()).durations == fitted(rows, run_of(), buckets=3).durations


def test_of_a_large_log_a_sample_drawn_by_row_is_kept(monkeypatch):
    rows = [row(n, n + 1, float(n)) for n in range(400)]
    monkeypatch.setattr(durations, "SAMPLE", 80)
    run = run_of()
    kept = durations.watched(bucket(run, rows), run, NO_TABLES)["watch"]
    assert len(kept) == 80 // run.data.buckets
    again = durations.watched(bucket(run, [row for row in rows if row["row_id"] % 2]), run, NO_TABLES)["watch"]
    odd = kept[kept[:, 1] % 2 == 1]
    assert 0 < len(odd) < len(kept)
    assert {tuple(pair) for pair in odd} <= {tuple(pair) for pair in again}


def test_rows_that_are_not_train_change_nothing():
    split = TimeSplit(Key(4 * SECOND), Key(10**18))
    run = run_of()
    found = fit(Gathered.of([collect(bucket(run, ROWS, split), run, NO_TABLES, 10**6)]), run, NO_TABLES).tasks[0]
    assert found.durations == fitted(ROWS[:3], run).durations


def test_without_any_duration_there_is_nothing_to_fit():
    assert fitted(WITHOUT_DURATION, run_of()).durations is None


def test_an_unknown_duration_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"tasks.watch.params.duration: no number is called 'lenght'.*'length'"):
        fitted(ROWS, run_of(duration="lenght"))


def test_data_is_prepared_again_only_for_parameters_that_change_it():
    assert settings(run_of()) == settings(run_of(method="ratio"))
    assert settings(run_of()) != settings(run_of(cap=2.0))
    assert settings(run_of(method="quantile")) != settings(run_of(method="quantile", groups=3))
    like = config(tasks={"like": {"label": "like", "params": {"label_smoothing": 0.1}}})
    assert settings(like) == settings(config(tasks={"like": {"label": "like"}}))
