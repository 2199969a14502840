"""Digests of all that is trained, which `weights_seen` leaves beside a run."""

import hashlib
from pathlib import Path

import torch

from mtrec_ray.engine.base import Engine

STARTED, REPORTED = "started-at", "reported-at"


def digest(engine: Engine) -> str:
    """Of adapters, towers, tables and the optimizer's state, bit by bit."""
    found = hashlib.sha256()
    state = {f"{name}/{key}": value for name, part in engine.optimizer_state().items() for key, value in part.items()}
    for name, value in sorted({**engine.parameters(), **state}.items()):
        found.update(name.encode() + value.to(torch.float64).numpy().tobytes())
    return found.hexdigest()


def seen(folder: Path, when: str) -> dict[int, str]:
    """Step -> digest."""
    return {int(path.name.rsplit("-", 1)[1]): path.read_text() for path in folder.glob(f"{when}-*")}
