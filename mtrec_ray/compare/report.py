"""`report.html` and `compare.json`: does learning together pay, for whoever decides, and the figures for programs.

`summary` computes, this module turns figures into words and drawings, the template beside it lays them out.
"""

import json
from collections.abc import Sequence
from typing import Any

from mtrec_ray.compare import drawings, wording
from mtrec_ray.compare.plan import Plan
from mtrec_ray.compare.results import Results
from mtrec_ray.compare.summary import Summary, summarise
from mtrec_ray.compare.wording import NONE, interval, percent_with_interval, with_interval
from mtrec_ray.config_file import dump
from mtrec_ray.data.filesystem import open_fs, write_atomic
from mtrec_ray.evaluate import page
from mtrec_ray.evaluate.page import Pen, counted
from mtrec_ray.evaluate.paired import RESAMPLES
from mtrec_ray.evaluate.provenance import provenance
from mtrec_ray.evaluate.tables import baseline_title, column_title, metric_title, number
from mtrec_ray.progress import clock

REPORT, SUMMARY = "report.html", "compare.json"
LOGGED = {
    "cosine": "cosines between the tasks' gradients (balance.conflict)",
    "balance": "weights of a balance method, as of the plain sum, which has none",
    "gate": "gates, which only towers with experts have",
}


def write_report(folder: str, plan: Plan, results: Results, resamples: int = RESAMPLES) -> Summary:
    """Writes `compare.json`, then `report.html`, each as a whole; returns what `compare.json` holds."""
    found = summarise(plan, results, resamples)
    found |= {"verdicts": wording.verdicts(found), "run": provenance()}
    filesystem, root = open_fs(folder)
    write_atomic(filesystem, f"{root}/{SUMMARY}", json.dumps(found, indent=1, allow_nan=False).encode())
    write_atomic(filesystem, f"{root}/{REPORT}", render(found, plan).encode())
    return found


def render(found: Summary, plan: Plan) -> str:
    """The page; `found` is what `compare.json` holds."""
    pen = Pen()
    return page.template("compare_report.html.j2", "mtrec_ray.compare").render(
        found=found,
        tiles=_tiles(found),
        tasks=[_task(found, task, pen) for task in found["tasks"]],
        relative=_relative(found),
        relative_figures=drawings.relative_change(found, pen),
        costs=_costs(found),
        cost_sentence=wording.cost_sentence(found),
        cost_figures=drawings.cost(found, pen),
        conflicts=[_conflict(found, joint, pen) for joint in found["differences"]],
        failed=[run for run in found["runs"] if run["status"] == "failed"],
        facts=_facts(plan),
        config=dump(plan.run),
    )


def _tiles(found: Summary) -> list[dict[str, str]]:
    """Of the first joint training: each task's change, the average, the time."""
    joint = next(iter(found["differences"]))
    tiles = []
    for task in found["tasks"]:
        change = found["differences"][joint][task["name"]].get(task["metric"])
        alone = wording.mean(found["values"][f"{task['name']} alone"][task["name"]][task["metric"]])
        tiles.append(
            _tile(f"{task['name']} · {metric_title(task['metric'])}", change, with_interval, f"{joint}; {alone} alone")
        )
    tiles.append(_tile("average change", found["relative_change"][joint]["of_metric"], percent_with_interval, joint))
    alone, together = found["cost"]["all_alone"], found["cost"]["variants"][joint]
    if alone is not None and together is not None:
        note = f"{joint}; {clock(alone['seconds'])} for all alone"
        tiles.append(
            {"title": "time of training", "value": clock(together["seconds"]), "note": note, "chip": "", "tone": ""}
        )
    return tiles


def _tile(title: str, change: dict[str, Any] | None, text: Any, note: str) -> dict[str, str]:
    if change is None:
        return {"title": title, "value": NONE, "note": note, "chip": "", "tone": ""}
    value, _, ends = text(change).partition(" [")
    return {"title": title, "value": value, "note": note, "chip": f"[{ends}" if ends else "", "tone": change["tone"]}


def _task(found: Summary, task: dict[str, Any], pen: Pen) -> dict[str, Any]:
    """One task: a row for the training alone, for each joint one, for each baseline; a column for each metric."""
    name, metrics = task["name"], list(task["metrics"])
    alone = f"{name} alone"
    rows = [{"name": "alone", "cells": _value_cells(found["values"][alone][name], metrics), "model": True}]
    for joint, by_task in found["differences"].items():
        cells = _value_cells(found["values"][joint][name], metrics)
        changes = [by_task[name].get(metric) for metric in metrics]
        cells = [cell | _change_cell(change) for cell, change in zip(cells, changes, strict=True)]
        rows.append({"name": joint, "cells": cells, "model": False})
    for baseline, tasks in found["baselines"].items():
        values = tasks.get(name)
        if values is not None:
            cells = [_cell(NONE if values[metric] is None else number(values[metric])) for metric in metrics]
            rows.append({"name": baseline_title(baseline), "cells": cells, "model": False})
    return task | {
        "columns": [column_title(metric) for metric in metrics],
        "rows": rows,
        "figures": drawings.task_changes(found, task, pen),
    }


def _cell(text: str) -> dict[str, str]:
    return {"text": text, "change": "", "interval": "", "tone": "", "seeds": ""}


def _value_cells(values: dict[str, Any], metrics: Sequence[str]) -> list[dict[str, str]]:
    return [_cell(wording.mean(values[metric])) for metric in metrics]


def _change_cell(change: dict[str, Any] | None) -> dict[str, str]:
    if change is None or change["mean"] is None:
        return {}
    seeds = [NONE if value is None else number(value, signed=True) for value in change["seeds"]]
    return {
        "change": number(change["mean"], signed=True),
        "interval": interval(change),
        "tone": change["tone"],
        "seeds": f"seed {', '.join(map(str, change['of_seeds']))}: {', '.join(seeds)}",
    }


def _relative(found: Summary) -> list[dict[str, Any]]:
    """Per joint training the average change of the metrics, and of what they are above chance."""
    return [
        {
            "name": joint,
            "cells": [
                {"text": NONE, "tone": ""}
                if part is None
                else {"text": percent_with_interval(part), "tone": part["tone"]}
                for part in changes.values()
            ],
        }
        for joint, changes in found["relative_change"].items()
    ]


def _costs(found: Summary) -> list[dict[str, Any]]:
    named = found["cost"]["variants"] | {"all tasks alone, together": found["cost"]["all_alone"]}
    return [
        {"name": name, "total": name not in found["cost"]["variants"]} | _cost(cost) for name, cost in named.items()
    ]


def _cost(cost: dict[str, Any] | None) -> dict[str, str]:
    """Dashes for what did not come to its end, and for a sum that means nothing."""
    if cost is None:
        return dict.fromkeys(("steps", "seconds", "speed", "memory", "parameters"), NONE)
    speed = f"{cost['candidates_per_s']:,.0f}" if "candidates_per_s" in cost else NONE
    return {
        "steps": f"{cost['steps']:,.0f}",
        "seconds": clock(cost["seconds"]),
        "speed": speed,
        "memory": f"{cost['peak_memory_mib']:,.0f} MiB",
        "parameters": f"{cost['trained_parameters']:,}",
    }


def _conflict(found: Summary, joint: str, pen: Pen) -> dict[str, Any]:
    """Figures of what was logged, and a sentence on what was not."""
    lines = found["conflict"][joint]["lines"]
    absent = [text for name, text in LOGGED.items() if not lines[name]]
    return {
        "name": joint,
        "figures": drawings.conflict(found, joint, pen),
        "absent": f"Not logged: {'; '.join(absent)}." if absent else "",
    }


def _facts(plan: Plan) -> dict[str, str]:
    """What was compared, and how; the whole config stands at the foot of the page."""
    run = plan.run
    chosen = run.train.metric if isinstance(run.train.metric, str) else json.dumps(run.train.metric)
    return {
        "alone": "the same config with the weights of all other tasks 0, which is the same as leaving them out of the "
        "loss. Features and histories are the same in all trainings and hold the feedback of all tasks: what is "
        "compared is the objective, not what a candidate is known by.",
        "checkpoint": f"alone: the best by the task's own metric on validation; together: the best by train.metric "
        f"({chosen}), one for all tasks",
        "together": "; ".join(_values(variant.name, variant.values) for variant in plan.joint),
        "seeds": f"{', '.join(map(str, plan.seeds))}; a seed has the same initial weights, order of data and "
        "pretraining of a nano backbone in all trainings",
        "trainings": f"{len(plan.variants) * len(plan.seeds)}, in "
        f"{counted(run.cluster.workers, 'worker', 'workers')} each, one after the other",
    }


def _values(name: str, values: dict[str, Any]) -> str:
    return f"{name} ({', '.join(f'{path}: {json.dumps(value)}' for path, value in values.items())})"
