"""The drawings of the profile, as the report's template shows them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mtrec_ray.check.profile import OverTime, Profile
from mtrec_ray.evaluate.figures import COLOURS, SERIES
from mtrec_ray.evaluate.page import Pen, counted

_BARS = 30


def drawings(found: Profile, pen: Pen) -> list[dict[str, Any]]:
    """Rates first, then what comes and goes, then lengths and delays."""
    spans = f"Spans of {counted(found.over_time.days, 'day', 'days')}, UTC."
    shown = [_rates(found.over_time, task, spans, pen) for task in found.over_time.rates]
    time = found.over_time
    for what, present, new in (("users", time.users, time.new_users), ("items", time.items, time.new_items)):
        lines = {f"{what} seen": present, f"new {what}": new}
        shown.append(pen.draw(_lines(time, lines, what), f"{what.capitalize()} over time", spans))
    shown.append(
        pen.draw(
            _bars(found.history, "events"), "Length of the history", "Events of its user that a candidate may see."
        )
    )
    shown.append(pen.draw(_bars(found.shown, "candidates"), "Candidates per request", "Rows that were shown together."))
    for task, delay in found.delays.items():
        caption = f"From the row to its feedback; median {np.median(delay):,.0f} s. Feedback at once counts as 1 s."
        shown.append(pen.draw(_delays(delay), f"Delay of {task}", caption))
    return shown


def _rates(time: OverTime, task: str, spans: str, pen: Pen) -> dict[str, Any]:
    return pen.draw(_lines(time, {task: time.rates[task]}, "mean label"), f"Mean of {task} over time", spans)


def _lines(time: OverTime, series: dict[str, np.ndarray], label: str) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        marker = "o" if len(time.starts) <= 30 else None
        for n, (name, values) in enumerate(series.items()):
            axes.plot(time.starts, values, color=COLOURS[n % SERIES], label=name, marker=marker, markersize=3.5)
        axes.set_ylabel(label)
        drawn = np.concatenate([values[~np.isnan(values)] for values in series.values()])
        axes.set_ylim(bottom=drawn.min(initial=0))
        axes.tick_params(axis="x", rotation=30)
        if len(series) > 1:
            axes.legend()

    return paint


def _bars(values: np.ndarray, label: str) -> Callable[[Axes], None]:
    """Whole numbers, one bar each if there are few; the last hundredth is left out."""

    def paint(axes: Axes) -> None:
        most = int(np.quantile(values, 0.99)) if len(values) else 0
        width = max(1, -(-(most + 1) // _BARS))
        _histogram(axes, values[values <= most], np.arange(0, most + width + 1, width) - 0.5)
        axes.set_xlabel(label)

    return paint


def _delays(values: np.ndarray) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        seconds = np.maximum(values, 1)
        _histogram(axes, seconds, np.geomspace(1, max(10.0, float(seconds.max()) * 1.001), _BARS))
        axes.set_xscale("log")
        axes.set_xlabel("seconds")

    return paint


def _histogram(axes: Axes, values: np.ndarray, edges: Sequence[float] | np.ndarray) -> None:
    share = np.histogram(values, edges)[0] / max(1, len(values))
    axes.stairs(share, edges, color=COLOURS[0], fill=True)
    axes.set_ylabel("share")
