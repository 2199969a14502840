"""The report's tables as plain values: cells with their intervals, the best one marked, verdicts in words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mtrec_ray.evaluate import metrics
from mtrec_ray.evaluate.comparison import Entry
from mtrec_ray.evaluate.judged import base_name

MODEL = "this model"
TITLES = {
    "constant": "constant",
    "popularity": "popularity",
    "running_rates": "running rates",
    "gbdt": "gradient-boosted trees",
    "side_features": "side features only",
}
METRICS = {
    "auc": ("AUC", "chance that a random positive is scored above a random negative; 0.5 is guessing"),
    "gauc": ("GAUC", "AUC within each user, weighted by rows, over the users who have both classes"),
    "logloss": ("log loss", "mean cross-entropy in nats: how good the scores are as probabilities"),
    "ne": ("NE", "log loss / log loss of always saying the train base rate; below 1 something was learned"),
    "calibration": ("Σ score / Σ label", "1 is right on average, above 1 promises too much"),
    "rmse": ("RMSE", "root mean squared error, in the label's unit"),
    "mae": ("MAE", "mean absolute error, in the label's unit"),
    "accuracy": ("accuracy", "share of rows whose likeliest class is the true one"),
    "rank_mae": ("rank error", "classes between the label and the median of the predicted distribution; a mean"),
    "cvr_auc": ("CVR AUC", "AUC of score / parent's score, on the rows whose parent happened"),
    "cvr_logloss": ("CVR log loss", "log loss of score / parent's score, on the rows whose parent happened"),
    "ndcg": ("NDCG", "how near the positives stand to the top of their list; 1 is the best order"),
    "mrr": ("MRR", "1 / rank of the first positive of a list"),
    "recall": ("recall", "share of the positives that stand in the head of their list"),
    "ild": ("ILD", "how unlike the items in the head of a list are, by their categories; 1 is nothing in common"),
    "novelty": ("novelty", "−log2 of the item's share of the train rows, in bits, a mean over the head of a list"),
    "coverage": ("coverage", "share of all items shown that stand in the head of some list"),
}
"""By base name title and one line of help; a guest's metric stands under its own name. A list is what was shown
together, or, of tasks that match users with items, one positive among all items of its time."""


@dataclass(frozen=True)
class Cell:
    """One figure: `text`, `interval` or the reason why there is none in `note`; `best` in its column."""

    text: str
    interval: str = ""
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Verdict:
    """The paired difference to a baseline: `tone` is `better`, `worse` or `even` (the interval holds 0)."""

    metric: str
    value: str
    interval: str
    against: str
    tone: str


def metric_title(name: str) -> str:
    """`NDCG@10` of `ndcg@10`."""
    base = base_name(name)
    return METRICS[base][0] + name.removeprefix(base) if base in METRICS else name


def metric_help(names: Iterable[str]) -> list[tuple[str, str]]:
    """Title and one line of help of those that have one, in the order of `METRICS`."""
    wanted = {base_name(name) for name in names}
    return [text for base, text in METRICS.items() if base in wanted]


def column_title(name: str) -> str:
    """The title with an arrow to where better is, if anywhere."""
    arrow = {1: " ↑", -1: " ↓"}.get(metrics.direction(name), "")
    return metric_title(name) + arrow


def baseline_title(name: str) -> str:
    return TITLES.get(name, name)


def comparison_rows(names: tuple[str, ...], model: Entry, others: dict[str, Entry]) -> list[tuple[str, list[Cell]]]:
    """One row per score column: the model, then the baselines; one cell per metric."""
    entries = {MODEL: model} | {baseline_title(name): entry for name, entry in others.items()}
    best = {name: _best(name, list(entries.values())) for name in names}
    return [
        (title, [_cell(name, entry, entry[name] is not None and entry[name] == best[name]) for name in names])
        for title, entry in entries.items()
    ]


def references(names: tuple[str, ...], model: Entry) -> dict[str, str]:
    """The best baseline by each metric that ranks, which verdicts compare with; none where no baseline has the metric.

    Best on the rows that are judged: of all baselines that could be named, no other leaves the model a smaller lead.
    So the choice makes a model look worse by the luck of the luckiest baseline, and never better.
    """
    best = {}
    for name in names:
        direction = metrics.direction(name)
        leads = {
            baseline: direction * found[name]["value"]
            for baseline, found in model["difference"].items()
            if name in found
        }
        if direction and leads:
            best[name] = min(leads, key=lambda baseline: leads[baseline])
    return best


def verdicts(against: Mapping[str, str], model: Entry) -> list[Verdict]:
    """Per metric in `against`, the difference to the baseline named there; `model`: the entry of all rows, or of a
    slice, which may not define it."""
    return [
        _verdict(name, model["difference"][baseline][name], baseline)
        for name, baseline in against.items()
        if name in model["difference"][baseline]
    ]


def slice_rows(names: tuple[str, ...], model: Entry) -> list[dict[str, Any]]:
    """Per slice: rows, positives, the model's figures, and the verdicts on them, against the best baselines of all
    rows."""
    against = references(names, model)
    return [
        {
            "title": title,
            "rows": f"{entry['n']:,}",
            "positives": f"{entry['positives']:,}" if "positives" in entry else "",
            "cells": [_cell(name, entry, False) for name in names],
            "verdicts": {verdict.metric: verdict for verdict in verdicts(against, entry)},
        }
        for title, entry in model["slices"].items()
    ]


def number(value: float, signed: bool = False) -> str:
    """Four decimals for shares, four significant digits for larger values."""
    digits = 4 if abs(value) < 10 else 2 if abs(value) < 1000 else 0
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def _cell(name: str, entry: Entry, best: bool) -> Cell:
    if entry[name] is None:
        return Cell("–", note=entry["undefined"][name])
    return Cell(number(entry[name]), _interval(entry["intervals"][name]), best=best)


def _interval(interval: Any, signed: bool = False) -> str:
    """Empty where there is none, or where it is a point, as the AUC of a constant."""
    low, high = (number(end, signed) for end in interval or (0, 0))
    return f"{low} … {high}" if low != high else ""


def _best(name: str, entries: list[Entry]) -> float | None:
    """The best value of a metric that ranks; none to mark where nothing competes."""
    values = [entry[name] for entry in entries if entry[name] is not None]
    direction = metrics.direction(name)
    return max(values, key=lambda value: direction * value) if direction and len(values) > 1 else None


def _verdict(name: str, difference: dict[str, Any], reference: str) -> Verdict:
    interval, direction = difference["interval"], metrics.direction(name)
    tone = "even"
    if interval and (interval[0] > 0 or interval[1] < 0):
        tone = "better" if difference["value"] * direction > 0 else "worse"
    return Verdict(
        metric_title(name),
        number(difference["value"], signed=True),
        _interval(interval, signed=True),
        baseline_title(reference),
        tone,
    )
