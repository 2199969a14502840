"""The drawings of a comparison's page, each with its title and caption, from what `compare.json` holds."""

from collections import defaultdict
from typing import Any

from mtrec_ray.compare import figures
from mtrec_ray.compare.summary import Summary
from mtrec_ray.evaluate.figures import Series, learning_curves
from mtrec_ray.evaluate.page import Pen
from mtrec_ray.evaluate.tables import metric_title

Drawing = dict[str, Any]
SAID_OF_CHANGES = "Rhombus: mean over seeds; line: its interval; small dots: the single seeds."


def task_changes(found: Summary, task: dict[str, Any], pen: Pen) -> list[Drawing]:
    """The main metric of one task, and its loss where that is another one; a line for each joint training."""
    drawn = []
    for metric in dict.fromkeys([task["metric"], *(name for name in task["metrics"] if name == "logloss")]):
        rows = {
            joint: by_task[task["name"]][metric]
            for joint, by_task in found["differences"].items()
            if metric in by_task[task["name"]]
        }
        if not rows:
            continue
        better = "right" if task["metrics"][metric] > 0 else "left"
        name = metric_title(metric)
        paint = figures.changes(rows, f"{name}, together − alone")
        drawn.append(pen.draw(paint, f"{name} of {task['name']}", f"{SAID_OF_CHANGES} Better is to the {better}."))
    return drawn


def relative_change(found: Summary, pen: Pen) -> list[Drawing]:
    """The average over tasks, of each joint training."""
    rows = {
        joint: change["of_metric"]
        for joint, change in found["relative_change"].items()
        if change["of_metric"] is not None and change["of_metric"]["mean"] is not None
    }
    if not rows:
        return []
    paint = figures.changes(rows, "average relative change, %", scale=100)
    return [pen.draw(paint, "Average over the tasks", f"{SAID_OF_CHANGES} Better is to the right.")]


def cost(found: Summary, pen: Pen) -> list[Drawing]:
    costs = found["cost"]["variants"]
    alone = {v["task"]: costs[v["name"]] for v in found["variants"] if v["task"] is not None}
    joint = {name: costs[name]["seconds"] for name in found["differences"] if costs[name] is not None}
    if not joint or None in alone.values():
        return []
    paint = figures.training_time({task: cost["seconds"] for task, cost in alone.items()}, joint)
    caption = "Steps alone, without start-up, evaluation and scoring. Trainings stop early, so they differ in length."
    return [pen.draw(paint, "Time of training", caption)]


def conflict(found: Summary, joint: str, pen: Pen) -> list[Drawing]:
    """What one joint training logged of its tasks' gradients, weights and gates; nothing for what it did not log."""
    known, tasks = found["conflict"][joint], [task["name"] for task in found["tasks"]]
    drawn = []
    if known["cosines"]:
        named = dict.fromkeys([*tasks, *(task for pair in known["cosines"] for task in _pair(pair, tasks))])
        caption = "Mean over steps and seeds. Below 0 the tasks pull the shared weights apart; at 0 they do not meet."
        drawn.append(
            pen.draw(figures.cosines(list(named), known["cosines"]), f"{joint}: cosines of gradients", caption)
        )
        drawn.append(_lines(known["lines"]["cosine"], "cosine", f"{joint}: cosines over steps", pen))
    if known["lines"]["balance"]:
        drawn.append(_lines(known["lines"]["balance"], "weight", f"{joint}: weights of the method", pen))
    for gate, lines in _gates(known["lines"]["gate"]).items():
        drawn.append(_lines(lines, "share", f"{joint}: experts of {gate}", pen))
    return drawn


def _lines(lines: dict[str, list[list[float]]], label: str, title: str, pen: Pen) -> Drawing:
    captions = {
        "cosine": "Between the gradients of two tasks where they part, mean over seeds.",
        "weight": "By which the loss or the gradient of a task is multiplied, on top of the config's weight.",
        "share": "How much the task's gate uses each expert, mean over seeds.",
    }
    series: Series = {name: (steps, values) for name, (steps, values) in lines.items()}
    return pen.draw(learning_curves(series, label), title, captions[label])


def _pair(key: str, tasks: list[str]) -> list[str]:
    """The two tasks of `<a>~<b>`, also where a name holds that sign."""
    parts = key.split("~")
    cuts = [("~".join(parts[:n]), "~".join(parts[n:])) for n in range(1, len(parts))]
    return list(max(cuts, key=lambda cut: sum(name in tasks for name in cut)))


def _gates(lines: dict[str, list[list[float]]]) -> dict[str, dict[str, list[list[float]]]]:
    """`<gate>/<expert>` -> lines, by gate."""
    found: dict[str, dict[str, list[list[float]]]] = defaultdict(dict)
    for key, line in lines.items():
        gate, _, expert = key.rpartition("/")
        found[gate][expert] = line
    return dict(found)
