import pytest

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from tests.evaluate.world import CONFIG, World, make_world, write_prepared


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def prepared(world, tmp_path_factory) -> tuple[str, Manifest]:
    folder = tmp_path_factory.mktemp("prepared")
    return str(folder), write_prepared(folder, world)


@pytest.fixture(scope="session")
def run() -> Run:
    return config_file.parse(CONFIG)
