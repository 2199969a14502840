"""`metrics.jsonl` of a run: a line per log of training (`kind: train`), an evaluation (`valid`), a `note`, or
what it began with (`start`)."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtrec_ray.data.filesystem import open_fs
from mtrec_ray.errors import DataError

THROUGHPUT = ("candidates_per_s", "tokens_per_s", "ingest_wait_share")


@dataclass(frozen=True)
class TrainingLog:
    """The lines in the order of their steps; of a step logged again after a restart, the later line."""

    train: list[dict[str, Any]]
    valid: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    """What the user should know of how it trained, each once: it is noted again after a restart."""
    start: dict[str, Any] | None = None
    """Of a run that began with the weights of another: its folder `from`, `from_step`, and `parts`
    (`train.carrying.Carried`)."""

    def throughput(self) -> dict[str, float | None]:
        """Median of each speed over the later half of the train lines: the start is not its steady state."""
        late = self.train[len(self.train) // 2 :]
        values = {name: [line[name] for line in late if line.get(name) is not None] for name in THROUGHPUT}
        return {name: float(np.median(found)) if found else None for name, found in values.items()}

    def series(self, kind: str, prefix: str) -> dict[str, tuple[list[float], list[float]]]:
        """Key -> (steps, values) of the finite values whose key starts with `prefix`."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for line in self.train if kind == "train" else self.valid:
            for key, value in line.items():
                if key.startswith(prefix) and isinstance(value, int | float) and np.isfinite(value):
                    steps, values = found.setdefault(key, ([], []))
                    steps.append(line["step"])
                    values.append(value)
        return found


def read_log(path: str) -> TrainingLog:
    """The log at a path or URL; empty where there is none, as for a run that only scores.

    Raises:
        DataError: a line that is not JSON.
    """
    filesystem, inner = open_fs(path)
    try:
        with filesystem.open_input_stream(inner) as file:
            text = file.read().decode("utf-8")
    except FileNotFoundError:
        return TrainingLog([], [])
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}).") from error
            lines[entry["kind"], entry["step"]] = entry
    ordered = sorted(lines.values(), key=lambda entry: entry["step"])
    train, valid, notes, starts = (
        [entry for entry in ordered if entry["kind"] == kind] for kind in ("train", "valid", "note", "start")
    )
    start = {key: starts[0][key] for key in ("from", "from_step", "parts")} if starts else None
    return TrainingLog(train, valid, list(dict.fromkeys(entry["text"] for entry in notes)), start)
