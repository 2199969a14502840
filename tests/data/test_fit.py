import pickle

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.features.factors import Interactions, item_factors
from mtrec_ray.data.filesystem import open_fs
from mtrec_ray.data.fitting.collect import collect
from mtrec_ray.data.fitting.fit import fit
from mtrec_ray.data.fitting.fitted_files import load_fitted, save_fitted
from mtrec_ray.data.fitting.gathered import Gathered
from mtrec_ray.data.fitting.tally import Tally, Total, Vocabulary, earliest, merge
from mtrec_ray.data.requests.ids import fold_of
from mtrec_ray.data.requests.rows import NEVER
from mtrec_ray.data.requests.splits import Key, TimeSplit
from mtrec_ray.errors import DataError
from tests.data.by_hand import SECOND, bucket, config

NO_TABLES = Tables(None, None)
RNG = np.random.default_rng(1)
UNTIL = TimeSplit(Key(60 * SECOND), Key(80 * SECOND))


def log(users=12, items=9, rows=200):
    return [
        {
            "user": str(RNG.integers(users)),
            "item": str(RNG.integers(items)),
            "time": int(RNG.integers(100)),
            "like": int(RNG.integers(2)),
            "row_id": number,
            "place": "abc"[RNG.integers(3)],
            "price": float(RNG.uniform()),
        }
        for number in range(rows)
    ]


RUN = config(data__categories=["place"], data__numbers=["price"])
LOG = log()


def fitted(parts, run=RUN, most=10**6):
    collected = [collect(bucket(run, part, UNTIL), run, NO_TABLES, most) for part in parts]
    return fit(Gathered.of(collected), run, NO_TABLES)


def same(left, right):
    assert left.users.keys.equals(right.users.keys)
    assert left.items.keys.equals(right.items.keys)
    assert left.tasks == right.tasks
    assert left.widths == right.widths
    for ours, theirs in zip(left.statistics, right.statistics, strict=True):
        np.testing.assert_array_equal(ours.mean, theirs.mean)
        np.testing.assert_array_equal(ours.categories["place"], theirs.categories["place"])
        np.testing.assert_array_equal(ours.factors["like"], theirs.factors["like"])
        assert ours.scales == pytest.approx(theirs.scales, rel=1e-12)


def test_it_does_not_matter_how_users_are_dealt_to_buckets():
    parts = [[row for row in LOG if int(row["user"]) % 3 == b] for b in range(3)]
    same(fitted([LOG]), fitted(parts))
    same(fitted([LOG]), fitted(parts[::-1]))


def test_what_is_not_train_changes_nothing_but_the_counts_of_its_split():
    changed = [{**row, "like": 1 - row["like"], "place": "zzz"} if row["time"] >= 60 else row for row in LOG]
    ours, theirs = fitted([LOG]), fitted([changed])
    assert ours.tasks[0].positives["test"] != theirs.tasks[0].positives["test"]
    assert (ours.tasks[0].mean, ours.tasks[0].std) == (theirs.tasks[0].mean, theirs.tasks[0].std)
    np.testing.assert_array_equal(ours.statistics[-1].mean, theirs.statistics[-1].mean)
    assert ours.categories["place"].keys.equals(theirs.categories["place"].keys)


def test_statistics_of_a_fold_leave_out_its_users():
    fold = 2
    others = [row for row in LOG if fold_of(row["user"], 5) != fold and row["time"] < 60]
    ours = fitted([LOG])
    item = next(row["item"] for row in others)
    labels = [row["like"] for row in others if row["item"] == item]
    prior = np.mean([row["like"] for row in others])
    row = int(ours.items.rank([item])[0])
    assert ours.statistics[fold].shown[row] == len(labels)
    assert ours.statistics[fold].mean[row, 0] == pytest.approx((sum(labels) + 5 * prior) / (len(labels) + 5))
    flipped = [{**r, "like": 1 - r["like"]} if fold_of(r["user"], 5) == fold else r for r in LOG]
    theirs = fitted([flipped])
    np.testing.assert_array_equal(ours.statistics[fold].mean, theirs.statistics[fold].mean)
    np.testing.assert_array_equal(ours.statistics[fold].factors["like"], theirs.statistics[fold].factors["like"])
    assert not np.array_equal(ours.statistics[-1].mean, theirs.statistics[-1].mean)


def test_vocabularies_are_ordered_by_count_and_rare_keys_are_unknown():
    tally = merge([Tally(["b", "a"], np.array([[2.0], [1.0]])), Tally(["c", "a"], np.array([[5.0], [1.0]]))])
    vocabulary = Vocabulary.of(tally, min_count=3)
    assert tally.keys == ["c", "a", "b"]
    assert vocabulary.size == 2
    assert vocabulary.lookup(["a", "c", "x"]).tolist() == [0, 1, 0]
    assert vocabulary.rank(["a", "c", "x"]).tolist() == [2, 1, 0]


def test_later_rows_leave_every_known_id_its_row():
    """Also where they make others more frequent; ids that only they make known come behind."""
    early = [row for row in LOG if row["time"] < 50]
    late = [{**row, "user": f"{row['user']} late", "time": 55, "row_id": row["row_id"] + 1000} for row in LOG]
    more = [{**row, "user": "other", "item": "777", "time": 55, "row_id": row["row_id"] + 2000} for row in LOG[:9]]
    before, after = fitted([early]), fitted([[*early, *late], more])
    for name in ("users", "items"):
        small, large = getattr(before, name), getattr(after, name)
        known = small.keys[: small.known].to_pylist()
        assert len(known) > 3
        assert large.keys[: small.known].to_pylist() == known
        assert large.known > small.known
        assert large.lookup(known).tolist() == list(range(1, len(known) + 1))
    assert after.items.lookup(["777"]) == after.items.known
    row = int(after.items.rank(["777"])[0])
    assert after.statistics[-1].shown[row] == 9


def test_ids_stand_in_the_order_in_which_they_had_rows_enough():
    rows = [(1, 1), (2, 2), (3, 3), (3, 4), (1, 5), (4, 6), (5, 7), (5, 7), (2, 7), (9, 9)]
    log = [{"user": "8", "item": str(item), "time": time, "like": 1, "place": "x"} for item, time in rows]
    vocabulary = fitted([log], config(data__categories=["place"], features__min_count=2)).items
    assert vocabulary.keys.to_pylist() == ["3", "1", "2", "5", "4", "9"]
    assert vocabulary.known == 4
    parts = [(["a", "b"], earliest(np.array([0, 1, 0]), np.array([5, 2, 8]), 2, 2)), (["b"], np.array([[1, NEVER]]))]
    assert parts[0][1].tolist() == [[5, 8], [2, NEVER]]
    total = Total()
    for keys, times in parts:
        total.add(Tally(keys, np.ones((len(keys), 1))), times)
    assert total.by_time().keys == ["b", "a"]  # known at 2, and at 8
    assert total.by_count().keys == ["b", "a"]
    assert total.by_time().rows().tolist() == [2, 1]


def test_base_rates_deviations_and_class_shares_are_of_the_train_labels():
    run = config(
        tasks={
            "like": {"label": "like"},
            "stars": {"kind": "regression", "label": "stars"},
            "kind": {"kind": "multiclass", "classes": 3, "label": "kind"},
        }
    )
    rows = [
        {"user": "1", "item": "7", "time": 1, "like": 1, "stars": 4, "kind": 0},
        {"user": "1", "item": "8", "time": 2, "like": None, "stars": 2, "kind": 2},
        {"user": "1", "item": "9", "time": 3, "like": 0, "kind": 2},
        {"user": "1", "item": "9", "time": 70, "like": 0, "stars": 9, "kind": 1},
    ]
    like, stars, kind = fitted([rows], run).tasks
    assert (like.mean, like.observed, like.positives) == (
        0.5,
        {"train": 2, "valid": 1, "test": 0},
        {"train": 1, "valid": 0, "test": 0},
    )
    assert (stars.mean, stars.std) == (3, 1)
    assert kind.frequencies == pytest.approx([1 / 3, 0, 2 / 3])


def test_moments_of_the_logarithm_are_of_numbers_above_minus_one():
    run = config(tasks={"spent": {"kind": "regression", "label": "spent"}, "like": {"label": "like"}})
    rows = [{"user": "1", "item": str(n), "time": n, "spent": spent, "like": 1} for n, spent in enumerate([0, 3, None])]
    late = {"user": "1", "item": "9", "time": 70, "spent": 1000, "like": 1}
    spent, like = fitted([[*rows, late]], run).tasks
    assert (spent.log_mean, spent.log_std) == pytest.approx((np.log(4) / 2, np.log(4) / 2))
    assert (like.log_mean, like.log_std) == (None, None)
    assert fitted([[*rows, {**late, "time": 5, "spent": -1}]], run).tasks[0].log_mean is None
    assert fitted([[*rows, {**late, "spent": -1}]], run).tasks[0].log_mean is not None  # not train


def test_a_task_without_train_labels_is_refused_with_its_name_and_the_remedy():
    run = config(tasks={"like": {"label": "like"}, "buy": {"label": "bought", "observed": "tracked"}})
    with pytest.raises(DataError, match=r"tasks.buy: all labels of the train split are missing.*remove the task"):
        fitted([[{**row, "buy": None} for row in LOG]], run)


def test_no_train_rows_are_refused():
    with pytest.raises(DataError, match="No candidate is in the train split"):
        fitted([[{**row, "time": 90} for row in LOG]])


def test_only_users_drawn_by_hash_enter_the_factors_of_a_large_log():
    kept = collect(bucket(RUN, LOG, UNTIL), RUN, NO_TABLES, 40).interactions
    whole = collect(bucket(RUN, LOG, UNTIL), RUN, NO_TABLES, 10**6).interactions
    assert 0 < len(kept.user) <= 40 < len(whole.user)
    for user in set(kept.user.tolist()):
        assert (kept.user == user).sum() == (whole.user == user).sum()


@pytest.mark.parametrize(("aggregates", "needed"), [(["user", "item"], False), (["user ~ item"], True)])
def test_rows_are_kept_only_for_aggregates_that_are_fitted_on_them(aggregates, needed):
    run = config(data__categories=["place"], features__aggregates=aggregates)
    collected = collect(bucket(run, LOG, UNTIL), run, NO_TABLES, 10**6)
    assert (collected.interactions is not None) == needed
    factors = fit(Gathered.of([collected]), run, NO_TABLES).statistics[-1].factors
    assert factors["like"].any() == needed


def test_a_taste_needs_the_rows_without_factors_of_items():
    run = config(data__categories=["place"], features__aggregates=["taste place"])
    collected = collect(bucket(run, LOG, UNTIL), run, NO_TABLES, 10**6)
    assert list(collected.interactions.cells) == ["place"]
    assert not fit(Gathered.of([collected]), run, NO_TABLES).statistics[-1].factors["like"].any()


def test_the_rows_of_all_buckets_come_in_one_order_with_the_rows_of_their_items():
    parts = [[row for row in LOG if int(row["user"]) % 3 == b] for b in range(3)]
    found = []
    for dealt in (parts, parts[::-1], [LOG]):
        gathered = Gathered.of(collect(bucket(RUN, part, UNTIL), RUN, NO_TABLES, 10**6) for part in dealt)
        found.append(gathered.interactions(Vocabulary.of(gathered.items.by_time(), 1), {}, {}))
    items = [row["item"] for row in LOG if row["time"] < 60]
    vocabulary = Vocabulary.of(gathered.items.by_time(), 1)
    assert sorted(found[0].item) == sorted(vocabulary.rank(items))
    for other in found[1:]:
        for name in ("user", "item", "fold", "values"):
            np.testing.assert_array_equal(getattr(found[0], name), getattr(other, name))


def test_what_is_gathered_grows_with_the_keys_and_not_with_the_parts():
    run = config(features__aggregates=[])
    part = collect(bucket(run, LOG, UNTIL), run, NO_TABLES, 10**6)
    gathered = Gathered.of([part, part])
    size = len(pickle.dumps(gathered))
    for _ in range(20):
        gathered.add(part)
    assert len(pickle.dumps(gathered)) - size <= 20 * len(pickle.dumps(part.moments))
    assert gathered.items.by_count().rows().sum() == 22 * part.items.rows().sum()


def test_factors_bring_together_items_that_the_same_users_saw():
    users, items = np.nonzero(np.kron(np.eye(2), RNG.uniform(size=(20, 5)) < 0.6))
    rows = Interactions(users, items + 1, np.zeros(len(users), int), np.ones((len(users), 0)))
    factors = item_factors(rows, np.ones(len(users), bool), 11, np.zeros((11, 0)), [])["shown"]
    likeness = factors[1:] @ factors[1:].T
    assert not factors[0].any()
    assert likeness[:5, :5].mean() > likeness[:5, 5:].mean() + 0.2


def test_what_was_fitted_survives_saving(tmp_path):
    ours = fitted([LOG])
    fs, folder = open_fs(str(tmp_path))
    save_fitted(fs, f"{folder}/fitted", ours)

    class _Manifest:
        tasks = ours.tasks

    same(ours, load_fitted(str(tmp_path), _Manifest))


def test_a_file_of_vocabularies_is_the_same_for_the_same_train_period(tmp_path):
    fs, folder = open_fs(str(tmp_path))
    for name in "ab":
        save_fitted(fs, f"{folder}/{name}", fitted([LOG]))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert isinstance(fitted([LOG]).users.keys, pa.Array)
