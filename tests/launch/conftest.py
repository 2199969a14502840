"""What the tests of searches share."""

from pathlib import Path

import pytest

from mtrec_ray.data.sample import write_sample


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A folder with a small generated log, and a Ray session, for all searches of a module."""
    folder = tmp_path_factory.mktemp("search")
    write_sample(str(folder / "logs"), users=30, items=30, days=8)
    return folder
