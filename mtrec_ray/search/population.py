"""Population based training: poor trials take over a good one's weights, with its values a little changed.

Only what may change in the middle of a run is searched with it: a clone goes on from its donor's adapters, towers,
tables and optimizer state, so nothing that shapes these, the order of the data or the schedule can be mutated.
"""

import copy
import fnmatch
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.search.entries import Entry, Values
from mtrec_ray.search.space import Space

MUTABLE = (
    "tasks.*.weight",
    "train.learning_rate.*",
    "train.weight_decay.*",
    "train.clip_norm",
    "adapter.dropout",
    "towers.dropout",
    "features.dropout",
    "features.id_dropout",
)
RESAMPLE = 0.25
"""Share of values that are drawn afresh instead of perturbed, as in Ray's own."""


class Population(PopulationBasedTraining):
    """Ray's scheduler, mutating `config["trial"]["values"]` inside its space; a clone keeps its own number."""

    def __init__(self, run: Run, space: Space, metric: str, mode: str) -> None:
        super().__init__(
            time_attr="evaluation",
            metric=metric,
            mode=mode,
            perturbation_interval=run.tune.grace,
            hyperparam_mutations={"trial": {"values": {path: [] for path in space.paths}}},
        )
        self._space, self._rng = space, np.random.default_rng(run.seed)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of `trial`, from its donor's values. Overridden as Ray's own PB2 does: a custom explore function sees only
        the donor's config, in which the number is the donor's."""
        config = copy.deepcopy(trial_to_clone.config)
        values = mutate(self._space, trial_to_clone.config["trial"]["values"], self._rng)
        config["trial"] = {**config["trial"], "number": trial.config["trial"]["number"], "values": values}
        return config, {}


def mutate(space: Space, values: Values, rng: np.random.Generator) -> Values:
    """Values near `values`: each perturbed inside its distribution, some drawn afresh."""
    drawn = space.sample(rng)

    def moved(entry: Entry) -> Any:
        fresh, value = entry.collect(drawn), entry.collect(values)
        outside = entry.distribution.parameters(entry.name, value) is None
        return fresh if outside or rng.random() < RESAMPLE else entry.distribution.perturb(value, rng)

    return space.build(moved)


def check_population(run: Run, space: Space) -> None:
    """Raises `ConfigError` if the search cannot be one of a population."""
    if run.tune.searcher not in ("auto", "random"):
        raise ConfigError(
            f"tune.scheduler: pbt starts from random values and changes them itself, so tune.searcher: "
            f"{run.tune.searcher} would be ignored; remove it, or take tune.scheduler: asha."
        )
    if run.tune.trials < 2:
        raise ConfigError("tune.scheduler: pbt needs a population; raise tune.trials to at least 2.")
    for entry in space.entries:
        if entry.when:
            raise ConfigError(f"{entry.where}.when: pbt knows no conditions; remove it, or take tune.scheduler: asha.")
        for path in entry.paths:
            if not any(fnmatch.fnmatchcase(path, pattern) for pattern in MUTABLE):
                raise ConfigError(
                    f"{entry.where}: pbt cannot change it in the middle of a run, since a clone goes on with the "
                    f"weights and the schedule of its donor. It can change {', '.join(MUTABLE)}; or take "
                    "tune.scheduler: asha."
                )
