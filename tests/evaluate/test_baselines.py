"""Baselines over the hand-written prepared folder: exact where a slow definition exists."""

import numpy as np
import pytest

from mtrec_ray.errors import DataError
from mtrec_ray.evaluate import baselines, candidates, gbdt, metrics, predictions, running_rates, user_history
from mtrec_ray.evaluate.judged import Judged
from tests.evaluate.world import DAY, TASKS, make_world, write_prepared


def score_of(scored, task, world, split="test"):
    labels = world.labels[scored.row_id[split], TASKS.index(task)]
    observed = ~np.isnan(labels)
    return labels[observed], scored.scores[split][task][observed]


def test_constant_says_the_train_mean(prepared, run, world):
    scored = baselines.score("constant", *prepared, run, ["valid", "test"])
    train = world.labels[world.split == "train"]
    assert sorted(scored.row_id["test"]) == np.flatnonzero(world.split == "test").tolist()
    np.testing.assert_allclose(scored.scores["test"]["like"], np.nanmean(train[:, 0]))
    np.testing.assert_allclose(scored.scores["valid"]["mood"][0], np.bincount(train[:, 2].astype(int)) / len(train))


def slow_user_sums(world, row, lag):
    """The user's known labels whose time + lag lies before the row's."""
    mine = (world.user == world.user[row]) & (world.time + lag < world.time[row])
    known = world.labels[mine, 0]
    return np.nansum(known), (~np.isnan(known)).sum()


@pytest.mark.parametrize("lag_days", [0, 3])
def test_user_sums_equal_their_definition(prepared, run, world, lag_days):
    folder, manifest = prepared
    run = run.model_copy(update={"history": run.history.model_copy(update={"lag": lag_days * 86400.0})})
    tables = [
        candidates.read_shard(folder, manifest.shards[split][0], [*user_history.COLUMNS, "row_id"])
        for split in ("train", "valid", "test")
    ]
    history = user_history.UserHistory(tables, manifest.tasks, run)
    values, weights = history.before(tables[2])
    # Equal events of one user, day and item count once: the shards do not tell them from repetitions.
    rows = candidates.flat(tables[2], "row_id")
    distinct = unrepeated(world)
    for n, row in enumerate(rows):
        total, count = slow_user_sums(distinct, row, lag_days * DAY)
        assert (values[n, 0, 0], weights[n, 0]) == (total, count)


def unrepeated(world):
    """The world with the repetitions of a (user, item, day, labels) made unobserved."""
    labels = world.labels.copy()
    seen = set()
    for n in range(len(world.user)):
        key = (world.user[n], world.item[n], world.time[n], str(world.labels[n]))
        if key in seen:
            labels[n] = np.nan
        seen.add(key)
    return type(world)(**{**vars(world), "labels": labels})


def test_where_only_positives_become_known_the_rate_counts_items_seen(prepared, run, world):
    folder, manifest = prepared
    late = run.tasks["like"].model_copy(update={"feedback_delay": None, "feedback_time": "liked_at"})
    run = run.model_copy(update={"tasks": run.tasks | {"like": late}})
    tables = [
        candidates.read_shard(folder, manifest.shards[split][1], user_history.COLUMNS)
        for split in ("train", "valid", "test")
    ]
    _, weights = user_history.UserHistory(tables, manifest.tasks, run).before(tables[2])
    table = candidates.read_shard(folder, manifest.shards["test"][1], ["row_id"])
    for n, row in enumerate(candidates.flat(table, "row_id")):
        before = (world.user == world.user[row]) & (world.time < world.time[row])
        assert weights[n, 0] == len(np.unique(world.item[before]))


def test_running_rates_do_not_see_what_comes_later(tmp_path, run, world):
    """Other labels on the candidates' own day and later leave the scores as they are."""
    last_day = world.time.max()
    labels = world.labels.copy()
    labels[world.time == last_day] = [[0.0, 0.5, 2.0]]
    changed = type(world)(**{**vars(world), "labels": labels})
    found = []
    for name, each in (("a", world), ("b", changed)):
        manifest = write_prepared(tmp_path / name, each)
        found.append(running_rates.score(str(tmp_path / name), manifest, run, ["test"]))
    for task in TASKS:
        np.testing.assert_array_equal(found[0].scores["test"][task], found[1].scores["test"][task])


@pytest.fixture(scope="module", name="gbdt_scores")
def _gbdt_scores(prepared, run):
    return baselines.score("gbdt", *prepared, run, ["test"])


@pytest.mark.parametrize("name", ["running_rates", "gbdt"])
def test_learned_baselines_beat_the_constant_on_every_task(prepared, run, world, gbdt_scores, name):
    constant = baselines.score("constant", *prepared, run, ["test"])
    learned = gbdt_scores if name == "gbdt" else baselines.score(name, *prepared, run, ["test"])
    for task, metric in (("like", "logloss"), ("rating", "rmse"), ("mood", "logloss")):
        values = []
        for scored in (constant, learned):
            labels, scores = score_of(scored, task, world)
            rows = Judged(labels, scores, np.zeros(len(labels)), 0.5, np.arange(len(labels)))
            values.append(metrics.measure([metric], rows)[metric])
        assert values[1] < 0.95 * values[0]
    assert metrics.auc(*score_of(learned, "like", world)) > 0.65


def test_gbdt_is_deterministic(prepared, run, gbdt_scores):
    again = baselines.score("gbdt", *prepared, run, ["test"])
    for task in TASKS:
        np.testing.assert_array_equal(again.scores["test"][task], gbdt_scores.scores["test"][task])


def test_gbdt_says_when_it_read_a_sample(prepared, run, monkeypatch):
    monkeypatch.setattr(gbdt, "MAX_ROWS", 300)
    scored = baselines.score("gbdt", *prepared, run, ["test"])
    assert "a sample of" in scored.notes["rating"]
    assert "of 840 train rows" in scored.notes["rating"]


def test_gbdt_features(prepared):
    folder, manifest = prepared
    shard = next(candidates.read_candidates(folder, manifest, "train"))
    features = gbdt.Features.fit(manifest, shard)
    x = features.matrix(shard)
    assert features.is_category() == [False, True] + [False] * 4
    assert x.shape == (len(shard.row_id), 6)
    np.testing.assert_array_equal(x[:, 0], shard.numbers[:, 0])
    for n in range(20):
        genres = set(shard.categories[n, 1:]) - {-1}
        assert {value for value in (1, 2, 3, 4) if x[n, 1 + value]} == genres


def test_a_task_without_train_labels_is_skipped_with_the_reason(tmp_path, run):
    world = make_world(rows=200)
    world.labels[world.split == "train", 0] = np.nan
    manifest = write_prepared(tmp_path, world)
    for name in baselines.COMPUTED:
        scored = baselines.score(name, str(tmp_path), manifest, run, ["test"])
        assert "like" not in scored.scores["test"]
        assert scored.notes["like"].startswith("skipped: ")
        assert "rating" in scored.scores["test"]


def test_no_valid_rows(tmp_path, run):
    world = make_world(rows=200)
    world.split[world.split == "valid"] = "train"
    manifest = write_prepared(tmp_path, world)
    for name in baselines.COMPUTED:
        assert "rating" in baselines.score(name, str(tmp_path), manifest, run, ["test"]).scores["test"]


def test_a_missing_shard_is_named(tmp_path, run):
    manifest = write_prepared(tmp_path, make_world(rows=50))
    (tmp_path / "test/part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00001.parquet cannot be read.*mtrec prepare"):
        baselines.score("constant", str(tmp_path), manifest, run, ["test"])


def test_scores_survive_the_file(prepared, run, tmp_path):
    scored = baselines.score("running_rates", *prepared, run, ["valid", "test"])
    path = str(tmp_path / "scores.parquet")
    scored.write(path)
    wanted = scored.row_id["test"][::-3]
    back = predictions.read_scores(path, "test", wanted, [*TASKS, "other"])
    assert set(back) == set(TASKS)
    for task in TASKS:
        np.testing.assert_allclose(back[task], scored.scores["test"][task][::-3], rtol=1e-6)
    with pytest.raises(DataError, match="not row_id 123456"):
        predictions.read_scores(path, "test", np.append(wanted, 123456), [])
