"""Figures of a comparison's page; `evaluate.figures` says how colours follow the page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mtrec_ray.evaluate.figures import COLOURS, GRID, INK

Paint = Callable[[Axes], None]
ALONE = COLOURS[1]
JOINT = [COLOURS[0], *COLOURS[2:]]
"""Of the joint trainings in their order; more of them start over."""
AGAINST, WITH = COLOURS[5], COLOURS[0]
"""Gradients that point apart, and the same way."""


def changes(rows: Mapping[str, dict[str, Any]], label: str, scale: float = 1.0) -> Paint:
    """A line per joint training: the mean change, its interval, and a small dot for each seed; zero is dashed."""

    def paint(axes: Axes) -> None:
        names = list(rows)
        for n, name in enumerate(names):
            change, colour, y = rows[name], JOINT[n % len(JOINT)], len(names) - 1 - n
            seeds = [scale * value for value in change["seeds"] if value is not None]
            axes.plot(seeds, [y] * len(seeds), "o", color=colour, markersize=3, alpha=0.55)
            if change["interval"] is not None:
                axes.plot([scale * end for end in change["interval"]], [y, y], color=colour, linewidth=2.2)
            if change["mean"] is not None:
                axes.plot([scale * change["mean"]], [y], "D", color=colour, markersize=6)
        axes.axvline(0, color=INK, linestyle="--", linewidth=0.8)
        axes.set_yticks(range(len(names)), names[::-1])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    return paint


def training_time(alone: Mapping[str, float], joint: Mapping[str, float]) -> Paint:
    """Seconds: the tasks' own trainings end to end in one bar, and a bar for each joint training."""

    def paint(axes: Axes) -> None:
        names = ["each alone", *joint]
        top = len(names) - 1
        start = 0.0
        for task, seconds in alone.items():
            axes.barh(top, seconds, 0.62, start, color=ALONE, edgecolor=GRID, linewidth=1)
            axes.annotate(task, (start + seconds / 2, top), ha="center", va="center", fontsize=9)
            start += seconds
        for n, seconds in enumerate(joint.values()):
            axes.barh(top - 1 - n, seconds, 0.62, color=JOINT[n % len(JOINT)])
        axes.set_yticks(range(len(names)), names[::-1])
        axes.set_xlabel("seconds of training steps, mean over seeds")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)

    return paint


def cosines(tasks: Sequence[str], means: Mapping[str, float]) -> Paint:
    """A square per pair of tasks; the more colour, the further from 0. `means`: `<a>~<b>` -> cosine."""

    def paint(axes: Axes) -> None:
        for row, first in enumerate(tasks):
            for column, second in enumerate(tasks):
                value = means.get(f"{first}~{second}", means.get(f"{second}~{first}"))
                if row == column or value is None:
                    continue
                colour, strength = WITH if value > 0 else AGAINST, float(np.clip(abs(value), 0, 1))
                corner, alpha = (column - 0.5, row - 0.5), 0.08 + 0.8 * strength
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, alpha=alpha, edgecolor="none"))
                text = f"{value:+.2f}".replace("-", "−")
                axes.annotate(text, (column, row), ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_xlim(-0.5, len(tasks) - 0.5)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.tick_params(length=0)

    return paint
