"""What prepared data depends on: files and settings, and nothing else, so that it is reused whenever it can be."""

import hashlib
import json
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.data.features.aggregates import declared
from mtrec_ray.data.features.matches import declared_matches
from mtrec_ray.data.filesystem import find
from mtrec_ray.data.manifest import FORMAT
from mtrec_ray.data.preparing.dependence import FEATURES, fitted_on
from mtrec_ray.data.reading.logs import find_files
from mtrec_ray.model.backbone import locate


def fingerprint(run: Run) -> str:
    """Hex digest of path, size and time of change of all input files, and of the settings that change the output.

    Raises:
        DataError: a log that is not there.
    """
    text = json.dumps({"format": FORMAT, "files": _files(run), "settings": settings(run)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings(run: Run) -> dict[str, Any]:
    """The settings that prepared data depends on: no weights of tasks, nothing of the model but its tokenizer."""
    backbone: dict[str, Any] = {"name": locate(run.backbone.name)}
    if run.backbone.name == "nano":
        backbone["vocab_size"] = run.backbone.vocab_size
    features = run.features.model_dump(mode="json", include=FEATURES - {"aggregates", "matches"})
    features["aggregates"] = [[a.kind, a.name, a.tasks] for a in declared(run)]
    features["matches"] = [match.name for match in declared_matches(run)]
    return {
        "data": run.data.model_dump(mode="json", exclude={"prepared_dir", "max_bad_share"}),
        "tasks": [[name, fitted_on(task)] for name, task in run.tasks.items()],
        "history": run.history.model_dump(mode="json"),
        "split": run.split.model_dump(mode="json"),
        "features": features,
        "backbone": backbone,
    }


def _files(run: Run) -> list[list[Any]]:
    files = [*find_files(run.data)]
    tables = [table.path for table in (run.data.items, run.data.users, run.data.user_map) if table is not None]
    found = [file for path in tables for file in find(path)]
    seen = [[file.path, file.size, file.mtime_ns] for file in files]
    return seen + [[file.path, file.size, file.mtime_ns] for file in found]
