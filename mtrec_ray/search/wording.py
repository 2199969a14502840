"""Figures of a search in words, for its page."""

from collections.abc import Sequence
from typing import Any

from mtrec_ray.evaluate.tables import column_title, metric_title
from mtrec_ray.search.objectives import AUTO


def title(name: str, arrow: bool = False) -> str:
    """`like/auc` -> `like AUC ↑`; `auto` is `train.metric`, as reports have it: higher is better."""
    task, slash, metric = name.partition("/")
    if not slash:
        return "train.metric" + (" ↑" if arrow else "") if name == AUTO else name
    return f"{task} {column_title(metric) if arrow else metric_title(metric)}"


def seconds(value: float | None) -> str:
    """`42 s`, `12.5 min`, `3.2 h`; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:,.1f} h"


def hours(value: float) -> str:
    return f"{value / 3600:,.3g}" if value < 360_000 else f"{value / 3600:,.0f}"


def value_text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sampled_paths(trials: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(path for trial in trials for path in trial["values"]))
