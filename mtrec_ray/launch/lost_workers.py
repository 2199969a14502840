"""What to tell when a job lost more workers than it may: the processes died, so no worker can say why."""

import ray
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError

# Ray names these two nowhere public; its version is pinned.
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from mtrec_ray.config import Cluster
from mtrec_ray.errors import ClusterError

_LOST = (RayActorError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
_ADVICE = " Some common causes include"
"""Where Ray's account of a death ends, and a guess that fits every death begins."""


def loss(error: TrainingFailedError, cluster: Cluster, logs: str) -> ClusterError | None:
    """The message for a job that ended because workers were lost; None if it ended otherwise.

    One lost worker is enough: those that waited for it fail too, each with an error of its own.
    """
    failures = getattr(error, "worker_failures", {})
    lost = {rank: failure for rank, failure in sorted(failures.items()) if isinstance(failure, _LOST)}
    if not lost:
        return None
    said = "; ".join(f"rank {rank}: {_account(failure)}" for rank, failure in lost.items())
    again = "once" if cluster.max_failures == 1 else f"{cluster.max_failures} times"
    return ClusterError(
        f"The job lost {len(lost)} of its {cluster.workers} workers ({said}), after it had been started again {again}, "
        f"as cluster.max_failures: {cluster.max_failures} allows. The same command (without --overwrite) goes on from "
        "the last checkpoint, or from the start if there is none; --set cluster.max_failures=N lets it start again by "
        "itself more often. Workers that die at once or one after the other often ran out of memory: lower "
        f"train.micro_tokens. Their logs are in {logs} of the machines they ran on."
    )


def logs_folder() -> str:
    """Where Ray's logs are, on every machine of the session that this process is connected to."""
    context = ray.get_runtime_context()
    return f"{context.get_temp_dir()}/{context.get_session_name()}/logs"


def _account(failure: Exception) -> str:
    """What happened to the process, in one line."""
    if isinstance(failure, WorkerHealthCheckTimeoutError):
        return "it did not answer any more"
    return str(failure).strip().splitlines()[-1].partition(_ADVICE)[0].rstrip(".")
