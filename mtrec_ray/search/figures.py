"""Figures of a search's page; `evaluate.figures` says how colours follow the page.

One colour for one role in all of them: the chosen trial, the config's own values, the front, and the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mtrec_ray.evaluate.figures import CARD, COLOURS, GRID, INK, RAMP
from mtrec_ray.search.pareto import far_off

FRONT, OTHERS, DEFAULT, CHOSEN = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[5]
Paint = Callable[[Axes], None]
ENDINGS = {
    "on": ("went on", COLOURS[0]),
    "finished": ("finished here", COLOURS[3]),
    "stopped": ("stopped here", COLOURS[1]),
    "failed": ("failed here", COLOURS[5]),
    "running": ("end not seen", COLOURS[6]),
}
LEGEND: dict[str, Any] = {"frameon": True, "facecolor": CARD, "edgecolor": "none", "framealpha": 0.8}
"""On a ground of its own: points may lie below it."""
MAX_BARS = 10
MAX_STEPS = 6
"""Numbers with at most so many distinct values stand at even distances, each with its tick."""


@dataclass(frozen=True)
class Roles:
    """Which trials stand out, by number."""

    front: frozenset[int]
    default: int | None
    chosen: int | None


def window(values: np.ndarray, keep: np.ndarray) -> tuple[float, float, int]:
    """(low, high, values outside): the range of values [N] without far outliers, but with all of `keep`.

    A diverged trial would press all others into one corner.
    """
    values = values[np.isfinite(values)]
    shown = np.concatenate([values[~far_off(values)], keep[np.isfinite(keep)]])
    pad = 0.06 * np.ptp(shown) or 0.01 * abs(shown[0]) or 0.01
    low, high = float(shown.min() - pad), float(shown.max() + pad)
    return low, high, int(((values < low) | (values > high)).sum())


def trade_off(
    numbers: Sequence[int],
    points: np.ndarray,
    titles: tuple[str, str],
    roles: Roles,
    limits: tuple[Any, Any],
    line: bool,
) -> Paint:
    """Two objectives of all trials, points [N, 2]; `line` joins the front, where it has no third objective."""

    def paint(axes: Axes) -> None:
        front = np.array([number in roles.front for number in numbers])
        axes.plot(*points[~front].T, "o", color=OTHERS, markersize=4.5, alpha=0.75, label="other trials")
        ordered = points[front][np.argsort(points[front][:, 0])]
        axes.plot(*ordered.T, "-" if line else "", color=FRONT, linewidth=1.2, marker="o", markersize=6, label="front")
        for role, colour, marker, size, name in (
            (roles.default, DEFAULT, "D", 8, "config as it was"),
            (roles.chosen, CHOSEN, "*", 15, "chosen"),
        ):
            if role is not None and role in numbers:
                where = points[list(numbers).index(role)]
                edge: dict[str, Any] = {"markeredgecolor": CARD, "markeredgewidth": 1}
                axes.plot(*where, marker, color=colour, markersize=size, label=name, **edge)
        axes.set_xlabel(titles[0])
        axes.set_ylabel(titles[1])
        axes.set_xlim(*limits[0])
        axes.set_ylim(*limits[1])
        axes.legend(**LEGEND)

    return paint


def over_trials(numbers: Sequence[int], history: Sequence[float], label: str) -> Paint:
    """A figure of the first 1, 2, ... trials."""

    def paint(axes: Axes) -> None:
        axes.step(numbers, history, where="post", color=FRONT)
        axes.plot(numbers, history, "o", color=FRONT, markersize=3)
        axes.set_xlabel("trial")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return paint


def best_so_far(
    numbers: Sequence[int], values: Sequence[float], history: Sequence[float], label: str, limits: tuple[float, float]
) -> Paint:
    """Each trial's value and the best one up to it."""

    def paint(axes: Axes) -> None:
        axes.plot(numbers, values, "o", color=OTHERS, markersize=4.5, alpha=0.75, label="trial")
        axes.step(numbers, history, where="post", color=FRONT, label="best so far")
        axes.set_xlabel("trial")
        axes.set_ylabel(label)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(**LEGEND)

    return paint


Curve = tuple[int, bool, list[float], list[float]]
"""Trial, whether it was cut off, evaluations, values."""


def curves(lines: Sequence[Curve], label: str, roles: Roles, limits: tuple[float, float]) -> Paint:
    """One line per trial; a dot where it was stopped or failed."""

    def paint(axes: Axes) -> None:
        named = {OTHERS: "other trials", FRONT: "front", DEFAULT: "config as it was", CHOSEN: "chosen"}
        looks = {OTHERS: (0.9, 0.6, 2.0), FRONT: (1.3, 0.9, 2.2), DEFAULT: (2.0, 1.0, 2.4), CHOSEN: (2.4, 1.0, 2.5)}
        for number, cut, evaluations, values in lines:
            colour = _colour(number, roles)
            width, alpha, order = looks[colour]
            axes.plot(
                evaluations,
                values,
                color=colour,
                linewidth=width,
                alpha=alpha,
                zorder=order,
                label=named.pop(colour, None),
                marker="o",
                markersize=4.5,
                markevery=[len(values) - 1] if cut or len(values) == 1 else [],
            )
        axes.set_xlabel("evaluation")
        axes.set_ylabel(label)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(**LEGEND)

    return paint


def _colour(number: int, roles: Roles) -> str:
    if number == roles.chosen:
        return CHOSEN
    if number == roles.default:
        return DEFAULT
    return FRONT if number in roles.front else OTHERS


def rung_bars(rungs: Sequence[dict[str, int]]) -> Paint:
    """Trials that reached each evaluation, by what became of them there."""

    def paint(axes: Axes) -> None:
        evaluations = [rung["evaluation"] for rung in rungs]
        floor = np.zeros(len(rungs))
        for key, (label, colour) in ENDINGS.items():
            heights = np.array([rung[key] for rung in rungs])
            if heights.any():
                axes.bar(evaluations, heights, 0.8, floor, color=colour, label=label, edgecolor=CARD, linewidth=0.8)
            floor = floor + heights
        axes.set_xlabel("evaluation")
        axes.set_ylabel("trials that reached it")
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, floor.max() * 1.05)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(**LEGEND)

    return paint


def importance_bars(shares: dict[str, float], spread: dict[str, float]) -> Paint:
    """Shares of importance, the largest on top, each with a standard deviation either way."""

    def paint(axes: Axes) -> None:
        paths = list(shares)[:MAX_BARS][::-1]
        values, errors = [shares[path] for path in paths], [spread[path] for path in paths]
        axes.barh([short(path) for path in paths], values, 0.62, color=FRONT)
        low = np.minimum(errors, values)
        bars: dict[str, Any] = {"color": INK, "ecolor": INK, "elinewidth": 1, "capsize": 2.5}
        axes.errorbar(values, range(len(paths)), xerr=np.array([low, errors]), fmt="none", **bars)
        axes.set_xlabel("share of importance")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    return paint


@dataclass(frozen=True)
class Scale:
    """One upright axis of parallel coordinates: where each trial lies in 0 .. 1 (NaN: not active) and what to write."""

    title: str
    places: np.ndarray
    ticks: dict[float, str]

    @classmethod
    def of_values(
        cls, title: str, values: Sequence[Any], log: bool, limits: tuple[float, float] | None = None
    ) -> "Scale":
        """Of what the trials sampled; None = not active. `limits` cut off what lies beyond, at the axis' end."""
        known = [value for value in values if value is not None]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
        names = list(dict.fromkeys(map(str, sorted(known) if numeric else sorted(known, key=str))))
        if not limits and (not numeric or len(names) <= MAX_STEPS):
            spots = {name: float(place) for name, place in zip(names, _spread(len(names)), strict=True)}
            places = [np.nan if value is None else spots[str(value)] for value in values]
            return cls(title, np.array(places), {place: name for name, place in spots.items()})
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        low, high = limits or (float(np.nanmin(numbers)), float(np.nanmax(numbers)))
        if low == high:
            return cls(title, np.where(np.isnan(numbers), np.nan, 0.5), {0.5: f"{low:.3g}"})
        forward, back = (np.log, np.exp) if log and low > 0 else (np.asarray, np.asarray)
        start, end = forward(low), forward(high)
        places = np.clip((forward(numbers) - start) / (end - start), 0, 1)
        marks = np.linspace(0, 1, 5)
        return cls(title, places, {mark: f"{back(start + mark * (end - start)):.3g}" for mark in marks})


def _spread(count: int) -> np.ndarray:
    """Places of a few values: evenly, and short of the ends, so that lines to them fan out."""
    return np.linspace(0, 1, count + 2)[1:-1] if count < 4 else np.linspace(0, 1, count)


INACTIVE = -0.14


def parallel(scales: Sequence[Scale], chosen: int | None) -> Paint:
    """A line per trial [N] over upright axes; the last one, the objective, gives the colour. `chosen` is a row."""

    def paint(axes: Axes) -> None:
        places = np.stack([scale.places for scale in scales], axis=1)
        good = np.nan_to_num(places[:, -1])
        inactive = bool(np.isnan(places).any())
        places = np.where(np.isnan(places), INACTIVE, places)
        for row in np.argsort(good, kind="stable"):
            colour = RAMP[min(int(good[row] * len(RAMP)), len(RAMP) - 1)]
            axes.plot(places[row], color=colour, linewidth=1.3, alpha=0.9, zorder=2)
        if chosen is not None:
            axes.plot(places[chosen], color=CHOSEN, linewidth=2.6, zorder=3, label="chosen")
        for at, scale in enumerate(scales):
            axes.axvline(at, color=GRID, linewidth=1, zorder=1)
            _write_ticks(axes, at, scale.ticks | ({INACTIVE: "inactive"} if np.isnan(scale.places).any() else {}))
        axes.set_xticks(range(len(scales)), [scale.title for scale in scales])
        axes.set_xlim(-0.18, len(scales) - 0.72)
        axes.set_ylim(INACTIVE - 0.06 if inactive else -0.05, 1.05)
        axes.tick_params(length=0, pad=6)
        axes.yaxis.set_visible(False)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return paint


def _write_ticks(axes: Axes, at: int, ticks: dict[float, str]) -> None:
    """Beside the axis, on a ground of its own over the lines."""
    ground = {"boxstyle": "round,pad=0.12", "facecolor": CARD, "edgecolor": "none", "alpha": 0.8}
    for place, text in ticks.items():
        axes.annotate(
            text, (at, place), (5, 0), textcoords="offset points", va="center", fontsize=8, bbox=ground, zorder=4
        )


def short(path: str) -> str:
    """The last two parts of a dotted path; a task's weight is known by its task."""
    parts = path.split(".")
    return ".".join(parts[-2:])
