"""`mtrec compare`: does learning the tasks together pay? Each task alone and all together, over seeds, on equal rows.

Every training is an ordinary run in a folder below the comparison's, so one that is finished is not repeated, and one
that was interrupted goes on.
"""

import traceback
from dataclasses import dataclass
from typing import NamedTuple

from mtrec_ray.compare.plan import Plan, make_plan
from mtrec_ray.compare.report import write_report
from mtrec_ray.compare.results import read_results
from mtrec_ray.compare.wording import table
from mtrec_ray.config import Run
from mtrec_ray.config_file import dump
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.optimizer import ignored
from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.evaluate.evaluate import evaluate_run
from mtrec_ray.evaluate.page import counted
from mtrec_ray.launch.jobs import absolute, located
from mtrec_ray.launch.runs import CONFIG, REPORT, RunFolder
from mtrec_ray.launch.session import check_resources, find_user_error, ray_session
from mtrec_ray.launch.train import train_prepared
from mtrec_ray.progress import say, verbose
from mtrec_ray.search.records import first_line
from mtrec_ray.train.checks import check_data
from mtrec_ray.train.evaluation import chosen_metric
from mtrec_ray.train.guards import chosen_guards
from mtrec_ray.train.start import check_start, check_variants

COMPARISON = "compare.yaml"
"""The resolved config; by its name a comparison's folder is told from that of a run or a search."""


@dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    report: str
    """Path or URL of the page."""
    table: str
    sentences: list[str]
    failed: int
    """Trainings that did not come to their end."""


def compare(run: Run, overwrite: bool = False) -> Compared:
    """Trains whatever is not finished yet, and writes `compare.json` and `report.html`.

    A training that fails does not stop the others; the same command tries it once more.

    Raises:
        UserError: a config that cannot be compared or trained, before the first training starts.
    """
    from mtrec_ray.data.prepare import prepare

    run = located(run)
    plan, folder = make_plan(run), RunFolder.of(run)
    check_variants(run, ((variant.name, variant.run) for variant in plan.variants))
    with ray_session(run.cluster):
        check_resources(run.cluster)
        _open(folder, plan, overwrite)
        data = prepare(run)
        _check_data(plan, absolute(data.path), data.manifest)
        for text in ignored(run):
            say(text)
        failures = _train_all(plan, absolute(data.path))
    results = read_results(plan, data.manifest, folder.path, failures)
    found = write_report(folder.path, plan, results)
    sentences = [" ".join(verdict["sentences"]) for verdict in found["verdicts"]]
    return Compared(f"{folder.path}/{REPORT}", table(found), sentences, len(failures))


class _Training(NamedTuple):
    variant: str
    seed: int
    run: Run
    folder: RunFolder


def _trainings(plan: Plan) -> list[_Training]:
    runs = [(variant.name, seed, plan.run_of(variant, seed)) for variant, seed in plan.trainings()]
    return [_Training(name, seed, run, RunFolder.of(run)) for name, seed, run in runs]


def _open(folder: RunFolder, plan: Plan, overwrite: bool) -> None:
    """Makes the comparison's folder ready. Raises `ConfigError`: it is another's, or a training's config differs."""
    if folder.has(CONFIG):
        raise ConfigError(
            f"{folder.path} holds a run or a search, and a comparison needs a folder of its own: choose another name "
            f"(--set name={plan.run.name}-compare)."
        )
    if overwrite:
        folder.delete()
    for training in _trainings(plan):
        if training.folder.has(CONFIG):
            training.folder.check_same(training.run)
    folder.write(COMPARISON, dump(plan.run))


def _check_data(plan: Plan, prepared: str, manifest: Manifest) -> None:
    """What the data alone can tell of `train.metric`, `train.guards`, `position` and the like, in all trainings."""
    for variant in plan.variants:
        try:
            chosen_metric(variant.run, manifest)
            chosen_guards(variant.run, manifest)
            check_data(variant.run, manifest)
            check_start(variant.run, prepared, manifest)
        except UserError as error:
            raise type(error)(f"{variant.name}: {error}") from None


def _train_all(plan: Plan, prepared: str) -> dict[tuple[str, int], str]:
    """Variant and seed -> the first line of the error, of the trainings that failed."""
    trainings = _trainings(plan)
    say(
        f"compare: {len(plan.metrics)} tasks alone and {counted(len(plan.joint), 'way', 'ways')} together, with "
        f"{counted(len(plan.seeds), 'seed', 'seeds')}: {len(trainings)} trainings, "
        f"{sum(training.folder.has(REPORT) for training in trainings)} of them finished before"
    )
    failures = {}
    for number, (name, seed, run, folder) in enumerate(trainings, start=1):
        if folder.has(REPORT):
            continue
        title = f"compare {number}/{len(trainings)}: {name}, seed {seed}"
        say(title)
        try:
            folder.open(run, overwrite=False)
            train_prepared(run, prepared, folder)
            evaluate_run(folder.path, prepared, run)
        except Exception as error:
            failures[name, seed] = first_line(find_user_error(error) or _innermost(error))
            say(f"{title} failed: {failures[name, seed]}")
            if verbose():
                say(traceback.format_exc())
    return failures


def _innermost(error: BaseException) -> BaseException:
    """What an error that came through Ray began with; of several workers, what the first one raised."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        failures = getattr(error, "worker_failures", {})
        inner = next((failures[rank] for rank in sorted(failures)), None) or getattr(error, "controller_failure", None)
        error = inner or getattr(error, "cause", None) or error.__cause__ or error
    return error
