"""One Ray Train job: the same function on every worker of `cluster`, with a process group."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ray.train import CheckpointConfig, DataConfig, FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from mtrec_ray.config import Cluster
from mtrec_ray.data.filesystem import is_url
from mtrec_ray.launch.session import check_resources


def absolute(path: str) -> str:
    """The path as every process understands it: workers have another current directory than the driver."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    arguments: dict[str, Any],
    cluster: Cluster,
    *,
    name: str,
    storage: str,
    datasets: Mapping[str, Any] | None = None,
    ingest: DataConfig | None = None,
) -> Result:
    """Runs `function(arguments)` on every worker; after a failure all start again, at most `cluster.max_failures` times.

    Reported checkpoints are kept under `<storage>/<name>`: the latest one. A job that finds some there goes on from it.
    """
    check_resources(cluster)
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    trainer = TorchTrainer(
        function,
        train_loop_config=arguments,
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
    return trainer.fit()


def use_threads(cluster: Cluster) -> None:
    """As many threads as the worker has CPUs; more would fight with the other workers of the machine."""
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
