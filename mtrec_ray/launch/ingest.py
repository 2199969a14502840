"""What each training worker reads: its own ordered stream of every split, through Ray Train's `DataConfig`.

Ray's own splitting drops rows (`equal=True`) and cannot say which rank gets what. Here every rank gets a source that
builds a Ray Data set of its share, from any step on. Ray Train calls `configure` once per worker group, so also after a
resize, with the new number of workers.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.train import DataConfig

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.streaming.chunks import RayChunks
from mtrec_ray.data.streaming.order import OrderSettings


class OrderedIngest(DataConfig):
    """Use with `datasets=ordered_splits(...)`; a worker takes `ray.train.get_dataset_shard(split)`, a `RayChunks`."""

    def __init__(self, prepared: str) -> None:
        super().__init__(datasets_to_split=[])  # no barrier: a rank's source depends on nothing but its rank
        self.prepared = prepared

    def configure(  # type: ignore[override]  # Ray hands on what `datasets` holds and what this returns
        self,
        datasets: Mapping[str, OrderSettings],
        world_size: int,
        worker_handles: Any = None,
        worker_node_ids: Any = None,
        **kwargs: Any,
    ) -> list[dict[str, RayChunks]]:
        return [
            {
                split: RayChunks(self.prepared, replace(settings, world_size=world_size), rank)
                for split, settings in datasets.items()
            }
            for rank in range(world_size)
        ]


def ordered_splits(run: Run) -> dict[str, OrderSettings]:
    """The order of each split: shuffled for training, as prepared for evaluation."""
    return {split: order_settings(run, split, run.cluster.workers) for split in SPLITS}


def order_settings(run: Run, split: str, world_size: int) -> OrderSettings:
    train = split == "train"
    return OrderSettings(
        split=split,
        seed=run.seed,
        batch_requests=run.train.batch_requests if train else run.evaluate.batch_requests,
        micro_tokens=max(1, run.train.micro_tokens // (run.regularization.views if train else 1)),
        world_size=world_size,
        shuffle=train,
    )
