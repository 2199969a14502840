"""What all tests share: quiet libraries, one Ray session per module, and the logs that are not part of the project."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
LOGS = ROOT.parent / "shared" / "data"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores must not start four threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("untimed", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("untimed")


_LONG = ("ray", "slow", "distributed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first, so that no process is left with one when the others are through."""
    first = {item.path: len(_LONG) for item in items}
    for item in items:
        marks = [place for place, mark in enumerate(_LONG) if item.get_closest_marker(mark)]
        first[item.path] = min([first[item.path], *marks])
    items.sort(key=lambda item: first[item.path])


@pytest.fixture(scope="module")
def ray_cluster():
    """A local session that all tests of a module use; functions that open their own share it."""
    from mtrec_ray.config import Cluster
    from mtrec_ray.launch.session import ray_session

    with ray_session(Cluster(workers=2)):
        yield


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def movielens() -> Path:
    """Folder of ml-latest-small; the test is skipped where it is absent."""
    return _logs("ml-latest-small")


@pytest.fixture(scope="session")
def deskdrop() -> Path:
    return _logs("deskdrop")


@pytest.fixture(scope="session")
def log_samples() -> Path:
    """Folder with a few rows each of public logs in their own formats."""
    return _logs("samples")


def _logs(name: str) -> Path:
    folder = LOGS / name
    if not folder.is_dir():
        pytest.skip(f"needs the logs in {folder}, which are not part of the project")
    return folder
