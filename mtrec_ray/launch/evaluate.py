"""`mtrec evaluate`: scores a run's valid and test rows again from its checkpoint, and rewrites metrics and report."""

from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.errors import DataError
from mtrec_ray.evaluate.evaluate import evaluate_run
from mtrec_ray.launch.relay import relayed
from mtrec_ray.launch.runs import RAY_FOLDER, RunFolder
from mtrec_ray.launch.session import ray_session
from mtrec_ray.launch.train import run_training_job
from mtrec_ray.launch.worker import score_worker


def evaluate(run_folder: str) -> str:
    """Rewrites `predictions.parquet`, `metrics.json` and `report.html` of a trained run; gives its folder.

    Raises:
        DataError: not the folder of a trained run, or its prepared data is gone.
    """
    folder = RunFolder(run_folder)
    run, prepared = folder.config(), folder.summary()["prepared"]
    try:
        load_manifest(prepared)
    except DataError as error:
        raise DataError(
            f"{folder.path} was trained on {prepared}, which is gone; run `mtrec train` with its config again."
        ) from error
    with ray_session(run.cluster), relayed() as relay:
        arguments = {"run": run, "prepared": prepared, "run_folder": folder.path, "title": ""}
        run_training_job(score_worker, arguments, run, folder, relay)
        folder.delete(RAY_FOLDER)
        evaluate_run(folder.path, prepared, run)
    return folder.path
