"""The table of predictions, over a prepared folder written by hand."""

import numpy as np
import pytest

from mtrec_ray.data.manifest import TaskEntry
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.train.evaluation import Scores
from mtrec_ray.train.scoring import predictions_table
from tests.fixtures import write_prepared

NONE = {"train": 0, "valid": 0, "test": 0}
LIST = TaskEntry(name="varied", kind="diversity", labels="none", observed=NONE, positives=NONE, mean=0.0, std=0.0)


@pytest.fixture
def split(tmp_path):
    manifest = write_prepared(tmp_path, tasks=("like",))
    shards = Shards(str(tmp_path), manifest, "test")
    rows = shards.rows(np.arange(shards.num_requests), ["row_id", "candidate_events"]).to_pylist()
    return shards, manifest, rows


def test_rows_of_a_request_that_see_the_same_history_were_shown_together(split):
    shards, manifest, rows = split
    expected = {}
    for request in rows:
        pairs = list(zip(request["row_id"], request["candidate_events"], strict=True))
        expected |= {row: min(other for other, seen in pairs if seen == events) for row, events in pairs}
    ids = np.array(sorted(expected))
    scores = Scores(
        ids, np.zeros((len(ids), 2), np.float32), {"like": np.zeros(len(ids)), "varied": np.zeros(len(ids))}
    )
    table = predictions_table(shards, scores, [*manifest.tasks, LIST])
    assert table.column("shown").to_pylist() == [expected[row] for row in ids.tolist()]
    assert len(set(expected.values())) < len(expected)
    assert "score.like" in table.column_names
    assert not {"label.varied", "score.varied"} & set(table.column_names)
