"""What a baseline gives: scores of rows, and how it came to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mtrec_ray.data.filesystem import open_fs, write_table_atomic
from mtrec_ray.evaluate.predictions import Scores, from_numpy


@dataclass(frozen=True)
class Scored:
    """Scores of the prepared rows of some splits."""

    row_id: dict[str, np.ndarray]
    """Split -> int64 [N]"""
    scores: dict[str, Scores]
    """Split -> task -> [N] or [N, classes]; a task may be absent, then the notes say why."""
    notes: dict[str, str]
    """Task -> what was fitted or chosen, or why there is no score."""
    ranks: Mapping[str, Scores] = field(default_factory=dict)
    """Split -> task -> [N] see `Judged.ranks`; of baselines that rank all items."""

    def write(self, path: str) -> None:
        """One Parquet file `split, row_id, score.<task>, rank.<task>`, which `predictions.read_scores` reads."""
        tables = []
        for split, row_id in self.row_id.items():
            columns = {"split": pa.array([split] * len(row_id), pa.string()), "row_id": pa.array(row_id, pa.int64())}
            columns |= {f"score.{task}": from_numpy(column) for task, column in self.scores[split].items()}
            for task, ranks in self.ranks.get(split, {}).items():
                columns[f"rank.{task}"] = pa.array(ranks, mask=ranks == 0)
            tables.append(pa.table(columns))
        filesystem, inner = open_fs(path)
        write_table_atomic(filesystem, inner, pa.concat_tables(tables, promote_options="default"))
