"""Searches and comparisons: many trainings from one config."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_validator

from mtrec_ray.config.part import Duration, Part


class Tune(Part):
    """A search over values of this config: `mtrec tune`."""

    space: dict[str, Any] = {}
    """Dotted path -> distribution, as `train.learning_rate.towers: {loguniform: [1e-4, 1e-2]}`; see `search.space`."""
    trials: PositiveInt = 24
    """The first one has the values of the config itself."""
    searcher: str = "auto"
    """`random`, `grid`, `tpe`, `nsga2`, or one of Ray's by its name; `auto` = `tpe`."""
    objectives: list[str] = Field(default=["auto"], min_length=1)
    """Validation metrics, as `like/auc`; `auto` = `train.metric`. Several give a Pareto front; the first one steers."""
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = "asha"
    """What stops (or, `pbt`, replaces) poor trials before their end."""
    grace: PositiveInt = 1
    """Evaluations before a trial may be stopped; `pbt`: evaluations between two exchanges."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """`asha`, `hyperband`: of how many trials one goes on at a rung."""
    mode: Literal["auto", "distributed", "stacked"] = "auto"
    """`distributed`: each trial is a training job of `cluster.workers`. `stacked`: many trials on one backbone copy."""
    stack: PositiveInt = 8
    """Most trials on one backbone copy."""
    max_concurrent: PositiveInt | None = None
    """Most trials at a time; by default as many as the cluster has room for."""
    time_limit: Duration | None = None
    """No trial starts after this, and running ones end with their next evaluation."""
    accelerator_hours: Annotated[float, Field(gt=0)] | None = None
    """The same for the sum over all trials of GPU hours (CPU hours where `cluster.gpus_per_worker` is 0)."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often a trial may start again from its last checkpoint."""
    select: Literal["best", "knee", "weights", "guard"] = "best"
    """Which trial becomes `best.yaml`: best first objective; knee of the front; best weighted sum; or best first
    objective among those that lose no other objective by more than `guard`."""
    select_weights: dict[str, float] = {}
    guard: Annotated[float, Field(ge=0)] = 0.01
    """Largest loss in another objective, as a share of that objective's best value."""
    retrain: bool = False
    """Train the chosen config as a run of its own afterwards, with test figures and report."""


def _joint(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class JointMethod(Part):
    """One way to learn all tasks together: what `balance` says, and its defaults for what is not given here."""

    method: str
    """Name of a balance method; `sum` is the plain weighted sum."""
    params: dict[str, Any] = {}
    scope: Literal["micro_step", "step"] | None = None
    """`balance.scope` of the config by default."""


class Compare(Part):
    """What `mtrec compare` sets beside each task learned alone."""

    methods: list[Annotated[JointMethod, BeforeValidator(_joint)]] = [JointMethod(method="sum")]
    """Names of balance methods, or mappings as `{method: cagrad, params: {c: 0.2}}`; each is one joint training."""
    variants: dict[str, dict[str, Any]] = {}
    """Further joint trainings: name -> values by dotted path in which the config is another one, as
    `wide: {towers.hidden: [256, 128]}`."""
    seeds: int | list[int] = 3
    """How often everything is trained: so many seeds from the config's `seed` on, or a list of them."""
    metrics: dict[str, str] = {}
    """Task -> the metric that counts, as `rating: mae`; by default the main one of the task's kind."""

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, value: int | list[int]) -> int | list[int]:
        listed = value if isinstance(value, list) else [value - 1]
        if not listed or min(listed) < 0 or len(set(listed)) < len(listed):
            raise ValueError(f"{value} is no number of trainings; give 1 or more, or different seeds as [0, 1, 2]")
        return value
