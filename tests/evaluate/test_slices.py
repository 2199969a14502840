"""What the log says of surface and policy, from the prepared rows through the predictions to the report's slices."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.data.prepare import prepare
from mtrec_ray.data.preparing.parallel import serial_tasks
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.reading.log_files import FileNumbers
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.evaluate.predictions import read_rows
from mtrec_ray.evaluate.slices import MOST_VALUES, Slicer
from mtrec_ray.train.evaluation import Scores
from mtrec_ray.train.scoring import predictions_table, write_predictions
from tests.data.by_hand import config

POLICIES = ["ranker", "ranker", "random", "", "random", "ranker"]


def write_log(folder: Path) -> None:
    lines = ["user,item,time,like,part,who,where"]
    for number in range(12):
        part = "train" if number < 4 else "valid" if number < 6 else "test"
        policy = "ranker" if part == "train" else POLICIES[number - 6]
        lines.append(f"{number % 3},{number},{10**9 + number},{number % 2},{part},{policy},page {number}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(name="slices_of")
def _slices_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From columns of the config to the predictions of the test split and its slices."""
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path)

    def slices_of(**columns: str) -> tuple[pa.Table, dict[str, np.ndarray]]:
        parts = {f"data__columns__{name}": column for name, column in columns.items()}
        run = config(split={"by": "column", "column": "part"}, data__buckets=2, features__aggregates=[], **parts)
        prepared = prepare(run, serial_tasks)
        rows = np.arange(7, 13)
        scores = Scores(
            (FileNumbers().next("log.csv") << ROW_BITS) + rows,
            np.zeros((6, 1), np.float32),
            {"like": np.linspace(0, 1, 6)},
        )
        shards = Shards(prepared.path, prepared.manifest, "test")
        write_predictions(".", {"test": predictions_table(shards, scores, prepared.manifest.tasks)})
        found = read_rows("predictions.parquet", prepared.manifest)["test"]
        written = predictions_table(shards, scores, prepared.manifest.tasks)
        return written, Slicer(prepared.path, prepared.manifest).slices("test", found)

    return slices_of


def test_predictions_say_the_policy_of_each_row_also_one_that_train_lacks(slices_of) -> None:
    table, _ = slices_of(policy="who", domain="where")
    assert table["policy"].to_pylist() == POLICIES
    assert table["domain"].to_pylist() == [f"page {number}" for number in range(6, 12)]
    assert [row_id & ((1 << ROW_BITS) - 1) for row_id in table["row_id"].to_pylist()] == list(range(7, 13))


def test_a_slice_per_policy_holds_its_rows_the_most_frequent_first(slices_of) -> None:
    _, slices = slices_of(policy="who")
    named = {name: np.flatnonzero(mask).tolist() for name, mask in slices.items() if "policy" in name}
    assert list(named.items()) == [("policy ranker", [0, 1, 5]), ("policy random", [2, 4]), ("no policy", [3])]


def test_a_log_without_such_columns_has_neither_column_nor_slice(slices_of) -> None:
    table, slices = slices_of()
    assert not {"policy", "domain"} & set(table.column_names)
    assert not [name for name in slices if "policy" in name or "domain" in name]


def test_of_many_values_only_the_most_frequent_have_slices(slices_of, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_VALUES == 8
    monkeypatch.setattr("mtrec_ray.evaluate.slices.MOST_VALUES", 2)
    _, slices = slices_of(domain="where")
    assert [name for name in slices if "domain" in name] == ["domain page 10", "domain page 11"]
