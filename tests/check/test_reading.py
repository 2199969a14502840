from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.check.examined import SESSION_US, examine, groups
from mtrec_ray.check.reading import HashSample
from mtrec_ray.config_file import load
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks


@pytest.mark.parametrize("by", ["time", "user"])
def test_it_sees_the_split_and_labels_of_training(clean_folder: Path, tmp_path: Path, by: str) -> None:
    settings = [f"data.prepared_dir={tmp_path}", "backbone=none", "features.aggregates=[]", "data.buckets=3"]
    run = load(clean_folder / "config.yaml", [*settings, f"split.by={by}", "tasks.like.window=1h"])
    manifest = prepare(run, serial_tasks).manifest
    log = examine(run)
    if by == "time":
        assert log.boundaries is not None
        assert {name: key.time for name, key in log.boundaries._asdict().items()} == manifest.boundaries
    for entry in manifest.tasks:
        for code, split in enumerate(SPLITS):
            label = log.label(entry.name)[log.split == code]
            assert int((~np.isnan(label)).sum()) == entry.observed[split]
            assert int((label > 0).sum()) == entry.positives[split]
    assert {f.name for f in log.by_user.features} == {"position", "price", "topic"}
    assert log.by_item is log.by_user


def test_a_sample_is_of_whole_users_and_does_not_depend_on_batches() -> None:
    users = [f"u{n}" for n in np.random.default_rng(0).integers(0, 200, 5_000)]
    table = pa.table({"user": users, "row": np.arange(5_000)})
    found = []
    for size in (17, 400, 5_000):
        sample = HashSample("user", 1_000, table.schema.empty_table())
        for first in range(0, 5_000, size):
            sample.add(table.slice(first, size))
            assert sample.rows <= 1_000
        found.append(sample.table())
        assert sample.share in (0.25, 0.125)
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    kept = set(found[0]["user"].to_pylist())
    assert found[0].num_rows == sum(user in kept for user in users)


def test_sessions_and_groups_by_hand(clean_folder: Path) -> None:
    assert groups(np.array([1, 0, 1, 1]), np.array([5, 5, 5, 6])).tolist() == [1, 0, 1, 2]
    view = examine(load(clean_folder / "config.yaml")).by_user
    pause = np.diff(view.time) > SESSION_US
    assert ((np.diff(view.session) == 1) == (pause | (np.diff(view.user) != 0))).all()
    requests = len(np.unique(view.rows.request[view.candidates.row]))
    assert len(np.unique(view.shown)) == requests
