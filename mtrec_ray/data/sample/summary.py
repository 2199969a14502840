"""What can be known of a generated log, as a table on the terminal."""

import math

from rich.table import Table

from mtrec_ray.data.sample.floors import FLOORS
from mtrec_ray.data.sample.judging import Figures
from mtrec_ray.data.sample.writing import Generated

_LINES = {
    "oracle": "true probabilities",
    "observer": "best guess from the log before each row, generator's parameters known",
    "gap": "observer less the best simple method",
}

_LAST = ("ones", "observer on random", FLOORS[-1])
"""Of their sections."""


def figures_table(generated: Generated) -> Table:
    """A column per task; the truth, the observer, the simple methods, and what the observer has beyond the best."""
    table = Table(title="AUC on the test rows", title_justify="left", caption_justify="left")
    table.caption = "\n".join(f"{name}: {what}" for name, what in _LINES.items())
    table.add_column("")
    for task in generated.figures:
        table.add_column(task, justify="right")
    lines = [_cells(figures) for figures in generated.figures.values()]
    for name in lines[0]:
        table.add_row(
            name, *(cells[name] for cells in lines), end_section=name in ("ones", "observer on random", FLOORS[-1])
        )
    return table


def _cells(figures: Figures) -> dict[str, str]:
    cells = {
        "test rows": f"{figures.rows:,}",
        "ones": f"{figures.positives:,}",
        "oracle": _area(figures.oracle[0]),
        "oracle, GAUC": _area(figures.oracle[1]),
        "observer": _area(figures.observer[0]),
        "observer, GAUC": _area(figures.observer[1]),
        "oracle on random": _area(figures.random[0]),
        "observer on random": _area(figures.random[1]),
    }
    cells |= {name: _area(figures.floors[name]) for name in FLOORS}
    cells["gap"] = _area(figures.gap)
    return cells | {f"worth of {name}": _area(value) for name, value in figures.worth.items()}


def _area(area: float) -> str:
    return "-" if math.isnan(area) else f"{area:.3f}"
