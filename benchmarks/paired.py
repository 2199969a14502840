"""The difference between two variants of a study on test, as a table; `evaluate.paired` says what its figures are."""

from collections.abc import Sequence

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.prepared import load_prepared
from mtrec_ray.evaluate.paired import Measured, check_same_rows, difference, judged_rows, measured
from mtrec_ray.evaluate.predictions import Rows, read_rows
from mtrec_ray.tasks.kinds import build_kinds

ByTask = dict[str, dict[str, Measured]]


def paired_table(reference: Sequence[Run], variant: Sequence[Run], names: tuple[str, str]) -> str:
    """Markdown; runs of equal seeds in equal order."""
    lines = [f"| test, {names[1]} − {names[0]} | mean | 95 % by user | per seed |", "|---|---|---|---|"]
    pairs = [_measured_pair(first, second) for first, second in zip(reference, variant, strict=True)]
    for task, shown in pairs[0][0].items():
        for name in shown:
            found = difference([(first[task][name], second[task][name]) for first, second in pairs])
            ends = "–" if found.interval is None else f"{found.interval.low:+.4f} … {found.interval.high:+.4f}"
            seeds = ", ".join(map(_signed, found.seeds))
            lines.append(f"| {task} {name} | {_signed(found.mean)} | {ends} | {seeds} |")
    return "\n".join(lines)


def _measured_pair(first: Run, second: Run) -> tuple[ByTask, ByTask]:
    """Both runs of one seed, on the same rows of test."""
    manifest = load_prepared(first).manifest
    kinds = [kind for kind in build_kinds(manifest, first.tasks) if kind.labels != "none"]
    one, other = (_test(run, manifest) for run in (first, second))
    check_same_rows(one, other, (first.name, second.name))
    found = [
        {kind.task.name: measured(kind.metrics, judged_rows(kind, rows)) for kind in kinds} for rows in (one, other)
    ]
    return found[0], found[1]


def _test(run: Run, manifest: Manifest) -> Rows:
    return read_rows(f"{run.cluster.storage}/{run.name}/predictions.parquet", manifest)["test"]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"
