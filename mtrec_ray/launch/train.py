"""`mtrec train`: logs -> prepared data -> pretrained backbone -> trained run -> predictions -> metrics and report."""

import json
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.data.streaming.augment.item_text import publish_texts
from mtrec_ray.engine.optimizer import ignored
from mtrec_ray.evaluate.evaluate import evaluate_run
from mtrec_ray.launch.ingest import OrderedIngest, ordered_splits
from mtrec_ray.launch.jobs import WorkerFunction, absolute, located, run_workers
from mtrec_ray.launch.pretrain import pretrain_prepared
from mtrec_ray.launch.relay import Relay, relayed
from mtrec_ray.launch.runs import RAY_FOLDER, SUMMARY, RunFolder
from mtrec_ray.launch.session import check_resources, ray_session
from mtrec_ray.launch.worker import train_worker
from mtrec_ray.progress import say
from mtrec_ray.train import pretrained
from mtrec_ray.train.checks import check_data, check_parts
from mtrec_ray.train.evaluation import chosen_metric
from mtrec_ray.train.guards import chosen_guards
from mtrec_ray.train.start import check_start

SIDE_FEATURES = "side_features"
"""The baseline that is a training of its own, in a folder of that name below the run's."""
LOG = "metrics.jsonl"
"""Of a run's folder, since its workers began."""


def train(run: Run, overwrite: bool = False) -> str:
    """Trains and evaluates a run and gives its folder. An interrupted run of the same name and config goes on.

    Raises:
        UserError: see the message; a finished run of that name among others.
    """
    from mtrec_ray.data.prepare import prepare

    check_parts(run)
    folder = RunFolder.of(run)
    begun = folder.config() if folder.has(LOG) and not overwrite else None
    run = located(run, begun)
    with ray_session(run.cluster):
        check_resources(run.cluster)
        folder.open(run, overwrite)
        data = prepare(run)
        prepared = absolute(data.path)
        chosen_metric(run, data.manifest)  # wrong ones are refused before anything is pretrained
        chosen_guards(run, data.manifest)
        check_data(run, data.manifest)
        if begun is None:
            check_start(run, prepared, data.manifest)
        for text in ignored(run):
            say(text)
        train_prepared(run, prepared, folder)
        evaluate_run(folder.path, prepared, run)
    return folder.path


def train_prepared(run: Run, prepared: str, folder: RunFolder) -> None:
    """From a prepared folder to predictions in the run folder, those of the baseline `side_features` included."""
    publish_texts(run, prepared)
    pretrain_if_needed(run, prepared)
    _train_one(run, prepared, folder, title="")
    if SIDE_FEATURES in run.evaluate.baselines and run.backbone.name != pretrained.NONE:
        below = RunFolder(f"{folder.path}/{SIDE_FEATURES}")
        _train_one(side_features_only(run), prepared, below, title="side features only: ")


def pretrain_if_needed(run: Run, prepared: str) -> None:
    """The weights that a run with the built-in backbone starts from, unless they are there."""
    if run.backbone.name == pretrained.NANO and run.backbone.pretrained:
        backbone = pretrained.backbone_folder(run, prepared)
        if not pretrained.is_complete(backbone):
            pretrain_prepared(run, prepared, backbone)


def side_features_only(run: Run) -> Run:
    """The same run without a language model, on the same prepared data, and so with the same steps; from nothing, and
    in one stage, since one that trains adapters alone would have nothing to train."""
    changes = {
        "backbone": run.backbone.model_copy(update={"name": pretrained.NONE}),
        "train": run.train.model_copy(update={"start_from": None}),
        "strategy": run.strategy.model_copy(update={"stages": []}),
    }
    return run.model_copy(update=changes)


def _train_one(run: Run, prepared: str, folder: RunFolder, title: str) -> None:
    """One training job; nothing to do where an earlier call has finished it."""
    if folder.has(SUMMARY):
        return
    with relayed() as relay:
        arguments = {"run": run, "prepared": prepared, "run_folder": folder.path, "title": title}
        summary = run_training_job(train_worker, arguments, run, folder, relay)
    folder.write(SUMMARY, json.dumps(summary, indent=1))
    folder.delete(RAY_FOLDER)


def run_training_job(
    function: WorkerFunction, arguments: dict[str, Any], run: Run, folder: RunFolder, relay: Relay
) -> Any:
    """Runs a worker function that reads the splits of `arguments["prepared"]`; gives what rank 0 returned."""
    return run_workers(
        function,
        arguments,
        run.cluster,
        relay,
        name=RAY_FOLDER,
        storage=folder.path,
        datasets=ordered_splits(run),
        ingest=OrderedIngest(arguments["prepared"]),
    )
