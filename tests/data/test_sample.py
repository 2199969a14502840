from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from mtrec_ray.config_file import load
from mtrec_ray.data.reading.logs import check_log, find_files, read_events
from mtrec_ray.data.reading.tables import read_entities
from mtrec_ray.data.sample import SampleSummary, write_sample
from mtrec_ray.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleSummary]:
    folder = tmp_path_factory.mktemp("sample")
    return folder, write_sample(str(folder), users=600, items=120, days=12, shards=3)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_seed_decides_every_byte(sample: tuple[Path, SampleSummary], tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    write_sample(str(again), users=600, items=120, days=12, shards=5)
    write_sample(str(again), users=600, items=120, days=12, shards=3)
    write_sample(str(other), users=600, items=120, days=12, shards=3, seed=1)
    assert contents(again) == contents(sample[0]), "shards of an earlier, larger sample must be gone too"
    assert contents(other).keys() == contents(again).keys()
    assert all(contents(other)[name] != content for name, content in contents(again).items())


def test_the_summary_is_true(sample: tuple[Path, SampleSummary]) -> None:
    folder, summary = sample
    log = pq.read_table(folder / "logs")
    truth = pq.read_table(folder / "truth")
    assert summary.rows == log.num_rows == truth.num_rows
    assert summary.requests == len(log.column("request_id").unique())
    for name, rate in summary.rates.items():
        assert rate == pytest.approx(log.column(name).drop_null().to_numpy().mean())
    auc = roc_auc_score(log.column("click").to_numpy(), truth.column("click").to_numpy())
    assert summary.oracle_auc == pytest.approx(auc, abs=1e-4)
    assert 0.78 < auc < 0.9
    calibration = truth.column("click").to_numpy().mean() / summary.rates["click"]
    assert calibration == pytest.approx(1, abs=0.05)


def test_signals_are_sparse_late_and_partly_unobserved(sample: tuple[Path, SampleSummary]) -> None:
    log = pq.read_table(sample[0] / "logs").to_pandas()
    shown = log.groupby("request_id")
    assert shown.size().between(1, 8).all()
    assert shown.size().mean() > 3
    assert (shown["time"].nunique() == 1).all()
    assert not log.duplicated(["request_id", "item_id"]).any()
    assert (log["dwell_s"].notna() == (log["click"] == 1)).all()
    assert 0.005 < log["like"].mean() < 0.05
    assert (log["like_time"].notna() == (log["like"] == 1)).all()
    assert (log["like_time"].dropna() > log["time"][log["like"] == 1]).all()
    assert log["purchase"].isna().groupby(log["user_id"]).nunique().eq(1).all(), "tracked or not, per user"
    assert 0.2 < log["purchase"].isna().mean() < 0.4


def test_text_ids_and_history_each_carry_signal(sample: tuple[Path, SampleSummary]) -> None:
    """Each is what the true log-odds still depend on when the others are held fixed."""
    folder, _ = sample
    log, items = pq.read_table(folder / "logs").to_pandas(), pq.read_table(folder / "items.parquet").to_pandas()
    odds = pq.read_table(folder / "truth").to_pandas()["click"].pipe(lambda p: np.log(p / (1 - p)))
    log = log.assign(odds=odds).merge(items, on="item_id")
    user, topic = log["user_id"], log["topic"]
    taste = log["odds"].groupby([user, topic]).transform("mean")
    assert (taste - log["odds"].groupby(user).transform("mean")).std() > 0.5, (
        "history: users differ in topics they like"
    )
    rest = log["odds"] - taste
    guide, press = (rest[log["title"].str.contains(word)].mean() for word in ("guide", "press"))
    assert guide - press > 0.5, "text: the style word, which no other column holds"
    styled = rest - rest.groupby(log["title"].str.extract("(guide|review|story|rumour|press)")[0]).transform("mean")
    assert styled.groupby(log["item_id"]).mean().std() > 0.3, "ids: the item's own quality"


def test_the_config_reads_the_sample(sample: tuple[Path, SampleSummary]) -> None:
    folder, summary = sample
    assert len((folder / "config.yaml").read_text().splitlines()) <= 25
    run = load(folder / "config.yaml")
    files = find_files(run.data)
    check_log(files, run)
    assert len(files) == 3
    events = [batch for file in files for batch in read_events(file, file.number, run)]
    assert sum(batch.table.num_rows for batch in events) == summary.rows
    row_ids = np.concatenate([batch.table.column("row_id").to_numpy() for batch in events])
    assert row_ids.tolist() == pq.read_table(folder / "truth").column("row_id").to_pylist()
    assert run.data.items is not None
    table = read_entities(run.data.items)
    assert len(table.keys) == 120
    assert all((table.lookup(batch.table.column("item")) >= 0).all() for batch in events)


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="days=3, shards=8"):
        write_sample(str(tmp_path), days=3)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.parquet").touch()
    with pytest.raises(DataError, match="not a generated sample"):
        write_sample(str(tmp_path))
    assert (tmp_path / "logs" / "mine.parquet").exists()
