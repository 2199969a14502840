"""The difference between two variants of a study on test: per seed, and the mean over seeds, with intervals by user.

Both variants score the same rows. A resample draws users with replacement, the same for both and for all seeds; the
interval of the mean over seeds is that of these users with these seeds, so it says nothing of other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.evaluate import bootstrap, metrics
from mtrec_ray.evaluate.predictions import Rows, read_rows

SHOWN = ("auc", "gauc", "logloss", "rmse", "mae")
RESAMPLES = 1000


@dataclass(frozen=True)
class Difference:
    """One metric of one task, variant − reference."""

    seeds: list[float]
    mean: float
    interval: bootstrap.Interval | None


def paired_table(reference: Sequence[Run], variant: Sequence[Run], names: tuple[str, str]) -> str:
    """Markdown; runs of equal seeds in equal order."""
    manifest = load_prepared(reference[0]).manifest
    pairs = [(_test(a, manifest), _test(b, manifest)) for a, b in zip(reference, variant, strict=True)]
    lines = [f"| test, {names[1]} − {names[0]} | mean | 95 % by user | per seed |", "|---|---|---|---|"]
    for task in manifest.tasks:
        known = [name for name in SHOWN if name in metrics.BY_KIND[task.kind]]
        for name, found in _differences(pairs, task.name, known, task.mean).items():
            shown = "–" if found.interval is None else f"{found.interval.low:+.4f} … {found.interval.high:+.4f}"
            seeds = ", ".join(f"{value:+.4f}" for value in found.seeds)
            lines.append(f"| {task.name} {name} | {found.mean:+.4f} | {shown} | {seeds} |")
    return "\n".join(lines)


def _differences(
    pairs: Sequence[tuple[Rows, Rows]], task: str, names: Sequence[str], train_mean: float
) -> dict[str, Difference]:
    values: dict[str, list[float]] = {name: [] for name in names}
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for first, second in pairs:
        if not np.array_equal(first.row_id, second.row_id):
            raise SystemExit("the variants were not evaluated on the same rows; they cannot be paired")
        columns = [(rows.labels[task], rows.scores[task], rows.users) for rows in (first, second)]
        measured = [metrics.measure(names, *column, train_mean) for column in columns]
        drawn = [bootstrap.replicates(names, *column, train_mean, RESAMPLES, seed=0) for column in columns]
        for name in names:
            values[name].append(measured[1][name] - measured[0][name])
            resampled[name].append(drawn[1][name] - drawn[0][name])
    return {
        name: Difference(
            values[name], float(np.mean(values[name])), bootstrap.interval(np.mean(resampled[name], axis=0))
        )
        for name in names
    }


def _test(run: Run, manifest: Manifest) -> Rows:
    return read_rows(f"{run.cluster.storage}/{run.name}/predictions.parquet", manifest)["test"]
