import pytest

from mtrec_ray import config_file
from mtrec_ray.compare.plan import Plan, make_plan
from mtrec_ray.compare.report import write_report
from mtrec_ray.compare.results import read_results
from mtrec_ray.data.prepared import Prepared
from tests.compare.made_up import write_runs
from tests.evaluate.world import CONFIG, World, make_world, write_prepared

NOISE = {
    ("like alone", "like"): 0.6,
    ("sum", "rating"): 0.6,
    ("rlw", "like"): 0.6,
}
"""So the sum is better on like, worse on rating and as good on mood; rlw is as good on all three."""


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def prepared(world, tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    return Prepared(str(folder), write_prepared(folder, world))


@pytest.fixture(scope="session")
def plan() -> Plan:
    return make_plan(
        config_file.parse(CONFIG, ["data.logs=a<b>&c.csv", "compare.methods=[sum, rlw]", "compare.seeds=2"])
    )


@pytest.fixture(scope="session")
def written(tmp_path_factory, plan, world, prepared):
    """The folder of a comparison in which one training failed, and its figures."""
    folder = tmp_path_factory.mktemp("compared")
    write_runs(folder, plan, world, NOISE, without=[("rlw", 1)])
    failures = {("rlw", 1): "step 7: the loss of <like> & mood is not finite."}
    results = read_results(plan, prepared.manifest, str(folder), failures, resamples=200)
    return folder, write_report(str(folder), plan, results, resamples=200)
