"""Ray Tune's searchers that come with other packages, as a source of values.

They see every parameter of the space as a number in [0, 1], or as a position among choices, so that what they search
does not depend on which distributions each of them knows.
"""

import importlib.util
import inspect
from collections.abc import Callable, Sequence

from ray import tune
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.search.distributions import between
from mtrec_ray.search.entries import Values
from mtrec_ray.search.sources import Exhausted
from mtrec_ray.search.space import Space

PACKAGES = {
    "bayesopt": ("bayes_opt", "bayesian-optimization==1.4.3"),
    "hyperopt": ("hyperopt", "hyperopt"),
}
"""Ray's short name -> module, and package to install: those that were tried with this version of Ray. `bohb` wants a
scheduler of its own; the state of `nevergrad` cannot be saved, so that a search could not go on."""
SEEDS = ("seed", "random_state_seed", "random_state")
METRIC = "objective"


class RaySource:
    """One of Ray's searchers, with one objective and a space without conditions.

    Trial 0 and the trials of an earlier start are not told to it, since not all of these searchers can be told.

    Raises:
        ConfigError: the package is not installed, or the space has conditions.
    """

    def __init__(self, name: str, run: Run, space: Space) -> None:
        module, package = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"tune.searcher: {name} needs a package that is not installed: `pip install {package}`.")
        if any(entry.when for entry in space.entries):
            raise ConfigError(f"tune.searcher: {name} knows no conditions (`when` in tune.space); take tpe or random.")
        self._space, self._own = space, space.default(run)
        self._plan = _Plan()
        space.suggest(self._plan)
        try:
            self._searcher = _searcher(name, run)
        except (ImportError, AttributeError, AssertionError) as error:
            raise ConfigError(
                f"tune.searcher: {name}: Ray cannot use the package as it is installed ({error}): "
                f"`pip install {package}`."
            ) from error
        domains = {
            f"p{i}": tune.choice(list(range(size))) if size and name != "bayesopt" else tune.uniform(0.0, 1.0)
            for i, size in enumerate(self._plan.sizes.values())
        }
        self._searcher.set_search_properties(METRIC, "max", domains)

    def ask(self, number: int) -> Values | None:
        if number == 0:
            return self._own
        found = self._searcher.suggest(str(number))
        if found is None:
            return None
        if found == Searcher.FINISHED:
            raise Exhausted
        answers = {name: found[f"p{i}"] for i, name in enumerate(self._plan.sizes)}
        return self._space.suggest(_Answers(answers))

    def tell(self, number: int, result: Sequence[float] | None) -> None:
        if number > 0:
            report = {METRIC: result[0], "training_iteration": 1} if result else None
            self._searcher.on_trial_complete(str(number), report, error=result is None)

    def learn(self, number: int, values: Values, result: Sequence[float] | None) -> None:
        pass


def _searcher(name: str, run: Run) -> Searcher:
    kind: Callable[..., Searcher] = SEARCH_ALG_IMPORT[name]()
    known = inspect.signature(kind).parameters
    return kind(**{key: run.seed for key in SEEDS if key in known})


class _Plan:
    """Notes which parameters a space asks for: name -> number of choices, 0 for a number."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.sizes[name] = 0
        return low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.sizes[name] = 0
        return low

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> int:
        self.sizes[name] = len(choices)
        return choices[0]


class _Answers:
    """Answers with shares of ranges and positions of choices that are known."""

    def __init__(self, shares: dict[str, float]) -> None:
        self._shares = shares

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return min(max(float(between(low, high, self._shares[name], log)), low), high)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return min(max(round(between(low - 0.5, high + 0.5, self._shares[name], log)), low), high)

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> int:
        share = self._shares[name]
        return choices[share if isinstance(share, int) else min(int(share * len(choices)), len(choices) - 1)]
