"""Figures of the report as inline SVG whose colours follow the page, light or dark.

Matplotlib draws with marker colours; these become CSS variables (`--ink`, `--series-0` ...) of the page. Each SVG's
ids get a prefix of their own, because all stand in one document.
"""

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mtrec_ray.evaluate.curves import calibration_curve, roc_curve
from mtrec_ray.evaluate.metrics import Weights

SERIES = 7
"""Colours `--series-0` (the model) to `--series-6`; further columns start over."""
WIDTH, HEIGHT = 4.6, 3.2
"""Inches; the page scales figures to its own width."""
MAX_POINTS = 300
BINS = 10
Series = dict[str, tuple[list[float], list[float]]]

INK, GRID, CARD = "#010203", "#040506", "#070809"
"""Text and lines, the grid, and the ground that figures stand on."""
COLOURS = [f"#0a0b{n:02x}" for n in range(SERIES)]
RAMP = [f"#0c0d{n:02x}" for n in range(8)]
"""From poor to good, on pages that define `--ramp-0` to `--ramp-7`."""
_VARIABLES = (
    {INK: "var(--ink)", GRID: "var(--grid)", CARD: "var(--card)"}
    | {colour: f"var(--series-{n})" for n, colour in enumerate(COLOURS)}
    | {colour: f"var(--ramp-{n})" for n, colour in enumerate(RAMP)}
)
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "axes.formatter.useoffset": False,
}


def draw(paint: Callable[[Axes], None], name: str, title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """An `<svg>` element of what `paint` puts on the axes; `name` must be unique in the page, `title` is read aloud."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _embed(stream.getvalue(), name, title)


def _embed(svg: str, name: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = svg.replace("fill: #ffffff", "fill: none")
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def learning_curves(series: Series, label: str) -> Callable[[Axes], None]:
    """Values over optimizer steps."""

    def paint(axes: Axes) -> None:
        for n, (name, (steps, values)) in enumerate(series.items()):
            marker = "o" if len(steps) <= 30 else None
            axes.plot(steps, values, color=COLOURS[n % SERIES], label=name, marker=marker, markersize=3.5)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        if len(series) > 1:
            axes.legend()

    return paint


def roc(labels: np.ndarray, columns: Mapping[str, np.ndarray], weights: Weights) -> Callable[[Axes], None]:
    """ROC curves of several score columns over the same labels."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GRID, linestyle="--", linewidth=1)
        for n, (name, scores) in reversed(list(enumerate(columns.items()))):  # the model is drawn last, on top
            curve = roc_curve(labels, scores, weights)
            if curve is not None:
                keep = np.unique(np.linspace(0, len(curve.true_positive_rate) - 1, MAX_POINTS).astype(int))
                rates = curve.false_positive_rate[keep], curve.true_positive_rate[keep]
                axes.plot(*rates, color=COLOURS[n % SERIES], label=name, linewidth=_width(n))
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_aspect("equal")
        axes.legend(*_in_order(axes), loc="lower right")

    return paint


def calibration(
    labels: np.ndarray, columns: Mapping[str, np.ndarray], weights: Weights, unit: str
) -> Callable[[Axes], None]:
    """Mean label against mean score in bins of equal weight; `unit` names what is scored."""

    def paint(axes: Axes) -> None:
        ends = [np.inf, -np.inf]
        for n, (name, scores) in reversed(list(enumerate(columns.items()))):
            curve = calibration_curve(labels, scores, BINS, weights)
            both = np.concatenate([curve.predicted, curve.observed])
            ends = [min(ends[0], both.min()), max(ends[1], both.max())]
            axes.plot(
                curve.predicted,
                curve.observed,
                color=COLOURS[n % SERIES],
                label=name,
                marker="o",
                markersize=3.5,
                linewidth=_width(n),
            )
        axes.plot(ends, ends, color=INK, linestyle="--", linewidth=0.8)
        axes.set_xlabel(f"mean predicted {unit}")
        axes.set_ylabel(f"mean actual {unit}")
        axes.legend(*_in_order(axes), loc="upper left")

    return paint


def residuals(labels: np.ndarray, columns: Mapping[str, np.ndarray], weights: Weights) -> Callable[[Axes], None]:
    """Densities of score - label."""

    def paint(axes: Axes) -> None:
        errors = {name: scores - labels for name, scores in columns.items()}
        low, high = np.quantile(np.concatenate(list(errors.values())), [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for n, (name, error) in reversed(list(enumerate(errors.items()))):
            share = np.histogram(error, edges, weights=weights)[0] / (len(error) if weights is None else weights.sum())
            axes.stairs(share, edges, color=COLOURS[n % SERIES], label=name, linewidth=_width(n))
        axes.axvline(0, color=INK, linestyle="--", linewidth=0.8)
        axes.set_xlabel("predicted − actual")
        axes.set_ylabel("share of rows")
        axes.legend(*_in_order(axes))

    return paint


def _width(n: int) -> float:
    return 2.2 if n == 0 else 1.2


def _in_order(axes: Axes) -> tuple[list[Any], list[str]]:
    """Legend handles and labels with the model first."""
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], labels[::-1]
