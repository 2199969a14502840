"""Declared as-of aggregates: the numbers that say how a user, an item and their likes have done so far.

    user              running mean, spread and recent residuals of the user's known labels
    item, genres      means of the train rows of the item, or of the values of a category
    running item      how the item has done so far with all users: how often shown, means of its labels
    user * item       the user's earlier events on the same item
    user * genres     the user's earlier events that share a value of the category
    user ~ genres     earlier residuals (label - the item's fitted mean), weighted by likeness of the earlier item to
    user ~ item       the candidate: by category values, by nearness of a number, by fitted item factors; each also
    user ~ year       with weights that fade with the number of events since
    taste genres      the user's residuals regressed on factors of the values, which are alike where the same users
                      like them: what is to be expected of the candidate (not in `auto`)
    taste genres fading 20d   likewise, where tastes drift: an event counts half as much after every 20 days
    ... : like        any of these for some tasks only, as `user ~ genres : like, rating`

Everything about the user, and all that is running, is known strictly before the candidate's time; what is fitted comes
from `Statistics`, which for train rows leave out the user's fold. Training, evaluation and serving call the same
`compute`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtrec_ray.config import Run, parse_duration
from mtrec_ray.data.features.attributes import category_columns, number_columns
from mtrec_ray.data.features.item_past import past_width
from mtrec_ray.data.features.running import Asked, Past, running_features
from mtrec_ray.data.features.signals import Signal, becomes_known, require_feedback
from mtrec_ray.data.features.similarity import (
    Pools,
    category_kernels,
    item_kernels,
    number_kernels,
    pooled_features,
    same_item_kernel,
)
from mtrec_ray.data.features.statistics import PRIOR_WEIGHT, Statistics
from mtrec_ray.data.features.tastes import taste_features
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest

Array = np.ndarray[Any, np.dtype[Any]]

_PATTERN = re.compile(r"\s*([^*~:]+?)\s*(?:([*~])\s*([^*~:]+?)\s*)?(?::(.+))?")
_FADING = re.compile(r"(taste .+?|[^ ]+) fading\s+(\S+)")


@dataclass(frozen=True)
class Aggregate:
    """One declared aggregate. `kind`: `user`, `item`, `running`, `category`, `taste`; about earlier events `*`, `~`."""

    kind: str
    of: str
    """What the kind is about: `item`, a category's column or a number's feature; empty for `user`"""
    tasks: tuple[str, ...]
    fading: str = ""
    """Of a taste that fades: the half-life as declared, e.g. `20d`"""

    @property
    def half_life(self) -> float:
        """Microseconds; `inf`: nothing fades."""
        return 1e6 * parse_duration(self.fading) if self.fading else math.inf

    @property
    def name(self) -> str:
        if self.kind == "taste" and self.fading:
            return f"taste {self.of} fading {self.fading}"
        if self.kind in ("running", "taste"):
            return f"{self.kind} {self.of}"
        return f"user {self.kind} {self.of}" if self.kind in "*~" else self.of or "user"


def declared(run: Run) -> list[Aggregate]:
    """The aggregates of `features.aggregates`; `auto` = all that the run's categories and numbers allow.

    Raises:
        ConfigError: a declaration that cannot be read, or that names no category, number or task of the run.
    """
    texts = run.features.aggregates
    if texts == "auto":
        categories, numbers = _known(run)
        texts = ["user", "item", "running item", *categories]
        texts += [f"user ~ {name}" for name in ["item", *categories, *numbers]]
        if run.data.layout == "behaviours":
            texts.append("user * item")
    return [parse(text, run, f"features.aggregates[{i}]") for i, text in enumerate(texts)]


def asks_factors(run: Run) -> bool:
    """Whether an aggregate reads the factors of items."""
    return any(aggregate.kind == "~" and aggregate.of == "item" for aggregate in declared(run))


def parse(text: str, run: Run, where: str = "features.aggregates") -> Aggregate:
    """One declaration, as `user ~ genres : like`. Raises `ConfigError`."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ConfigError(f"{where}: cannot read '{text}'. Write e.g. 'user', 'item', 'user * item', 'user ~ genres'.")
    left, operator, right, tasks = match.groups()
    chosen = tuple(part.strip() for part in tasks.split(",")) if tasks else tuple(run.tasks)
    for task in chosen:
        if task not in run.tasks:
            raise ConfigError(f"{where}: '{text}' names no task '{task}'.{suggest(task, run.tasks)}")
        if tasks and not run.tasks[task].labelled:
            raise ConfigError(f"{where}: '{text}' names task '{task}', which has no label to aggregate; leave it out.")
        if tasks and not becomes_known(run.tasks[task]):
            raise ConfigError(
                f"{where}: '{text}' names task '{task}', whose feedback is never known: give it tasks.{task}."
                "feedback_delay or feedback_time, or leave it out."
            )
    categories, numbers = _known(run)
    fading = _FADING.fullmatch(left)
    if fading is not None and operator is None:
        taste = parse(fading[1], run, where)
        if taste.kind != "taste":
            raise ConfigError(f"{where}: '{text}': of the aggregates only `taste` can fade by time.")
        return replace(taste, tasks=chosen, fading=_checked_half_life(fading[2], f"{where}: '{text}'"))
    if operator is None:
        known = {"user": "user", "item": "item", "running item": "running", **dict.fromkeys(categories, "category")}
        known |= {f"taste {name}": "taste" for name in categories}
        if left not in known:
            raise ConfigError(
                f"{where}: '{left}' is neither user, item, running item nor a category.{suggest(left, known)}"
            )
        if known[left] == "taste":
            require_feedback(run, f"{where}: '{text}'")
        return Aggregate(known[left], "" if left == "user" else left.removeprefix(f"{known[left]} "), chosen)
    if left != "user":
        raise ConfigError(f"{where}: '{text}': the left side of {operator} must be 'user', found '{left}'.")
    allowed = ["item", *categories, *(numbers if operator == "~" else [])]
    if right not in allowed:
        raise ConfigError(f"{where}: '{text}': nothing is called '{right}' here.{suggest(right, allowed)}")
    return Aggregate(operator, right, chosen)


def _checked_half_life(text: str, where: str) -> str:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"{where}: the half-life {error}") from error
    if seconds <= 0:
        raise ConfigError(f"{where}: the half-life must be more than 0, found '{text}'.")
    return text


def compute(
    aggregates: Sequence[Aggregate], past: Past, asked: Asked, statistics: Statistics, signals: Sequence[Signal]
) -> dict[str, Array]:
    """Features of C candidates of one user: name -> float [C], NaN = missing, in the order of declaration."""
    features: dict[str, Array] = {}
    pools = Pools(past, asked, statistics)
    for aggregate in aggregates:
        chosen = [s for s, signal in enumerate(signals) if signal.task in aggregate.tasks]
        features.update(_one(aggregate, pools, statistics, signals, chosen))
    return features


def feature_names(aggregates: Sequence[Aggregate], signals: Sequence[Signal], categories: Sequence[str]) -> list[str]:
    """Names of the features of `compute`, in its order."""
    past, asked, statistics = _nothing(aggregates, signals, categories)
    return list(compute(aggregates, past, asked, statistics, signals))


def _one(
    aggregate: Aggregate, pools: Pools, statistics: Statistics, signals: Sequence[Signal], chosen: list[int]
) -> dict[str, Array]:
    name, past, asked = aggregate.name, pools.past, pools.asked
    if aggregate.kind == "user":
        return running_features(past, asked, statistics, signals, chosen)
    if aggregate.kind == "item":
        return _fitted_item(asked, statistics, signals, chosen)
    if aggregate.kind == "running":
        return _running_item(asked, statistics, signals, chosen)
    if aggregate.kind == "taste":
        of, half_life = aggregate.of, aggregate.half_life
        return taste_features(name, of, half_life, past, asked, statistics, signals, chosen)
    if aggregate.kind == "category":
        means = category_means(statistics.categories[aggregate.of], asked.categories[aggregate.of])
        return {f"{name}.{signals[s].name}.mean": means[:, s] for s in chosen}
    if aggregate.kind == "*":
        if aggregate.of == "item":
            kernels = same_item_kernel(past, asked)
        else:
            kernels = category_kernels(past, asked, aggregate.of, shared=True)
        return pooled_features(name, kernels, pools, signals, chosen, fading=False)
    if aggregate.of == "item":
        kernels = item_kernels(past, asked, statistics, signals, chosen)
    elif aggregate.of in asked.categories:
        kernels = category_kernels(past, asked, aggregate.of, shared=False)
    else:
        kernels = number_kernels(past, asked, aggregate.of, statistics.scales[aggregate.of])
    return pooled_features(name, kernels, pools, signals, chosen, fading=True)


def _fitted_item(
    asked: Asked, statistics: Statistics, signals: Sequence[Signal], chosen: list[int]
) -> dict[str, Array]:
    features = {"item.shown": np.log1p(statistics.shown[asked.item])}
    for s in chosen:
        features[f"item.{signals[s].name}.mean"] = statistics.mean[asked.item, s]
        if not signals[s].binary:
            features[f"item.{signals[s].name}.std"] = statistics.std[asked.item, s]
    return features


def _running_item(
    asked: Asked, statistics: Statistics, signals: Sequence[Signal], chosen: list[int]
) -> dict[str, Array]:
    """`residual`: the mean of (label - its user's level at that time), drawn towards 0 as by 5 labels without one."""
    shown = asked.item_past[:, 1]
    value, weight, a, b = np.split(asked.item_past[:, 2:], 4, axis=1)
    prior = statistics.prior
    mean = (value + PRIOR_WEIGHT * prior) / (weight + PRIOR_WEIGHT)
    residual = (value - a - prior * b) / (weight + PRIOR_WEIGHT)
    features = {
        "running item.shown": np.log1p(shown),
    }
    for s in chosen:
        features[f"running item.{signals[s].name}.mean"] = mean[:, s]
        features[f"running item.{signals[s].name}.residual"] = residual[:, s]
    return features


def category_means(table: Array, rows: Array) -> Array:
    """float64 [C, S]: mean over each candidate's values of the rows [C, w] of a table [V, S]; 0 without values."""
    present = rows > 0
    total = (table[np.maximum(rows, 0)] * present[:, :, None]).sum(axis=1)
    return total / np.maximum(present.sum(axis=1), 1)[:, None]


def _known(run: Run) -> tuple[list[str], list[str]]:
    categories = [c.column for scope, c in category_columns(run) if scope != "user"]
    return categories, [n.feature for scope, n in number_columns(run) if scope != "user"]


def _nothing(
    aggregates: Sequence[Aggregate], signals: Sequence[Signal], categories: Sequence[str]
) -> tuple[Past, Asked, Statistics]:
    """A user without events who is asked nothing, from which the names of the features are read off."""
    none, width = np.zeros(0, dtype=np.int64), len(signals)
    codes = {name: np.zeros((0, 1), dtype=np.int64) for name in categories}
    numbers = {a.of: np.zeros(0) for a in aggregates if a.kind == "~" and a.of not in categories}
    row = np.zeros((1, width))
    statistics = Statistics(
        prior=row[0],
        spread=row[0],
        shown=np.zeros(1),
        count=row,
        mean=row,
        std=row,
        categories=dict.fromkeys(categories, row),
        factors={name: np.zeros((1, 1), np.float32) for name in ["shown", *(s.name for s in signals)]},
        scales=dict.fromkeys(numbers, 1.0),
        value_factors=dict.fromkeys(categories, np.zeros((1, 1), np.float32)),
    )
    past = Past(none, none, none, np.zeros((0, width)), np.zeros((0, width)), codes, numbers)
    item_past = np.zeros((0, past_width(width)))
    return past, Asked(none, none, none, none, 0, codes, numbers, item_past), statistics
