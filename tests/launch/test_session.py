import logging
import os
import pickle
import re
import subprocess
import sys

import pytest
import ray
from ray._private import worker

from mtrec_ray.config import Cluster
from mtrec_ray.errors import ClusterError, ConfigError, DataError
from mtrec_ray.launch.session import check_resources, find_user_error, ray_session

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def session(ray_cluster):
    """All tests share one session."""


def test_nested_blocks_share_the_session_and_do_not_end_it():
    address = ray.get_runtime_context().gcs_address
    with ray_session(Cluster()):
        assert ray.get_runtime_context().gcs_address == address
    assert ray.is_initialized()


def test_a_small_machine_has_a_slot_left_for_reading():
    assert ray.cluster_resources()["CPU"] >= 3  # the module's session has two workers


def test_libraries_are_quiet_here_and_in_workers():
    @ray.remote
    def environment():
        return dict(os.environ)

    found = ray.get(environment.remote())
    assert found["RAY_DATA_DISABLE_PROGRESS_BARS"] == "1"
    assert not ray.data.DataContext.get_current().enable_progress_bars
    assert not logging.getLogger("DeepSpeed").isEnabledFor(logging.INFO)


def test_ray_does_not_complain_of_a_slow_start(capsys):
    for text in ("WARNING: 8 PYTHON worker processes have been started on node: 5", "a worker died"):
        worker.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    said = capsys.readouterr().out
    assert "a worker died" in said
    assert "processes" not in said


def test_an_error_of_a_task_arrives_as_the_user_error_it_was():
    @ray.remote
    def fail():
        raise DataError("logs/a.csv row 3: time is 'soon'")

    with pytest.raises(DataError) as caught, ray_session(Cluster()):
        ray.get(fail.remote())
    assert str(caught.value) == "logs/a.csv row 3: time is 'soon'"
    assert type(caught.value) is DataError


def test_an_error_in_ray_data_arrives_as_the_user_error_it_was(capfd):
    def fail(row):
        raise DataError("logs/a.csv row 3: time is 'soon'")

    with pytest.raises(DataError) as caught, ray_session(Cluster()):
        ray.data.range(3).map(fail).materialize()
    assert str(caught.value) == "logs/a.csv row 3: time is 'soon'"
    assert capfd.readouterr().err == ""


def test_an_error_of_a_training_worker_is_found_in_its_wrapping():
    from ray.train import ControllerError, WorkerGroupError

    wrapped = WorkerGroupError("worker 1 failed", {0: RuntimeError("lost peer"), 1: DataError("shard 4 is empty")})
    assert str(find_user_error(pickle.loads(pickle.dumps(wrapped)))) == "shard 4 is empty"
    assert str(find_user_error(ControllerError(wrapped))) == "shard 4 is empty"
    assert find_user_error(WorkerGroupError("worker 0 failed", {0: RuntimeError("lost peer")})) is None


def test_a_defect_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), ray_session(Cluster()):
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["GPU", "CPU"])
def test_more_workers_than_the_session_has_room_for_are_refused(kind, monkeypatch, capsys):
    there = ray.cluster_resources().get(kind, 0)
    asked = int(there) + 1
    cluster = Cluster(workers=asked, gpus_per_worker=kind == "GPU")
    with pytest.raises(ConfigError, match=rf"asks for {asked} {kind}s.* and there are {there:g}\. .*--set"):
        check_resources(cluster)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_resources(cluster)
    assert re.search(rf"asks for {asked} {kind}s.*The job waits until the cluster has grown", capsys.readouterr().err)


def test_reading_the_data_needs_a_cpu_beside_the_workers():
    there = int(ray.cluster_resources()["CPU"])
    check_resources(Cluster(workers=there - 1))
    with pytest.raises(ConfigError, match=f"asks for {there} CPUs, and reading the data for 1 more"):
        check_resources(Cluster(workers=there))


def test_a_machine_too_busy_for_ray_is_told(monkeypatch):
    def slow(**_):
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=r"Ray did not start .* less busy"), ray_session(Cluster()):
        pass


def test_a_cluster_that_does_not_answer_is_told():
    """In a process of its own, because this one is connected."""
    code = "from mtrec_ray.config import Cluster; from mtrec_ray.launch.session import ray_session\n"
    code += "with ray_session(Cluster()): pass"
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ConfigError: No Ray cluster answers at RAY_ADDRESS=127.0.0.1:1" in done.stderr
