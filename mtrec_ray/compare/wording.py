"""A comparison in words: the verdict on each way to learn together, and the table of the terminal."""

from typing import Any

from mtrec_ray.compare.summary import Summary
from mtrec_ray.evaluate.tables import column_title, metric_title, number
from mtrec_ray.progress import clock

NONE = "–"


def verdicts(found: Summary) -> list[dict[str, Any]]:
    """Per joint training its name and what is to be said of it, the plainest first."""
    return [{"name": name, "sentences": _sentences(found, name)} for name in found["differences"]]


def _sentences(found: Summary, joint: str) -> list[str]:
    return [text for text in (_by_task(found, joint), _on_average(found, joint), _one_seed(found)) if text]


def _by_task(found: Summary, joint: str) -> str:
    """Which tasks are worse, which better, where no difference was found, and of which nothing is known."""
    sides: dict[str, list[str]] = {"worse": [], "better": [], "even": [], "unknown": []}
    for task in found["tasks"]:
        change = found["differences"][joint][task["name"]].get(task["metric"])
        if change is None or change["mean"] is None:
            sides["unknown"].append(task["name"])
        else:
            sides[change["tone"]].append(f"{task['name']} ({metric_title(task['metric'])} {with_interval(change)})")
    listed = {side: ", ".join(tasks) for side, tasks in sides.items() if tasks}
    parts = [f"{side} on {listed[side]}" for side in ("worse", "better") if side in listed]
    opening = [f"Learning together ({joint}) is {' and '.join(parts)}"] if parts else []
    if "even" in listed:
        between = "" if opening else f" between learning together ({joint}) and each task alone"
        opening.append(f"{'no' if opening else 'No'} difference found{between} on {listed['even']}")
    if "unknown" in listed:
        opening.append(f"{'nothing' if opening else f'{joint}: nothing'} can be said of {listed['unknown']}")
    return f"{'; '.join(opening)}."


def _on_average(found: Summary, joint: str) -> str:
    change = found["relative_change"][joint]["of_metric"]
    if change is None or change["mean"] is None:
        return ""
    said = {
        "worse": "worse than each task alone",
        "better": "better than each task alone",
        "even": "no difference found",
        "unknown": "which is more cannot be said",
    }
    return f"On average over the tasks the change is {percent_with_interval(change)}: {said[change['tone']]}."


def _one_seed(found: Summary) -> str:
    if len(found["seeds"]) > 1:
        return ""
    return "With one seed this is a difference between trainings, not yet between ways to train: raise compare.seeds."


def with_interval(change: dict[str, Any]) -> str:
    """`−0.0041 [−0.0060, −0.0020]`"""
    if change["mean"] is None:
        return NONE
    return number(change["mean"], signed=True) + (f" {interval(change)}" if change["interval"] else "")


def interval(change: dict[str, Any]) -> str:
    if change["interval"] is None:
        return ""
    low, high = (number(end, signed=True) for end in change["interval"])
    return f"[{low}, {high}]"


def percent_with_interval(change: dict[str, Any]) -> str:
    """`−0.52 % [−0.81, −0.20]`"""
    if change["mean"] is None:
        return NONE
    if change["interval"] is None:
        return f"{percent(change['mean'])} %"
    low, high = map(percent, change["interval"])
    return f"{percent(change['mean'])} % [{low}, {high}]"


def percent(share: float) -> str:
    """Of a share, with its sign and without the sign for percent."""
    return f"{100 * share:+.2f}".replace("-", "−")


def cost_sentence(found: Summary) -> str:
    """What N trainings of single tasks took against one joint training."""
    alone, costs = found["cost"]["all_alone"], found["cost"]["variants"]
    joint = {name: costs[name] for name in found["differences"] if costs[name] is not None}
    if alone is None or not joint:
        return "Not all trainings came to their end, so what the tasks alone cost together is not known."
    times = [
        f"{name} {clock(cost['seconds'])} ({cost['seconds'] / alone['seconds']:.0%} of that)"
        for name, cost in joint.items()
    ]
    return (
        f"One model for each of the {alone['models']} tasks takes {alone['models']} trainings: "
        f"{clock(alone['seconds'])} of training steps a seed together, against one joint training: {', '.join(times)}. "
        f"To score a candidate, {alone['models']} models have to be run instead of one."
    )


def table(found: Summary) -> str:
    """Plain text: a row per task and metric, with what is learned alone and the difference of each joint training."""
    rows = [["", "alone", *found["differences"]]]
    for task in found["tasks"]:
        values = found["values"][f"{task['name']} alone"][task["name"]]
        for metric in task["metrics"]:
            changes = [by_task[task["name"]].get(metric) for by_task in found["differences"].values()]
            rows.append([f"{task['name']} {column_title(metric)}", mean(values[metric]), *map(_cell, changes)])
    relative = [by_joint["of_metric"] for by_joint in found["relative_change"].values()]
    rows.append(
        ["average change", "", *(NONE if found is None else percent_with_interval(found) for found in relative)]
    )
    costs, alone = found["cost"]["variants"], found["cost"]["all_alone"]
    seconds = [NONE if costs[name] is None else clock(costs[name]["seconds"]) for name in found["differences"]]
    rows.append(["time of training", NONE if alone is None else clock(alone["seconds"]), *seconds])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def mean(values: dict[str, Any]) -> str:
    return NONE if values["mean"] is None else number(values["mean"])


def _cell(change: dict[str, Any] | None) -> str:
    if change is None:
        return NONE
    return (
        f"{with_interval(change)} {change['tone']}" if change["tone"] in ("better", "worse") else with_interval(change)
    )
