"""Where the values of the next trial come from: at random, from a grid, or from Optuna's samplers.

A source answers `ask(number)` and is told what came of it; it knows nothing of Ray. Trial 0 always has the values of
the config itself, so that a search is never worse than its default, even where they lie outside the space (a sampler
then learns nothing from them). Random and grid values depend on the seed and the trial's number only; what Optuna
proposes depends, beside its seed, on which trials it has been told of.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import Trial, TrialState

from mtrec_ray.config import Run
from mtrec_ray.search.entries import Values
from mtrec_ray.search.space import Space

STARTUP = 10
"""Trials drawn at random before TPE models anything, at most; of a short search a quarter."""
GENERATIONS = 8
"""NSGA-II: into how many generations a short search is cut, instead of Optuna's populations of 50."""


class Exhausted(Exception):  # noqa: N818
    """A source has no more values to propose."""


class Source(Protocol):
    """Proposes values and learns from results; picklable."""

    def ask(self, number: int) -> Values | None:
        """Values of trial `number`; None = none as yet. Raises `Exhausted`."""
        ...

    def tell(self, number: int, result: Sequence[float] | None) -> None:
        """The objectives that a trial came to, higher is better; None = it failed."""
        ...

    def learn(self, number: int, values: Values, result: Sequence[float] | None) -> None:
        """The same of a trial that was asked of an earlier source; with None it is under way, to be told of later."""
        ...


class RandomSource:
    """Independent draws; those of a number do not depend on any other."""

    def __init__(self, run: Run, space: Space) -> None:
        self._space, self._own, self._seed = space, space.default(run), run.seed

    def ask(self, number: int) -> Values:
        return self._own if number == 0 else self._space.sample(np.random.default_rng((self._seed, number)))

    def tell(self, number: int, result: Sequence[float] | None) -> None:
        pass

    def learn(self, number: int, values: Values, result: Sequence[float] | None) -> None:
        pass


class GridSource:
    """All combinations, in order, after the config's own values."""

    def __init__(self, run: Run, space: Space) -> None:
        own = space.default(run)
        self.points = [own, *(values for values in space.grid() if values != own)]

    def ask(self, number: int) -> Values:
        return self.points[number]

    def tell(self, number: int, result: Sequence[float] | None) -> None:
        pass

    def learn(self, number: int, values: Values, result: Sequence[float] | None) -> None:
        pass


class OptunaSource:
    """A sampler of Optuna by ask and tell.

    Not `ray.tune.search.optuna.OptunaSearch`: that tells the last value of a trial rather than its best, reports
    values on the way that no sampler here uses, and takes no past trials where a space has conditions.
    """

    def __init__(self, run: Run, space: Space, sampler: BaseSampler, objectives: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._own = space, space.default(run)
        self._study = optuna.create_study(sampler=sampler, directions=["maximize"] * objectives)
        self._open: dict[int, Trial] = {}

    def ask(self, number: int) -> Values:
        if number > 0:
            self._open[number] = self._study.ask()
            return self._space.suggest(self._open[number])
        self._replay(0, self._own)
        return self._own

    def tell(self, number: int, result: Sequence[float] | None) -> None:
        trial = self._open.pop(number, None)
        if trial is not None and result is not None:
            self._study.tell(trial, list(result))
        elif trial is not None:
            self._study.tell(trial, state=TrialState.FAIL)

    def learn(self, number: int, values: Values, result: Sequence[float] | None) -> None:
        self._replay(number, values)
        if result is not None:
            self.tell(number, result)

    def _replay(self, number: int, values: Values) -> None:
        """Opens a trial with these values, if they are of the space."""
        parameters = self._space.parameters(values)
        if parameters is not None:
            self._study.enqueue_trial(parameters)
            self._open[number] = self._study.ask()
            self._space.suggest(self._open[number])


def tpe(seed: int, trials: int) -> BaseSampler:
    """Tree-structured Parzen estimator, over all parameters jointly; with several objectives its form for these.

    Trials that are running count as poor ones nearby, so that trials at a time do not repeat each other. Source:
    arXiv 2304.11127, and doi 10.1613/jair.1.13188 for several objectives.
    """
    return TPESampler(seed=seed, n_startup_trials=max(2, min(STARTUP, trials // 4)), multivariate=True)


def nsga2(seed: int, trials: int) -> BaseSampler:
    """NSGA-II (Deb 2002) with populations that a search of this length can afford several of."""
    return NSGAIISampler(seed=seed, population_size=int(np.clip(trials // GENERATIONS, 4, 50)))
