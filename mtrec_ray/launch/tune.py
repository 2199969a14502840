"""`mtrec tune`: a search over values of a config, from the checked space to the report and `best.yaml`."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray import tune as ray_tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.experiment import Trial as RayTrial
from ray.tune.stopper import Stopper

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.augment.item_text import publish_texts
from mtrec_ray.data.streaming.chunks import open_order
from mtrec_ray.errors import ConfigError
from mtrec_ray.launch.distributed_trials import DistributedRunner
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.launch.jobs import absolute, located
from mtrec_ray.launch.runs import CONFIG, REPORT, RunFolder
from mtrec_ray.launch.session import check_resources, find_user_error, ray_session
from mtrec_ray.launch.stack import make_stacks
from mtrec_ray.launch.stacked_trials import StackedRunner
from mtrec_ray.launch.train import pretrain_if_needed, train
from mtrec_ray.launch.trial import TrialRunner, TuneTrial
from mtrec_ray.progress import Bar, say, track
from mtrec_ray.search import objectives as objectives_of
from mtrec_ray.search.applied import trial_run
from mtrec_ray.search.cost import Cost
from mtrec_ray.search.objectives import Objective, check_comparable
from mtrec_ray.search.records import TrialRecord, read_records, write_record
from mtrec_ray.search.report import write_report
from mtrec_ray.search.schedulers import make_scheduler, replay
from mtrec_ray.search.select import Selection, select
from mtrec_ray.search.select import check as check_selection
from mtrec_ray.search.space import Space
from mtrec_ray.search.stackable import Mode, choose_mode
from mtrec_ray.search.suggest import TRIAL, TrialSearcher, count_trials, make_searcher, population
from mtrec_ray.search.wording import title
from mtrec_ray.train.checks import check_data, check_parts
from mtrec_ray.train.schedule import evaluation_interval, planned_steps
from mtrec_ray.train.start import check_start, check_variants

BEST = "best.yaml"
RAY_FOLDER = ".tune"
"""Below the search's folder: Ray Tune's own files, until the search is finished."""
_TRIAL_RESOURCES: dict[str, float] = {"CPU": 0, "memory": 1}
"""Of a trial's own process, which waits for the training elsewhere: as good as nothing, for with a share of a CPU less
the reading of data would starve on a small machine. (Ray wants something.)"""


def tune(run: Run, resume: bool = False, overwrite: bool = False, config_path: str = "CONFIG") -> str:
    """Searches, and gives the search's folder with `report.html`, `tune.json`, `best.yaml` and `trials/`.

    Raises:
        UserError: see the message; all trials failed, among others.
    """
    from mtrec_ray.data.prepare import prepare

    check_parts(run)
    run, folder = located(run), RunFolder.of(run)
    space = Space.parse(run)
    for _, probe in space.probes(run):
        check_parts(probe)
    check_variants(run, ((entry.where, probe) for entry, probe in space.probes(run)))
    check_selection(run.tune)
    mode = choose_mode(run, space)
    with ray_session(run.cluster):
        check_resources(run.cluster)
        _open(folder, run, resume, overwrite)
        data = prepare(run)
        for probe in (run, *(probe for _, probe in space.probes(run))):
            check_data(probe, data.manifest)
            check_start(probe, absolute(data.path), data.manifest)
        objectives = objectives_of.parse(run, data.manifest)
        check_comparable(objectives, run, space)
        prepared = absolute(data.path)
        publish_texts(run, prepared)
        pretrain_if_needed(run, prepared)
        search = _Search(run, folder, space, objectives, mode, prepared, data.manifest)
        search.carry_out()
        selection = search.conclude(config_path)
        if run.tune.retrain:
            train(_winner(run, selection))
    return folder.path


@dataclass
class _Search:
    run: Run
    folder: RunFolder
    space: Space
    objectives: Sequence[Objective]
    mode: Mode
    prepared: str
    manifest: Manifest

    def carry_out(self) -> None:
        """Runs all trials that have not ended yet."""
        run, past = self.run, read_records(self.folder.path)
        evaluations = self._evaluations()
        scheduler = make_scheduler(run, self.space, self.objectives, evaluations)
        replay(scheduler, past)
        total, ended = count_trials(run, self.space), sum(record.status != "running" for record in past)
        at_a_time = self._at_a_time(total - ended)
        cost = Cost(run, total - ended, at_a_time, evaluations, self._tokens())
        say(f"{self.mode.name} trials: {self.mode.reason}")
        say(cost.before())
        pbt = run.tune.scheduler == "pbt"  # which takes no searcher
        searcher = None if pbt else make_searcher(run, self.space, self.objectives, past)
        proposed = TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=1 if pbt else total,
            max_concurrent_trials=at_a_time,
            # A distributed trial ends with its process, which takes all of its workers along.
            reuse_actors=self.mode.name == "stacked",
        )
        stacks = self._stacks(at_a_time)
        try:
            with track("trials", total=total, unit="trials") as bar:
                bar.advance(ended)
                ray_tune.Tuner(
                    self._trainable(stacks),
                    param_space=population(run, self.space, past) if pbt else None,
                    tune_config=proposed,
                    run_config=self._kept(searcher, bar, cost),
                ).fit()
        finally:
            for stack in stacks:
                ray.kill(stack)
        self.folder.delete(RAY_FOLDER)

    def _trainable(self, stacks: Sequence[Any]) -> Any:
        runner: TrialRunner = StackedRunner(tuple(stacks)) if stacks else DistributedRunner(self.prepared)
        trial = ray_tune.with_parameters(TuneTrial, search=self.folder.path, run=self.run, runner=runner)
        return ray_tune.with_resources(trial, _TRIAL_RESOURCES)

    def _kept(self, searcher: TrialSearcher | None, bar: Bar, cost: Cost) -> RunConfig:
        """A checkpoint at every evaluation: trials start again, pause, and are cloned from there.

        For `pbt` all of them until the search ends: a donor may be far ahead when its clone comes to start.
        """
        kept = None if self.run.tune.scheduler == "pbt" else 1
        return RunConfig(
            name=RAY_FOLDER,
            storage_path=self.folder.path,
            verbose=0,
            failure_config=FailureConfig(max_failures=self.run.tune.max_failures),
            checkpoint_config=CheckpointConfig(checkpoint_frequency=1, num_to_keep=kept),
            stop=_Budget(self.run, searcher),
            callbacks=[_Told(self.folder.path, bar, self.objectives[0], cost)],
        )

    def conclude(self, config_path: str) -> Selection:
        """The chosen trial, `best.yaml`, and the report last."""
        run, records = self.run, read_records(self.folder.path)
        selection = select(records, self.objectives, run.tune)
        self.folder.write(BEST, dump(_winner(run, selection)))
        facts = {"trials": f"{self.mode.name}: {self.mode.reason}"}
        own = next((r.number for r in records if r.number == 0 and r.values == self.space.default(run)), None)
        write_report(self.folder.path, run, records, self.objectives, selection, own, config_path, facts)
        say(selection.reason)
        return selection

    def _evaluations(self) -> int:
        """Of a trial that nothing stops."""
        train = self.run.train
        per_epoch = open_order(self.prepared, order_settings(self.run, "train", 1)).steps_per_epoch
        return math.ceil(planned_steps(train, per_epoch) / evaluation_interval(train, per_epoch))

    def _at_a_time(self, left: int) -> int:
        """How many trials run together: never more than there is room for, since Tune does not count their workers."""
        room = self._places() * (self.run.tune.stack if self.mode.name == "stacked" else 1)
        return max(1, min(left, room, self.run.tune.max_concurrent or room))

    def _places(self) -> int:
        """How many training jobs, or stacks, the cluster holds at a time."""
        cluster, found = self.run.cluster, ray.cluster_resources()
        workers = 1 if self.mode.name == "stacked" else cluster.workers
        cpus = (found.get("CPU", 0.0) - 1) / (workers * cluster.cpus_per_worker)  # one CPU for reading data
        if not cluster.gpus_per_worker:
            return max(1, int(cpus))
        return max(1, int(min(cpus, found.get("GPU", 0.0) / (workers * cluster.gpus_per_worker))))

    def _stacks(self, at_a_time: int) -> list[Any]:
        if self.mode.name != "stacked":
            return []
        count = min(self._places(), math.ceil(at_a_time / self.run.tune.stack))
        stacks = make_stacks(self.run, self.prepared, count, min(self.run.tune.stack, at_a_time // count))
        ray.get([stack.open.remote() for stack in stacks])  # a backbone that cannot be used is told before any trial
        return stacks

    def _tokens(self) -> int:
        """That a trial reads to train, if nothing stops it."""
        train = self.run.train
        per_epoch = open_order(self.prepared, order_settings(self.run, "train", 1)).steps_per_epoch
        whole = sum(shard.tokens for shard in self.manifest.shards["train"])
        return round(whole * planned_steps(train, per_epoch) / per_epoch)


def _open(folder: RunFolder, run: Run, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready. Raises `ConfigError` for one that holds a search, or none, other than asked for."""
    started = folder.has(CONFIG) and not folder.has(REPORT)
    if resume and not folder.has(CONFIG):
        raise ConfigError(f"--resume: {folder.path} holds no search. Leave --resume away to start one.")
    if started and not resume and not overwrite:
        raise ConfigError(
            f"{folder.path} holds an unfinished search. Go on with it (--resume), replace it (--overwrite), or choose "
            "another name (--set name=...)."
        )
    folder.open(run, overwrite)


def _winner(run: Run, selection: Selection) -> Run:
    """The chosen trial's config as a run of its own."""
    return trial_run(run, selection.record.values, f"{run.name}-best")


class _Budget(Stopper):
    """Ends trials at their next report once time or accelerator hours are spent; no other one starts then."""

    def __init__(self, run: Run, searcher: TrialSearcher | None) -> None:
        self._run, self._searcher = run, searcher
        self._started = time.monotonic()
        self._spent: dict[str, float] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._spent[trial_id] = result.get("accelerator_seconds", 0.0)
        tune, spent = self._run.tune, sum(self._spent.values()) / 3600
        over = tune.accelerator_hours is not None and spent >= tune.accelerator_hours
        if tune.time_limit is not None and time.monotonic() - self._started >= tune.time_limit:
            over = True
        if over and self._searcher is not None:
            self._searcher.end()
        return over

    def stop_all(self) -> bool:
        return False


class _Told(Callback):
    """Tells of the trials' progress, and writes how each one ended."""

    def __init__(self, folder: str, bar: Bar, objective: Objective, cost: Cost) -> None:
        self._folder, self._bar, self._objective = folder, bar, objective
        self._cost: Cost | None = cost

    def __getstate__(self) -> dict[str, Any]:
        """Ray keeps callbacks for a `Tuner.restore` that nobody calls; a progress bar cannot be kept."""
        return {key: value for key, value in vars(self).items() if key != "_bar"}

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if self._cost is not None:
            say(self._cost.by(result))
            self._cost = None

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        record = self._record(trial)
        if record is not None and record.status == "running":
            write_record(self._folder, record.ended("stopped"))
        self._bar.advance(1)
        best = max(
            (v for r in (record.reports if record else ()) if (v := self._objective.value(r)) is not None), default=None
        )
        if best is not None:
            self._bar.note(f"trial {_number(trial)}: {title(self._objective.name)} {self._objective.sign * best:.4f}")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        record = self._record(trial)
        if record is not None:
            write_record(self._folder, record.ended("failed", _cause(trial)))
        self._bar.advance(1)

    def _record(self, trial: RayTrial) -> TrialRecord | None:
        known = [record for record in read_records(self._folder) if record.number == _number(trial)]
        return known[0] if known else None


def _number(trial: RayTrial) -> int:
    number: int = trial.config[TRIAL]["number"]
    return number


def _cause(trial: RayTrial) -> BaseException | str:
    """What a trial died of, as it was raised. From the driver's own disk: Ray copies it to the storage later."""
    file = trial.pickled_error_file
    if file is None or not Path(file).is_file():
        return "its process was lost"
    error = cloudpickle.loads(Path(file).read_bytes())
    return find_user_error(error) or _innermost(error)


def _innermost(error: BaseException) -> BaseException:
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return error
