"""One Ray session for all that a command does: the cluster's where there is one, else a quiet local one."""

import logging
import math
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.ray_logging import stdout_deduplicator

from mtrec_ray.config import Cluster
from mtrec_ray.errors import ClusterError, ConfigError, UserError
from mtrec_ray.progress import say, verbose

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",  # what it logs as an error it also raises
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
_NOISY_LOGGERS = ("ray", "ray.train", "DeepSpeed", "transformers", "peft")
_CONNECT_SECONDS = 10
_READING_CPUS = 1
"""Besides those of the workers: Ray Data reads for them in tasks of its own, and would wait for ever without."""


@contextmanager
def ray_session(cluster: Cluster) -> Iterator[None]:
    """A connection to Ray inside the block; nested blocks share the outermost one, which ends it.

    Under `ray job submit`, and wherever RAY_ADDRESS is set, that cluster is used. Otherwise a local session is started,
    whether or not this machine belongs to a cluster (RAY_ADDRESS=auto asks for that), with CPU slots for the workers
    of `cluster` and one more for reading data, so that a small machine does not wait for a slot that cannot come.
    Workers run as many threads as they have CPUs (Ray sets OMP_NUM_THREADS from that, if it is not set already).

    Token authentication is Ray's: a new local session makes `~/.ray/auth_token` if there is none; a cluster's token
    comes from there, from RAY_AUTH_TOKEN or from RAY_AUTH_TOKEN_PATH.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS, or it refuses the token.
        ClusterError: a local session did not start in time.
        UserError: the one that a worker raised, in place of the wrapping that Ray gave it.
    """
    with _unwrapped():
        if ray.is_initialized():
            yield
            return
        _connect(cluster)
        try:
            yield
        finally:
            ray.shutdown()


def check_resources(cluster: Cluster) -> None:
    """Refuses a job for which a local session can never have room. A cluster may still grow, so there it only tells.

    Raises:
        ConfigError: more GPUs or CPUs asked than the session has.
    """
    found = ray.cluster_resources()
    short = [text for text in (_too_few_gpus(cluster, found), _too_few_cpus(cluster, found)) if text is not None]
    if not short:
        return
    if "RAY_ADDRESS" not in os.environ:
        raise ConfigError(
            f"{short[0]} Submit the job to a larger cluster (`ray job submit`), or lower what is asked for with --set."
        )
    say(f"{short[0]} The job waits until the cluster has grown; if it cannot, stop it and lower what is asked for.")


def _too_few_gpus(cluster: Cluster, found: Mapping[str, float]) -> str | None:
    asked, there = cluster.workers * cluster.gpus_per_worker, found.get("GPU", 0.0)
    if asked <= there:
        return None
    return f"cluster.workers × cluster.gpus_per_worker asks for {asked:g} GPUs, and there are {there:g}."


def _too_few_cpus(cluster: Cluster, found: Mapping[str, float]) -> str | None:
    asked, there = cluster.workers * cluster.cpus_per_worker, found.get("CPU", 0.0)
    if asked + _READING_CPUS <= there:
        return None
    return (
        f"cluster.workers × cluster.cpus_per_worker asks for {asked:g} CPUs, and reading the data for "
        f"{_READING_CPUS} more, and there are {there:g}."
    )


def find_user_error(error: BaseException | None) -> UserError | None:
    """The mistake of the user behind an error that came through Ray Core, Ray Data or Ray Train, if that is what it is.

    Ray's own copy is also an instance of the original's class, with a whole traceback as its message; `cause` is the
    error as it was raised.
    """
    seen: set[int] = set()
    queue = [error]
    while queue:
        error = queue.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if isinstance(error, UserError) and not isinstance(error, ray.exceptions.RayError):
            return _as_raised(error)
        queue += [error.__cause__, getattr(error, "cause", None), getattr(error, "controller_failure", None)]
        queue += getattr(error, "worker_failures", {}).values()
    return None


def _as_raised(error: UserError) -> UserError:
    """`error` without the advice on retries that Ray Data writes into the message of whatever a task raises."""
    message, added, _ = str(error).partition("\nFailed to apply UDF")
    return type(error)(message) if added else error


@contextmanager
def _unwrapped() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found = find_user_error(error)
        if found is None or found is error:
            raise
        raise found from None


def _connect(cluster: Cluster) -> None:
    address = os.environ.get("RAY_ADDRESS")
    ray.data.DataContext.get_current().raise_original_map_exception = True  # or a mistake of the user loses its class
    if not verbose():
        _silence()
    options: dict[str, Any] = {
        "log_to_driver": verbose(),
        "logging_level": logging.INFO if verbose() else logging.ERROR,
    }
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(address="local", num_cpus=_slots(cluster), include_dashboard=False, **options)
        except Exception as error:  # Ray raises nothing more special
            if "timed out during startup" not in str(error):
                raise
            raise ClusterError(
                "Ray did not start on this machine in the time that it gives itself, as happens where other programs "
                "take all of its CPUs or memory. Try again when it is less busy; nothing was lost."
            ) from error
        return
    _check_reachable(address)
    try:
        ray.init(runtime_env={} if verbose() else {"env_vars": _QUIET}, **options)
    except ConnectionError as error:
        raise _no_cluster(address, error) from error
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"The Ray cluster at RAY_ADDRESS={address} refuses the token: set RAY_AUTH_TOKEN to the one that "
            "`ray get-auth-token` prints on its head node."
        ) from error


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes; `auto`, `local` and `ray://` it answers soon."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"No Ray cluster answers at RAY_ADDRESS={address} ({error}). Unset it to run on this machine.")


def _slots(cluster: Cluster) -> int:
    return max(os.cpu_count() or 1, math.ceil(cluster.workers * cluster.cpus_per_worker) + _READING_CPUS)


def _silence() -> None:
    """Keeps the libraries' own bars, hints and deprecations out of the user's sight, here and in child processes."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("ray.data", "ray.tune"):  # what they log as errors they also raise, or the search keeps it
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(ray|deepspeed|transformers|peft|torch)\b")
    # Ray says it of every slow start, to stdout and whatever `log_to_driver` is; many processes are as it should be.
    stdout_deduplicator.skip_re = re.compile("worker processes have been started")
    data_context = ray.data.DataContext.get_current()
    data_context.enable_progress_bars = False
    data_context.print_on_execution_start = False
