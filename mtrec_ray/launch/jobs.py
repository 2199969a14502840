"""One Ray Train job: the same function on every worker of `cluster`, with a process group."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from mtrec_ray.config import Cluster, Run
from mtrec_ray.data.filesystem import is_url
from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.launch.lost_workers import logs_folder, loss
from mtrec_ray.launch.relay import Relay
from mtrec_ray.launch.session import check_resources, find_user_error
from mtrec_ray.model.backbone import locate
from mtrec_ray.progress import say
from mtrec_ray.train.start import WHERE, follow


def absolute(path: str) -> str:
    """The path as every process understands it: workers have another current directory than the driver."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def located(run: Run, begun: Run | None = None) -> Run:
    """The run with all folders that it reads by absolute path, and with the language model that it starts from.

    `begun`: the config with which it began, if it goes on; then the run that it started from is not looked at again.

    Raises:
        ConfigError: what `train.start_from` names is no finished run, not one that fits, or about to be replaced.
    """
    start = run.train.start_from
    path = None if start is None else absolute(start).rstrip("/")
    own = absolute(f"{run.cluster.storage.rstrip('/')}/{run.name}")
    if path is not None and f"{path}/".startswith(f"{own}/"):
        raise ConfigError(
            f"{WHERE}: '{start}' lies in {own}, the folder that this run itself writes, and --overwrite would delete "
            f"it first. Choose another name (--set name={run.name}-next)."
        )
    update = {
        "backbone": run.backbone.model_copy(update={"name": locate(run.backbone.name)}),
        "train": run.train.model_copy(update={"start_from": path}),
    }
    run = run.model_copy(update=update)
    if begun is not None and path is not None and begun.train.start_from == path:
        return run.model_copy(update={"backbone": run.backbone.model_copy(update={"name": begun.backbone.name})})
    return follow(run)


WorkerFunction = Callable[..., Any]
"""Called on every worker with the relay and its arguments by name."""


def run_workers(
    function: WorkerFunction,
    arguments: dict[str, Any],
    cluster: Cluster,
    relay: Relay,
    *,
    name: str,
    storage: str,
    datasets: Mapping[str, Any] | None = None,
    ingest: DataConfig | None = None,
) -> Any:
    """Runs `function(relay, **arguments)` on every worker and gives what rank 0 returned.

    After a failure all workers start again, at most `cluster.max_failures` times; not after a mistake of the user. Of
    the reported checkpoints the latest is kept under `<storage>/<name>`; a job that finds one there goes on from it.

    Raises:
        UserError: from a worker, wrapped by Ray; `ray_session` unwraps it.
        ClusterError: one worker too many was lost.
    """
    check_resources(cluster)
    say(f"Starting {cluster.workers} worker{'s' * (cluster.workers > 1)}")  # takes a while, or waits
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    trainer = TorchTrainer(
        partial(_work, function),
        train_loop_config={"relay": relay, "arguments": arguments},
        torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
        datasets=dict(datasets) if datasets else None,
        dataset_config=ingest,
    )
    try:
        result: Any = trainer.fit()
    except TrainingFailedError as error:
        lost = loss(error, cluster, logs_folder())
        if lost is None or find_user_error(error) is not None:
            raise
        raise lost from error
    return result.return_value


def _work(function: WorkerFunction, config: dict[str, Any]) -> Any:
    """Ray starts failed workers again whatever the reason; a mistake of the user would only be made once more."""
    relay: Relay = config["relay"]
    relay.raise_refusal()
    try:
        return function(relay, **config["arguments"])
    except UserError as error:
        relay.refuse(error)
        raise


def use_threads(cluster: Cluster) -> None:
    """As many threads as the worker has CPUs, rounded up; more would fight with the machine's other workers."""
    torch.set_num_threads(math.ceil(cluster.cpus_per_worker))
