"""Evaluates a run from its files: `predictions.parquet` and prepared data in, `metrics.json` and `report.html` out."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import open_fs, write_atomic
from mtrec_ray.data.fitting.fitted_files import id_collisions
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.shards import Shards, load_manifest
from mtrec_ray.evaluate import baselines, report
from mtrec_ray.evaluate.comparison import Comparison, Resampling, compare
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.evaluate.predictions import Rows, Scores, read_rows, read_scores
from mtrec_ray.evaluate.provenance import provenance
from mtrec_ray.evaluate.slices import Slicer
from mtrec_ray.evaluate.training_log import read_log
from mtrec_ray.progress import track
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.kinds import build_kinds

MAX_REASONS = 20
SIDE_FEATURES, POPULARITY = "side_features", "popularity"


def evaluate_run(run_dir: str, prepared: str, run: Run, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Writes `metrics.json`, `report.html` and `baselines/<name>.parquet` into a run folder; returns the metrics.

    Args:
        run_dir: folder or URL with `predictions.parquet` and, if the run trained, `metrics.jsonl`.
        prepared: the prepared folder (with its fingerprint) that the predictions were made on.
        extra: further columns of the table, name -> score file of the same rows (`split, row_id, score.<task>`), as
            the `predictions.parquet` of another run. The baseline `side_features` is a run in the folder of that name
            below `run_dir`, unless it comes in here; a run with `backbone: none` is itself that baseline.

    Raises:
        DataError: predictions that are missing, not finite, or of other rows than a baseline's.
    """
    run_dir, extra = run_dir.rstrip("/"), dict(extra or {})
    manifest = load_manifest(prepared)
    kinds = build_kinds(manifest, run.tasks)
    rows = read_rows(f"{run_dir}/predictions.parquet", manifest)
    notes = _score_baselines(run_dir, prepared, manifest, run, extra, list(rows))
    comparisons = _comparisons(prepared, manifest, kinds, rows, extra)
    log = read_log(f"{run_dir}/metrics.jsonl")
    resampling = Resampling(run.evaluate.bootstrap, run.seed)
    splits = {}
    with track("metrics and intervals", len(comparisons), "splits") as bar:
        for split, comparison in comparisons.items():
            splits[split] = compare(comparison, kinds, resampling)
            bar.advance()
    found = {
        "run": {"name": run.name, "seed": run.seed, "fingerprint": manifest.fingerprint} | provenance(),
        "splits": splits,
        "baselines": splits.get("test", {}).get("baselines", {}),
        "notes": notes,
        "training": {"notes": log.notes},
        "start": log.start,
        "data": dict(manifest.counts) | {"quarantine": quarantine_reasons(prepared)},
        "id_collisions": [entry.model_dump() for entry in id_collisions(prepared, manifest, run)],
        "throughput": log.throughput(),
    }
    filesystem, root = open_fs(run_dir)
    write_atomic(filesystem, f"{root}/metrics.json", json.dumps(found, indent=1, allow_nan=False).encode())
    page = report.render(found, log, comparisons, kinds, manifest, run, config_file.dump(run))
    write_atomic(filesystem, f"{root}/report.html", page.encode())
    return found


def _score_baselines(
    run_dir: str, prepared: str, manifest: Manifest, run: Run, extra: dict[str, str], splits: list[str]
) -> dict[str, dict[str, str]]:
    """Writes the score file of each baseline that is computed here, adds it to `extra`; returns their notes."""
    notes: dict[str, dict[str, str]] = {}
    for name in run.evaluate.baselines:
        if name in extra or (name == SIDE_FEATURES and run.backbone.name == "none"):
            continue
        if name == SIDE_FEATURES:
            extra[name] = f"{run_dir}/{SIDE_FEATURES}/predictions.parquet"
            continue
        if name == POPULARITY and manifest.catalogue is None:
            continue
        scored = baselines.score(name, prepared, manifest, run, splits)
        extra[name] = f"{run_dir}/baselines/{name}.parquet"
        scored.write(extra[name])
        notes[name] = scored.notes
    return notes


def _comparisons(
    prepared: str, manifest: Manifest, kinds: list[TaskKind], rows: dict[str, Rows], files: dict[str, str]
) -> dict[str, Comparison]:
    tasks, slicer = [task.name for task in manifest.tasks], Slicer(prepared, manifest)
    return {
        split: Comparison(
            part,
            {name: read_scores(path, split, part.row_id, tasks) for name, path in files.items()},
            slicer.slices(split, part),
            facts_of(Shards(prepared, manifest, split))(part.row_id, kinds).traits,
            _ranks(split, part, kinds, files),
        )
        for split, part in rows.items()
    }


def _ranks(split: str, rows: Rows, kinds: list[TaskKind], files: dict[str, str]) -> dict[str, Scores]:
    """Per score file the ranks of the tasks that match, 0 = none."""
    tasks = [kind.task.name for kind in kinds if kind.matches]
    if not tasks:
        return {}
    found = {name: read_scores(path, split, rows.row_id, tasks, "rank") for name, path in files.items()}
    return {name: {task: np.nan_to_num(ranks) for task, ranks in of.items()} for name, of in found.items()}


def quarantine_reasons(prepared: str) -> dict[str, int]:
    """Reason -> rows, the most frequent first; reasons beyond `MAX_REASONS` are added up as `other`."""
    filesystem, root = open_fs(prepared)
    try:
        table = pq.read_table(f"{root}/quarantine.parquet", columns=["reason"], filesystem=filesystem)
    except FileNotFoundError:
        return {}
    counted = Counter(table.column("reason").to_pylist()).most_common()
    named, rest = dict(counted[:MAX_REASONS]), sum(count for _, count in counted[MAX_REASONS:])
    return named | ({"other": rest} if rest else {})
