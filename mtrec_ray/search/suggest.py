"""What Ray Tune asks for trials: numbers them, hands out values from a source, and tells it each trial's best report.

A trial's Tune config is `{"trial": {"number": 7, "values": {"train.learning_rate.towers": 0.002, ...}}}`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import Searcher

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest
from mtrec_ray.search.entries import Values
from mtrec_ray.search.objectives import Objective, best_report, told
from mtrec_ray.search.records import TrialRecord
from mtrec_ray.search.sources import Exhausted, GridSource, OptunaSource, RandomSource, Source, nsga2, tpe
from mtrec_ray.search.space import Space
from mtrec_ray.search.tune_searchers import PACKAGES, RaySource

TRIAL = "trial"
OWN = ("random", "grid", "tpe", "nsga2")


class TrialSearcher(Searcher):
    """Trials `0 .. total - 1` from a source, for Ray Tune.

    Its state is saved and restored by Ray with that of the experiment. A trial that is asked for again after a restart
    of the search (`reopened`) keeps its number.
    """

    def __init__(self, source: Source, objectives: Sequence[Objective], total: int) -> None:
        # Without a metric of its own: Ray would refuse reports that lack it, and a trial may well report a NaN.
        super().__init__()
        self._source, self._objectives, self._total = source, list(objectives), total
        self._next = 0
        self._reopened: list[tuple[int, Values]] = []
        self._numbers: dict[str, int] = {}
        self._best: dict[str, Mapping[str, Any]] = {}

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Takes in the trials of an earlier start: those that have ended count, the others are handed out first."""
        for record in sorted(records, key=lambda record: record.number):
            self._next = max(self._next, record.number + 1)
            best = best_report(self._objectives, record.reports)
            if record.status in ("finished", "stopped") and best is not None:
                self._source.learn(record.number, record.values, told(self._objectives, best))
                continue
            self._source.learn(record.number, record.values, None)
            if record.status == "running":
                self._reopened.append((record.number, record.values))
            else:
                self._source.tell(record.number, None)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's config; None where the source has none as yet, FINISHED after the last one."""
        if self._reopened:
            number, values = self._reopened.pop(0)
        elif self._next >= self._total:
            return Searcher.FINISHED
        else:
            try:
                found = self._source.ask(self._next)
            except Exhausted:
                return Searcher.FINISHED
            if found is None:
                return None
            number, values = self._next, found
            self._next += 1
        self._numbers[trial_id] = number
        return {TRIAL: {"number": number, "values": values}}

    def end(self) -> None:
        """Hands out no other trial: the budget is spent."""
        self._total, self._reopened = self._next, []

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        known = [self._best[trial_id]] if trial_id in self._best else []
        best = best_report(self._objectives, [*known, result])
        if best is not None:
            self._best[trial_id] = {o.key: best[o.key] for o in self._objectives}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the source. A trial stopped by a scheduler counts with what it came to; a failed one as failed."""
        if trial_id not in self._numbers:  # told before, or handed out after the state that Ray restored was saved
            return
        if result:
            self.on_trial_result(trial_id, result)  # the report at which a scheduler stops a trial comes only here
        best = self._best.pop(trial_id, None)
        self._source.tell(self._numbers.pop(trial_id), None if error or best is None else told(self._objectives, best))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(cloudpickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(cloudpickle.loads(Path(checkpoint_path).read_bytes()))


def make_searcher(
    run: Run, space: Space, objectives: Sequence[Objective], past: Iterable[TrialRecord] = ()
) -> TrialSearcher:
    """The searcher of `run.tune`, deterministic by `run.seed` and the order of results.

    `past`: the records of a search that goes on. Give Tune `num_samples=count_trials(run, space)`; the searcher itself
    ends sooner by what `past` has.

    Raises:
        ConfigError: an unknown searcher, one that is not installed, or one that cannot do this space or objectives.
    """
    records = list(past)
    searcher = TrialSearcher(_source(run, space, objectives, len(records)), objectives, count_trials(run, space))
    searcher.learn(records)
    return searcher


def count_trials(run: Run, space: Space) -> int:
    """Trials of the whole search, the first one (the config's own values) included.

    The searcher `grid` has as many as its grid, whatever `tune.trials` says; say so to the user.
    """
    return len(GridSource(run, space).points) if chosen(run) == "grid" else run.tune.trials


def chosen(run: Run) -> str:
    """`tune.searcher` with `auto` resolved."""
    if run.tune.scheduler == "pbt":
        return "random"
    if run.tune.searcher == "auto":
        return "tpe"
    return run.tune.searcher


def _source(run: Run, space: Space, objectives: Sequence[Objective], past: int) -> Source:
    name = chosen(run)
    if name == "random":
        return RandomSource(run, space)
    if name == "grid":
        return GridSource(run, space)
    if name in ("tpe", "nsga2"):
        # A search that goes on must not draw again what it drew at its start.
        sampler = (tpe if name == "tpe" else nsga2)(run.seed + past, run.tune.trials)
        return OptunaSource(run, space, sampler, len(objectives))
    if name not in PACKAGES:
        raise ConfigError(f"tune.searcher '{name}' is unknown.{suggest(name, ['auto', *OWN, *PACKAGES])}")
    if len(objectives) > 1:
        raise ConfigError(
            f"tune.searcher: {name} takes one objective, tune.objectives has {len(objectives)}; take tpe or nsga2."
        )
    return RaySource(name, run, space)


def population(run: Run, space: Space, past: Iterable[TrialRecord] = ()) -> dict[str, Any]:
    """Tune's `param_space` for `tune.scheduler: pbt`, which takes no searcher: `tune.trials` trials drawn at random.

    Trials of `past` that have ended are left out; those under way go on with the values they had last.
    """
    records = {record.number: record for record in past}
    source = RandomSource(run, space)
    trials = []
    for number in range(run.tune.trials):
        record = records.get(number)
        if record is None or record.status == "running":
            trials.append({"number": number, "values": record.values if record else source.ask(number)})
    return {TRIAL: tune.grid_search(trials)}
