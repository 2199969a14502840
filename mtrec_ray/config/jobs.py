"""What is measured afterwards, and where it all runs."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mtrec_ray.config.part import Part


class Evaluate(Part):
    """What is measured after training."""

    bootstrap: Annotated[int, Field(ge=0)] = 200
    """Resamplings of users for the intervals; 0 = none."""
    baselines: list[Literal["constant", "popularity", "running_rates", "gbdt", "side_features"]] = [
        "constant",
        "popularity",
        "running_rates",
        "gbdt",
    ]
    """`popularity`: of tasks that match users with items; others pass it over."""
    batch_requests: PositiveInt = 64


class Cluster(Part):
    """Workers of the training job."""

    workers: PositiveInt = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    max_failures: Annotated[int, Field(ge=0)] = 1
    storage: str = "runs"
    """Folder or URL under which each run has its own folder; on several nodes it must be shared."""
