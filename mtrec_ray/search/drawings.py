"""The drawings of a search's page, each with its title and caption, from what `tune.json` holds."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.evaluate.page import Pen, counted
from mtrec_ray.evaluate.tables import number
from mtrec_ray.search import figures
from mtrec_ray.search.figures import Roles, Scale
from mtrec_ray.search.summary import Summary
from mtrec_ray.search.wording import sampled_paths, title

MAX_AXES = 8
"""Parameters in one figure of parallel coordinates; more go to further figures."""


def trade_off(found: Summary, ended: list[dict[str, Any]], roles: Roles, pen: Pen) -> list[dict[str, Any]]:
    """The front per pair of objectives and its growth; with one objective, the best value so far."""
    names = [objective["name"] for objective in found["objectives"]]
    if len(names) == 1:
        return [_best_so_far(found, names[0], _standing_out(ended, roles), pen)]
    pairs = [_pair(ended, pair, len(names) == 2, roles, pen) for pair in combinations(names, 2)]
    return [*pairs, _hypervolume(found["hypervolume"], pen)]


def _best_so_far(found: Summary, name: str, keep: np.ndarray, pen: Pen) -> dict[str, Any]:
    known = found["best_so_far"]
    values = np.array(known["values"])
    low, high, outside = figures.window(values, values[keep])
    paint = figures.best_so_far(known["trials"], known["values"], known["history"], title(name), (low, high))
    caption = f"On validation, at each trial's best evaluation.{_outside(outside)}"
    return pen.draw(paint, f"Best {title(name)} so far", caption, wide=True)


def _pair(ended: list[dict[str, Any]], pair: tuple[str, str], alone: bool, roles: Roles, pen: Pen) -> dict[str, Any]:
    points = np.stack([_objective(ended, name) for name in pair], axis=1)
    keep = _standing_out(ended, roles)
    (*x, left_out), (*y, below) = (figures.window(column, column[keep]) for column in points.T)
    caption = (
        "A trial is on the front if no other is as good in all objectives and better in one. Arrows point to better."
    )
    caption += "" if alone else " The front is that of all objectives: in two of them alone it may look beaten."
    paint = figures.trade_off(
        [trial["number"] for trial in ended],
        points,
        (title(pair[0], arrow=True), title(pair[1], arrow=True)),
        roles,
        (x, y),
        alone,
    )
    return pen.draw(paint, f"{title(pair[1])} against {title(pair[0])}", caption + _outside(max(left_out, below)))


def _hypervolume(grown: dict[str, Any], pen: Pen) -> dict[str, Any]:
    reference = ", ".join(f"{title(name)} {number(value)}" for name, value in grown["reference"].items())
    caption = (
        "Share of the space that the front dominates, between the best of each objective and the reference point "
        f"({reference}: a tenth of the range beyond the worst that is not far off). Flat at the end: further trials "
        "add little."
    )
    paint = figures.over_trials(grown["trials"], grown["history"], "hypervolume")
    return pen.draw(paint, "Hypervolume over trials", caption)


def parameters(found: Summary, ended: list[dict[str, Any]], run: Run, roles: Roles, pen: Pen) -> list[dict[str, Any]]:
    """Parallel coordinates of what the trials sampled, in parts of at most `MAX_AXES` parameters."""
    objective = found["objectives"][0]
    last, outside = _objective_scale(ended, objective, roles)
    numbers = [trial["number"] for trial in ended]
    chosen = numbers.index(roles.chosen) if roles.chosen in numbers else None
    sampled = {path: [trial["values"].get(path) for trial in ended] for path in sampled_paths(ended)}
    scales = [
        Scale.of_values(figures.short(path), values, _is_log(run, path))
        for path, values in sampled.items()
        if len({str(value) for value in values}) > 1
    ]
    caption = (
        f"A line is a trial; the more colour, the better its {title(objective['name'])}, on the axis at the right, "
        "where up is better; the thick line is the chosen trial. Where lines of much colour run together, the "
        "parameter matters."
    )
    caption += f" {counted(outside, 'trial lies', 'trials lie')} beyond the end of that axis." if outside else ""
    drawn = []
    for start in range(0, len(scales), MAX_AXES):
        part = scales[start : start + MAX_AXES]
        place = f", {start + 1} to {start + len(part)} of {len(scales)}" if len(scales) > MAX_AXES else ""
        paint = figures.parallel([*part, last], chosen)
        drawn.append(pen.draw(paint, f"Parameters of the trials{place}", caption, wide=True))
    return drawn


def _objective_scale(ended: list[dict[str, Any]], objective: dict[str, Any], roles: Roles) -> tuple[Scale, int]:
    """Its axis with the better end on top, and how many trials lie beyond the ends."""
    values = _objective(ended, objective["name"])
    low, high, outside = figures.window(values, values[_standing_out(ended, roles)])
    inside = values[(values >= low) & (values <= high)]
    ends = (float(inside.min()), float(inside.max()))
    ends = ends if objective["sign"] > 0 else (ends[1], ends[0])
    return Scale.of_values(title(objective["name"], arrow=True), values.tolist(), False, ends), outside


def importance(found: Summary, pen: Pen) -> list[dict[str, Any]]:
    """Per objective a figure, or the reason why there is none."""
    shown = []
    for entry in found["importance"]:
        name = title(entry["objective"])
        if entry["reason"]:
            shown.append({"name": name, "reason": entry["reason"], "figure": None})
            continue
        caption = (
            f"How much worse a forest ranks held-out trials by {name} when a parameter is shuffled. It explains "
            f"{entry['explained']:.0%} of the variance of the ranks of {entry['trials']} trials at evaluation "
            f"{entry['evaluation']}; whiskers: one standard deviation over shuffles."
        )
        figure = pen.draw(figures.importance_bars(entry["shares"], entry["spread"]), f"Importance for {name}", caption)
        shown.append({"name": name, "reason": None, "figure": figure})
    return shown


def course(found: Summary, roles: Roles, pen: Pen) -> list[dict[str, Any]]:
    """Curves of all trials, and how many reached each evaluation."""
    drawn = []
    for objective in found["objectives"]:
        name = objective["name"]
        lines = [line for trial in found["trials"] if (line := _curve(trial, name))]
        if not lines:
            continue
        values = np.concatenate([line[3] for line in lines])
        keep = [line[3] for line in lines if line[0] in roles.front | {roles.default, roles.chosen}]
        low, high, outside = figures.window(values, np.array([curve[-1] for curve in keep]))
        caption = "On validation; a dot ends a trial that was stopped or failed." + (
            f" {counted(outside, 'value lies', 'values lie')} outside the figure." if outside else ""
        )
        paint = figures.curves(lines, title(name, arrow=True), roles, (low, high))
        drawn.append(pen.draw(paint, f"{title(name)} of all trials", caption))
    if found["rungs"]:
        caption = "How many trials reached each evaluation, and what became of them there: where the budget went."
        drawn.append(pen.draw(figures.rung_bars(found["rungs"]), "Budget per evaluation", caption))
    return drawn


def _curve(trial: dict[str, Any], name: str) -> figures.Curve | None:
    points = [(evaluation, value) for evaluation, value in trial["curve"][name] if value is not None]
    if not points:
        return None
    evaluations, values = zip(*points, strict=True)
    return trial["number"], trial["status"] in ("stopped", "failed"), list(evaluations), list(values)


def _objective(trials: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([trial["objectives"][name] for trial in trials], dtype=np.float64)


def _standing_out(trials: Sequence[dict[str, Any]], roles: Roles) -> np.ndarray:
    return np.array([trial["number"] in (roles.front | {roles.default, roles.chosen}) for trial in trials])


def _outside(count: int) -> str:
    return f" {counted(count, 'trial lies', 'trials lie')} far off, outside the figure." if count else ""


def _is_log(run: Run, path: str) -> bool:
    given = run.tune.space.get(path)
    return isinstance(given, Mapping) and bool({"loguniform", "lograndint"} & given.keys())
