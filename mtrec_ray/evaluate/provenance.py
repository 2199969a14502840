"""Where figures come from: when, by which code and library versions, on what machine."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("mtrec-ray", "torch", "ray", "deepspeed", "transformers", "peft", "scikit-learn")


def provenance() -> dict[str, Any]:
    """`created`, `commit` (None outside a checkout), `versions`, `machine`; ready for JSON."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(Path(__file__).parents[1]),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": machine(),
    }


def commit(package: Path) -> str | None:
    """The commit that a package is run from, with `+` if tracked files differ; None where git does not know it."""
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
        return _git(package, "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> str:
    """`Linux x86_64, 8 CPUs, 2 x NVIDIA H100`: of the process that evaluates."""
    parts = [f"{platform.system()} {platform.machine()}", f"{len(os.sched_getaffinity(0))} CPUs"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return ", ".join(parts)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
