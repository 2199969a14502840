"""Which trial of a search becomes `best.yaml`, and why, in one sentence that a reader can check.

Chosen is among the trials that finished or were stopped with a value for every objective: a stopped one was good enough
up to there, and a search that ends by its time limit has no others. Equal ones: the finished, then the earlier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.config import Tune
from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.evaluate.tables import number
from mtrec_ray.search import pareto
from mtrec_ray.search.objectives import Objective
from mtrec_ray.search.records import TrialRecord
from mtrec_ray.search.wording import title


@dataclass(frozen=True)
class Selection:
    """The chosen trial."""

    record: TrialRecord
    rule: str
    """`best`, `knee`, `weights` or `guard`."""
    reason: str
    """One sentence."""


@dataclass(frozen=True)
class _Field:
    """The candidates: values [N, M] in their units and gain [N, M] where higher is better."""

    records: list[TrialRecord]
    values: np.ndarray
    gain: np.ndarray
    objectives: Sequence[Objective]
    tune: Tune


def check(tune: Tune) -> None:
    """Before the first trial. Raises `ConfigError`: `select: weights` without a usable weight for every objective."""
    if tune.select != "weights":
        return
    names = tune.objectives
    if tune.select_weights.keys() != set(names):
        raise ConfigError(
            f"tune.select: weights needs tune.select_weights for exactly the objectives {', '.join(names)}; found "
            f"{', '.join(tune.select_weights) or 'none'}."
        )
    if min(tune.select_weights.values()) < 0 or not any(tune.select_weights.values()):
        raise ConfigError(
            f"tune.select_weights is {tune.select_weights}: expected weights of at least 0, not all 0. Where lower is "
            "better the sign is taken care of."
        )


def candidates(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """The trials that count: ended without failing, with a value for every objective. The finished first."""
    ended = [record for record in records if record.status in ("finished", "stopped")]
    complete = np.isfinite(pareto.best_values(ended, objectives)).all(axis=1)
    kept = [record for record, whole in zip(ended, complete, strict=True) if whole]
    return sorted(kept, key=lambda record: (record.status != "finished", record.number))


def select(records: Sequence[TrialRecord], objectives: Sequence[Objective], tune: Tune) -> Selection:
    """The trial that `tune.select` asks for.

    Raises:
        UserError: no trial counts; with the first error of those that failed.
        ConfigError: as `check`.
    """
    check(tune)
    kept = candidates(records, objectives)
    if not kept:
        raise UserError(_nothing(records, objectives))
    values = pareto.best_values(kept, objectives)
    field = _Field(kept, values, values * pareto.signs(objectives), objectives, tune)
    chosen, reason = _RULES[tune.select](field)
    return Selection(kept[chosen], tune.select, f"Trial {kept[chosen].number} {reason}{_early(kept[chosen])}.")


def _best(field: _Field) -> tuple[int, str]:
    chosen = int(np.argmax(field.gain[:, 0]))
    return chosen, f"has the best {_told(field, chosen, 0)} of {_trials(len(field.records))}"


def _knee(field: _Field) -> tuple[int, str]:
    """Largest distance to the plane through the ends of the front, objectives scaled to the front's range.

    Das 1999, "On characterizing the 'knee' of the Pareto curve based on normal-boundary intersection".
    """
    front = np.flatnonzero(pareto.non_dominated(field.values, pareto.signs(field.objectives)))
    low, high = field.gain[front].min(axis=0), field.gain[front].max(axis=0)
    scaled = (field.gain[front] - low) / np.where(high > low, high - low, 1)
    distance = _beyond_plane(scaled)
    order = np.lexsort((-scaled[:, 0], -distance.round(12)))
    chosen, away = int(front[order[0]]), distance[order[0]]
    count = f"the {len(front)} trials that no other beats in everything"
    if len(front) == 1:
        return chosen, "is at least as good as every other in each objective, so there is no trade-off to settle"
    if away <= 1e-12:
        return chosen, f"has the best {_told(field, chosen, 0)} of {count}; the front has no knee"
    return chosen, (
        f"is the knee of {count}: it lies {away:.2f} beyond the straight trade-off between their ends (objectives "
        f"scaled to the front's range), with {_all(field, chosen)}"
    )


def _beyond_plane(scaled: np.ndarray) -> np.ndarray:
    """Signed distance [F] of the rows [F, M] from the plane through the best row of each objective.

    Where those ends do not span a plane that falls in every objective (one row is best in two, say), it is the plane
    through the unit points, which for two objectives is the same.
    """
    ends = scaled[[int(np.lexsort((-scaled.sum(axis=1), -scaled[:, m]))[0]) for m in range(scaled.shape[1])]]
    normal = np.ones(scaled.shape[1])
    if np.linalg.matrix_rank(ends) == len(ends):
        through_ends = np.linalg.solve(ends, normal)
        normal = through_ends if (through_ends > 0).all() else normal
    away: np.ndarray = (scaled @ normal - 1) / np.linalg.norm(normal)
    return away


def _weights(field: _Field) -> tuple[int, str]:
    """Weights are rates of exchange between the objectives in their own units, whatever trials there are."""
    weights = np.array([field.tune.select_weights[name] for name in field.tune.objectives])
    chosen = int(np.argmax(field.gain @ weights))
    terms = " + ".join(
        f"{weight:g} × {title(o.name)}"
        for weight, o in zip(weights * pareto.signs(field.objectives), field.objectives, strict=True)
    )
    return chosen, f"has the best {terms} of {_trials(len(field.records))}, with {_all(field, chosen)}"


def _guard(field: _Field) -> tuple[int, str]:
    best = field.gain.max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(field.gain == best, 0.0, (best - field.gain) / np.abs(best))[:, 1:]
    worst = lost.max(axis=1, initial=0.0)
    within = worst <= field.tune.guard
    if not within.any():
        chosen = int(np.argmin(worst))
        return chosen, (
            f"loses least in its worst other objective, {worst[chosen]:.1%} of the best: every trial loses more than "
            f"the guard of {field.tune.guard:.1%} somewhere; with {_all(field, chosen)}"
        )
    chosen = int(np.argmax(np.where(within, field.gain[:, 0], -np.inf)))
    return chosen, (
        f"has the best {_told(field, chosen, 0)} of the {_trials(int(within.sum()))} losing at most "
        f"{field.tune.guard:.1%} of the best value in every other objective (it loses {worst[chosen]:.1%})"
    )


_RULES: dict[str, Callable[[_Field], tuple[int, str]]] = {
    "best": _best,
    "knee": _knee,
    "weights": _weights,
    "guard": _guard,
}


def _told(field: _Field, row: int, objective: int) -> str:
    return f"{title(field.objectives[objective].name)} ({number(field.values[row, objective])})"


def _all(field: _Field, row: int) -> str:
    told = (f"{title(o.name)} {number(field.values[row, m])}" for m, o in enumerate(field.objectives))
    return ", ".join(told)


def _trials(count: int) -> str:
    return f"{count} {'trial' if count == 1 else 'trials'}"


def _early(record: TrialRecord) -> str:
    return "" if record.status == "finished" else f"; it was stopped early, after evaluation {record.evaluations}"


def _nothing(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> str:
    names = ", ".join(title(objective.name) for objective in objectives)
    failed = [record for record in records if record.status == "failed"]
    if failed:
        return (
            f"No trial of {len(records)} came to an end with a value for {names}; {len(failed)} failed, the first one "
            f"(trial {failed[0].number}) with: {failed[0].error}"
        )
    return (
        f"No trial of {len(records)} came to an end with a value for {names}. `mtrec tune --resume` goes on with them."
    )
