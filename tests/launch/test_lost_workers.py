import pickle

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from mtrec_ray.config import Cluster
from mtrec_ray.errors import UserError
from mtrec_ray.launch.lost_workers import loss

DIED = (
    "The actor died unexpectedly.\n\tpid: 7\nIts process has died: End of file. Some common causes include: (1) memory"
)
LOST = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
LOST.health_check_failure.error_msg = DIED
WAITED = RuntimeError("Connection closed by peer")


def failed(*failures: Exception | None) -> TrainingFailedError:
    """What Ray raises on the driver, as it arrives from the controller's process."""
    error = WorkerGroupError("...", {rank: failure for rank, failure in enumerate(failures) if failure is not None})
    return pickle.loads(pickle.dumps(error))


def test_the_message_names_the_loss_the_tries_the_way_on_and_the_logs():
    error = loss(failed(None, LOST, WAITED), Cluster(workers=3, max_failures=2), "/tmp/ray/session_1/logs")
    assert isinstance(error, UserError)
    message = str(error)
    assert "\n" not in message
    assert "lost 1 of its 3 workers (rank 1: Its process has died: End of file)" in message
    assert "started again 2 times, as cluster.max_failures: 2 allows" in message
    assert "same command (without --overwrite) goes on from the last checkpoint" in message
    assert "logs are in /tmp/ray/session_1/logs" in message


def test_a_worker_that_no_longer_answers_is_lost():
    error = loss(failed(WorkerHealthCheckTimeoutError("no answer for 600 s")), Cluster(max_failures=1), "logs")
    assert "lost 1 of its 1 workers (rank 0: it did not answer any more), after it had been started again once" in str(
        error
    )


@pytest.mark.parametrize("error", [failed(WAITED, TypeError("defect")), ControllerError(RuntimeError("defect"))])
def test_a_defect_is_no_loss(error):
    assert loss(error, Cluster(), "logs") is None
