from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.sample import write_sample
from tests.check.planted import Log

SIZE = {"users": 250, "items": 80, "days": 12, "shards": 3}


@pytest.fixture(scope="session")
def clean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_sample(str(folder), seed=3, **SIZE)
    return folder


@pytest.fixture(scope="session")
def clean_tables(clean_folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    parts = [
        pq.read_table(file).to_pandas().assign(part=part)
        for part, file in enumerate(sorted((clean_folder / "logs").iterdir()))
    ]
    return pd.concat(parts, ignore_index=True), pq.read_table(clean_folder / "items.parquet").to_pandas()


@pytest.fixture
def clean(clean_tables: tuple[pd.DataFrame, pd.DataFrame]) -> Log:
    rows, items = clean_tables
    return Log(rows.copy(), items.copy())
