"""Who is judged how: areas under the ROC curve of the truth, the ideal observer and the floors on the test rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from mtrec_ray.data.sample import floors
from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.observer import Sees, predict
from mtrec_ray.data.sample.population import Array
from mtrec_ray.data.sample.scenario import Stage
from mtrec_ray.data.sample.simulate import World
from mtrec_ray.errors import ConfigError
from mtrec_ray.progress import track

BLIND = {"text": Sees(text=False), "ids": Sees(ids=False), "history": Sees(history=False)}
"""The observer without one of its senses."""


@dataclass(frozen=True)
class Figures:
    """Of one binary task, on its test rows; bots are not judged."""

    rows: int
    positives: int
    oracle: tuple[float, float]
    """AUC and GAUC of the true probabilities"""
    observer: tuple[float, float]
    random: tuple[float, float]
    """AUC of the truth and of the observer on the test rows that were drawn uniformly"""
    floors: dict[str, float]
    """AUC of each"""
    worth: dict[str, float]
    """AUC that the observer loses without text, ids, history; empty if not asked for"""

    @property
    def best_floor(self) -> str:
        return max(self.floors, key=self.floors.__getitem__)

    @property
    def gap(self) -> float:
        """What history, text and ids are worth beyond the best simple floor."""
        return self.observer[0] - self.floors[self.best_floor]


def judge(
    world: World, log: Exposures, truth: Truth, worth: bool = False
) -> tuple[dict[str, Figures], dict[str, Array]]:
    """Figures of each stage, and the observer's probabilities [N].

    Raises:
        ConfigError: a stage without labels of both classes in one of the periods.
    """
    looks = {"": Sees(), **(BLIND if worth else {})}
    predicted: dict[str, dict[str, Array]] = {}
    found = {}
    with track("Judging", len(looks) + len(world.scenario.stages), "steps") as bar:
        for name, sees in looks.items():
            predicted[name] = predict(world.scenario, world.size, world.items, world.users, log, sees)
            bar.advance()
        for stage in world.scenario.stages:
            found[stage.name] = _figures(world, log, truth, stage, predicted)
            bar.advance()
    return found, predicted[""]


def _figures(
    world: World, log: Exposures, truth: Truth, stage: Stage, predicted: Mapping[str, Mapping[str, Array]]
) -> Figures:
    """`predicted`: by the sense that the observer lacks, "" = none, and by stage, probabilities [N]."""
    scenario, items, users = world.scenario, world.items, world.users
    rows = floors.Periods.of(log, scenario, stage, world.size, truth.bot)
    _check_classes(stage.name, log.labels[stage.name], rows)
    test = rows.test
    label, user = log.labels[stage.name][test], log.user[test]
    real, drawn = truth.probability[stage.name][test], log.random[test]
    own = predicted[""][stage.name][test]
    simple = floors.scores(scenario, items, users, log, stage, rows)
    area = auc(label, own)
    return Figures(
        rows=len(label),
        positives=int(label.sum()),
        oracle=(auc(label, real), gauc(label, real, user)),
        observer=(area, gauc(label, own, user)),
        random=(auc(label[drawn], real[drawn]), auc(label[drawn], own[drawn])),
        floors={name: auc(label, score) for name, score in simple.items()},
        worth={name: area - auc(label, blind[stage.name][test]) for name, blind in predicted.items() if name},
    )


def _check_classes(task: str, labels: Array, rows: floors.Periods) -> None:
    for period, mask in vars(rows).items():
        ones, count = int(labels[mask].sum()), int(mask.sum())
        if not 0 < ones < count:
            raise ConfigError(
                f"Task '{task}' has {ones} ones among {count} labels of its {period} rows: too few. Give "
                "more users or days, or --no-figures."
            )


def auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve, ties half; NaN with one class only."""
    ones = labels > 0
    pairs = float(ones.sum()) * float((~ones).sum())
    if pairs == 0:
        return float("nan")
    return float((rankdata(scores)[ones].sum() - ones.sum() * (ones.sum() + 1) / 2) / pairs)


def gauc(labels: Array, scores: Array, users: Array) -> float:
    """Mean of the users' own AUC, weighted by rows, over users with both classes (Zhu et al. 2017, section 4.1)."""
    order = np.argsort(users, kind="stable")
    edges = np.flatnonzero(np.diff(users[order])) + 1
    groups = np.split(order, edges)
    areas = np.array([auc(labels[group], scores[group]) for group in groups])
    rows = np.array([len(group) for group in groups], dtype=float)
    mixed = ~np.isnan(areas)
    return float(np.average(areas[mixed], weights=rows[mixed])) if mixed.any() else float("nan")
