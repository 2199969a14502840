"""What runs on every worker of a training or evaluation job: the parts are put together here, and nowhere else."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import load_catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.augment.augmenter import Augmenter
from mtrec_ray.data.streaming.chunks import open_order
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import Order
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.data.streaming.stream import Step, StepStream
from mtrec_ray.data.vectors import load_vectors
from mtrec_ray.engine.base import Engine
from mtrec_ray.evaluate.facts import facts_of
from mtrec_ray.launch.jobs import use_threads
from mtrec_ray.launch.relay import Relay
from mtrec_ray.registry import import_plugins
from mtrec_ray.tasks.kinds import build_kinds
from mtrec_ray.train import checkpoint
from mtrec_ray.train.augmentation import open_augmenter
from mtrec_ray.train.building import BackboneBuilder, open_engine, reads_causally
from mtrec_ray.train.context import RayContext
from mtrec_ray.train.evaluation import score
from mtrec_ray.train.footprint import peak_memory_mib, trained_parameters
from mtrec_ray.train.scoring import predictions_table, write_predictions
from mtrec_ray.train.worker import TrainingData, fit

SCORED = ("valid", "test")


def train_worker(relay: Relay, run: Run, prepared: str, run_folder: str, title: str) -> dict[str, Any]:
    """Trains, then scores valid and test with the best weights. Rank 0 writes; its result is the run's summary."""
    worker = Worker(relay, run, prepared, _ShowingContext(run_folder, relay), title)
    data = worker.training_data()
    shown = replace(data, train=worker.shown(data.train, "train"))
    fitted = fit(run, worker.manifest, shown, worker.context, worker.build_backbone)
    worker.predict(fitted.engine)
    parameters = trained_parameters(fitted.engine.model)
    fitted.engine.close()
    return {
        "prepared": prepared,
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "best_metric": fitted.best_metric,
        "throughput": fitted.throughput,
        "peak_memory_mib": peak_memory_mib(worker.context.device),
        "trained_parameters": parameters,
    }


def score_worker(relay: Relay, run: Run, prepared: str, run_folder: str, title: str) -> None:
    """Scores valid and test with the run's best checkpoint; rank 0 writes."""
    worker = Worker(relay, run, prepared, _ShowingContext(run_folder, relay), title)
    manifest, context = worker.manifest, worker.context
    engine, unpacked = open_engine(run, manifest, context.device, worker.build_backbone, catalogue=worker.catalogue)
    with checkpoint.fetched(f"{context.run_folder}/checkpoint") as folder:
        best = checkpoint.read(folder)
    if unpacked is not None and worker.leads:
        relay.say(unpacked)
    backbone: Any = engine.model.backbone
    checkpoint.load_weights(engine, best, None if backbone is None else backbone.checksum())
    worker.predict(engine)
    engine.close()


class Worker:
    """One rank: its config, its streams, and whom it tells."""

    def __init__(self, relay: Relay, run: Run, prepared: str, context: RayContext, title: str = "") -> None:
        import_plugins(run.plugins)
        use_threads(run.cluster)
        self.run = run
        self.prepared = prepared
        self.relay = relay
        self.title = title
        self.context = context
        self.leads = self.context.world_rank == 0
        self.manifest: Manifest = load_manifest(prepared)
        vectors = load_vectors(prepared, self.manifest)
        self.catalogue = load_catalogue(prepared, self.manifest, vectors)
        self.build_backbone = BackboneBuilder(run, prepared, self.manifest)
        self.collator = Collator(self.manifest, reads_causally(run), vectors, self.catalogue)

    def stream(self, split: str, augmenter: Augmenter | None = None) -> StepStream:
        import ray.train

        source: Any = ray.train.get_dataset_shard(split)
        order = open_order(self.prepared, source.settings)
        return StepStream(order, self.context.world_rank, self.collator, source, augmenter)

    def training_data(self) -> TrainingData:
        valid = self.stream("valid")
        train = self.stream("train", open_augmenter(self.run, self.prepared, self.manifest))
        return TrainingData(train, valid, facts_of(valid.order.shards), self.catalogue, self.prepared)

    def shown(self, stream: Any, what: str) -> Any:
        return _Shown(stream, self.relay, f"{self.title}{what}") if self.leads else stream

    def predict(self, engine: Engine) -> None:
        """All ranks score, rank 0 writes `predictions.parquet`."""
        tables: dict[str, pa.Table] = {}
        for split in SCORED:
            stream = self.stream(split)
            if not stream.order.steps_per_epoch:
                continue  # the split's boundaries may leave it empty
            steps = self.shown(stream, f"score {split}").steps(0, stream.order.steps_per_epoch)
            scores = score(engine, steps, build_kinds(self.manifest, self.run.tasks))
            if scores is not None:
                tables[split] = predictions_table(stream.order.shards, scores, self.manifest.tasks)
        if self.leads:
            write_predictions(self.context.run_folder, tables)


class _ShowingContext(RayContext):
    """Shows each validation's metric beside the progress."""

    def __init__(self, run_folder: str, relay: Relay) -> None:
        super().__init__(run_folder, relay.say)
        self._relay = relay

    def report(self, metrics: Any, checkpoint: Path | None) -> None:
        super().report(metrics, checkpoint)
        if self.world_rank == 0:
            self._relay.note(f"valid {metrics['metric']:.4f}")


class _Shown:
    """A stream whose steps are counted on a progress bar as they are done."""

    def __init__(self, stream: StepStream, relay: Relay, what: str) -> None:
        self._stream = stream
        self._relay = relay
        self._what = what

    @property
    def order(self) -> Order:
        return self._stream.order

    def steps(self, first: int, last: int) -> Iterator[Step]:
        with self._relay.track(self._what, last - first, "steps") as bar:
            for step in self._stream.steps(first, last):
                bar.advance()  # before it is done: the last one is never asked to go on
                yield step
