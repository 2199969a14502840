"""`report.html`: one self-contained page about a run, for whoever has to decide on it.

`render` turns the metrics, the training log and the scores into plain values; the template beside it lays them out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.id_hashes import collision_notes
from mtrec_ray.data.manifest import CollisionEntry, Manifest, TaskEntry
from mtrec_ray.evaluate import figures, page, tables
from mtrec_ray.evaluate.bootstrap import LEVEL
from mtrec_ray.evaluate.comparison import Comparison
from mtrec_ray.evaluate.page import Pen, counted
from mtrec_ray.evaluate.training_log import TrainingLog
from mtrec_ray.tasks.kind import TaskKind

WEIGHING = {"row_weight": "its row_weight", "sampling_rate": "1 / its sampling_rate"}
"""By context column, what a row counts in metrics."""


def render(
    found: dict[str, Any],
    log: TrainingLog,
    comparisons: Mapping[str, Comparison],
    kinds: Sequence[TaskKind],
    manifest: Manifest,
    run: Run,
    config: str,
) -> str:
    """The page; `found` is what `metrics.json` holds, `config` the resolved config as YAML."""
    pen = Pen()
    first = "test" if "test" in comparisons else next(iter(comparisons))
    tasks = list(zip(manifest.tasks, kinds, strict=True))
    return page.template("report.html.j2").render(
        found=found,
        facts=facts(run, manifest)
        | _hashed_ids(found["id_collisions"])
        | ({"note": "; ".join(log.notes)} if log.notes else {}),
        split=first,
        tasks=[task_section(task, kind, comparisons[first], found, first, pen) for task, kind in tasks],
        others={
            split: [_table(task, kind, found["splits"][split]) for task, kind in tasks]
            for split in comparisons
            if split != first
        },
        curves=curves(log, kinds, pen),
        speed=_speed(found["throughput"]),
        metrics=tables.metric_help(name for kind in kinds for name in kind.reported),
        level=f"{LEVEL:.0%}",
        resamples=run.evaluate.bootstrap,
        baseline_title=tables.baseline_title,
        config=config,
    )


def facts(run: Run, manifest: Manifest) -> dict[str, str]:
    """What was run, in a few lines; the whole config stands at the foot of the page."""
    backbone = run.backbone.name
    if backbone != "none":
        adapter = run.adapter
        backbone += f", {adapter.kind}" + (f" rank {adapter.rank}" if adapter.kind == "lora" else "")
    lag = f", {run.history.lag:g} s withheld" if run.history.lag else ""
    tasks = [f"{task.name} ({task.kind}, weight {run.tasks[task.name].weight:g})" for task in manifest.tasks]
    weighing = [text for name, text in WEIGHING.items() if name in manifest.context]
    engine = run.engine.name + (f" ZeRO-{run.engine.zero_stage}" if run.engine.name == "deepspeed" else "")
    return {
        "tasks": ", ".join(tasks),
        "backbone": backbone,
        "history": f"up to {run.history.max_events} events ({manifest.history_layout}){lag}",
        "split": _split(run, manifest),
        "side features": f"{counted(len(manifest.numbers), 'number', 'numbers')}, "
        f"{counted(len(manifest.categories), 'category', 'categories')}{_ids(manifest, run)}",
        **_combined(run),
        "training": f"{run.train.epochs:g} {'epoch' if run.train.epochs == 1 else 'epochs'}, "
        f"{run.train.batch_requests} requests a step, "
        f"{counted(run.cluster.workers, 'worker', 'workers')}, {engine}, {run.engine.precision}",
        **({"metrics": f"a row counts {' · '.join(weighing)}"} if weighing else {}),
    }


def _split(run: Run, manifest: Manifest) -> str:
    """Times, where there are any, say more than the shares that led to them, and may not come from shares at all."""
    split = run.split
    if manifest.boundaries:
        times = (np.datetime64(manifest.boundaries[key] // 10**6, "s") for key in ("train_until", "valid_until"))
        train, valid = (str(time).replace("T", " ") for time in times)  # also of years beyond 9999
        return f"by time: train until {train}, valid until {valid} UTC"
    return f"by {split.by}: {split.column if split.by == 'column' else f'{split.valid:g} valid, {split.test:g} test'}"


def _combined(run: Run) -> dict[str, str]:
    """What follows z, how the tasks meet there, and what a step trains, where it is not all of them."""
    strategy, position = run.strategy, run.position.method
    steps = [] if strategy.tasks == "joint" else [f"tasks {strategy.tasks}"]
    steps += [counted(len(strategy.stages), "stage", "stages")] if strategy.stages else []
    steps += [f"weights follow {', '.join(strategy.adaptive.main)}"] if strategy.adaptive.is_on else []
    return {
        "towers": run.towers.kind + (f", position {position}" if position != "none" else ""),
        "tasks combined by": run.balance.method,
        **({"strategy": ", ".join(steps)} if steps else {}),
    }


def _hashed_ids(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    notes = collision_notes([CollisionEntry.model_validate(entry) for entry in entries])
    return {"hashed ids": "; ".join(notes)} if notes else {}


def _ids(manifest: Manifest, run: Run) -> str:
    tables = {
        "users": (run.features.user_dim, manifest.num_users),
        "items": (run.features.item_dim, manifest.num_items),
    }
    hashed = run.features.ids == "hashed"
    used = [what if hashed else f"{rows - 1:,} {what}" for what, (width, rows) in tables.items() if width]
    return f", ids of {' and '.join(used)}" if used else ""


def task_section(
    task: TaskEntry, kind: TaskKind, comparison: Comparison, found: dict[str, Any], split: str, pen: Pen
) -> dict[str, Any]:
    """Everything the page says about one task on one split."""
    main = kind.reported[:2]
    entry = found["splits"][split]["tasks"][task.name]
    best = tables.references(kind.reported, entry)
    notes = {baseline: by_task[task.name] for baseline, by_task in found["notes"].items() if task.name in by_task}
    return _table(task, kind, found["splits"][split]) | {
        "verdicts": tables.verdicts(best, entry),
        "covered": entry.get("gauc_covered"),
        "lists": entry.get("lists"),
        "matches": kind.matches,
        "slices": tables.slice_rows(main, entry),
        "slice_metrics": [tables.metric_title(metric) for metric in main],
        "references": {tables.metric_title(metric): tables.baseline_title(name) for metric, name in best.items()},
        "notes": {tables.baseline_title(baseline): note for baseline, note in notes.items()},
        "figures": _task_figures(task, "calibration" in kind.reported, comparison, pen),
    }


def _table(task: TaskEntry, kind: TaskKind, split: dict[str, Any]) -> dict[str, Any]:
    entry, names = split["tasks"][task.name], kind.reported
    others = {name: by_task[task.name] for name, by_task in split["baselines"].items() if task.name in by_task}
    return {
        "name": task.name,
        "kind": task.kind,
        "n": entry["n"],
        "users": entry["users"],
        "positives": entry.get("positives"),
        "main": tables.metric_title(names[0]),
        "columns": [tables.column_title(name) for name in names],
        "rows": tables.comparison_rows(names, entry, others),
    }


def _task_figures(task: TaskEntry, calibrated: bool, comparison: Comparison, pen: Pen) -> list[dict[str, Any]]:
    """Labels 0 and 1: ROC, and calibration of scores that are probabilities; numbers: predicted against actual, and
    errors; others have tables only."""
    if task.labels not in ("binary", "number"):
        return []
    labels = comparison.rows.labels[task.name]
    weights = comparison.rows.weights
    observed = ~np.isnan(labels) if weights is None else ~np.isnan(labels) & (weights > 0)
    labels, weights = labels[observed], None if weights is None else weights[observed]
    columns = {
        tables.MODEL: comparison.rows.scores,
        **{tables.baseline_title(n): s for n, s in comparison.baselines.items()},
    }
    if task.labels == "binary" and len(np.unique(labels)) < 2:
        return []
    scores = {title: column[task.name][observed] for title, column in columns.items() if task.name in column}
    varied = {title: column for title, column in scores.items() if np.ptp(column) > 0} if len(labels) else {}
    if not varied:
        return []
    if task.labels == "binary":
        roc = pen.draw(
            figures.roc(labels, varied, weights),
            f"ROC of {task.name}",
            "The higher above the diagonal, the better the ranking; the area below a curve is its AUC.",
        )
        if not calibrated:
            return [roc]
        calibration = pen.draw(
            figures.calibration(labels, varied, weights, "rate"),
            f"Calibration of {task.name}",
            "Tenths of the rows by score. On the dashed line a score is the share of positives it promises; "
            "below it, the score promises too much.",
        )
        return [roc, calibration]
    return [
        pen.draw(
            figures.calibration(labels, varied, weights, "value"),
            f"Predicted and actual {task.name}",
            "Tenths of the rows by prediction. On the dashed line predictions are right on average; the longer the "
            "line, the more the model tells apart.",
        ),
        pen.draw(
            figures.residuals(labels, varied, weights),
            f"Errors of {task.name}",
            "How often an error of each size occurs; narrow and centred on zero is good.",
        ),
    ]


def curves(log: TrainingLog, kinds: Sequence[TaskKind], pen: Pen) -> list[dict[str, Any]]:
    """Train losses, and each validation metric with the tasks that have it."""
    found = []
    losses = {key.removeprefix("loss/"): line for key, line in log.series("train", "loss/").items()}
    if losses:
        caption = "Loss per task on the train rows of each log interval. Falling is good; tasks have different floors."
        found.append(pen.draw(figures.learning_curves(losses, "train loss"), "Train loss", caption))
    found += _between_tasks(log, pen)
    names = dict.fromkeys(name for kind in kinds for name in kind.reported)
    tasks = [kind.task.name for kind in kinds]
    valid = log.series("valid", "")
    for name in names:
        lines = {task: valid[f"{task}/{name}"] for task in tasks if f"{task}/{name}" in valid}
        if lines:
            title = tables.metric_title(name) + (f" of {next(iter(lines))}" if len(lines) == 1 else "")
            caption = "At each evaluation, on the validation rows; where it turns for the worse, overfitting begins."
            found.append(pen.draw(figures.learning_curves(lines, title), f"Validation {title}", caption))
    return found


BETWEEN = {
    "cosine/": (
        "Conflict between tasks",
        "cosine",
        "Cosine between the gradients of two tasks at the candidate's representation, where all towers begin. Below 0 "
        "what helps one task hurts the other.",
    ),
    "balance/": (
        "Weights of the balance method",
        "weight",
        "What the method multiplies each task with, beside the task's own weight; 1 is the plain sum.",
    ),
    "factor/": (
        "Weights steered by validation",
        "factor",
        "What each task's own weight is multiplied with; main tasks keep 1. Validation rows take part in training by "
        "this, so validation figures are slightly optimistic.",
    ),
    "agreement/": (
        "Agreement with validation",
        "cosine",
        "Cosine between a task's gradient on train rows and that of the main tasks on validation rows, at the last "
        "layer that all share. Above 0 a task helps the main ones and gains weight.",
    ),
    "gate/": (
        "Use of experts",
        "share",
        "How much of each expert the gates let through, by `<gate>/<expert>`.",
    ),
}


def _between_tasks(log: TrainingLog, pen: Pen) -> list[dict[str, Any]]:
    found = []
    for prefix, (title, label, caption) in BETWEEN.items():
        lines = {key.removeprefix(prefix): line for key, line in log.series("train", prefix).items()}
        if lines:
            found.append(pen.draw(figures.learning_curves(lines, label), title, caption))
    return found


def _speed(throughput: dict[str, float | None]) -> dict[str, str]:
    """Titles and texts of the speeds that were measured."""
    titles = {
        "candidates_per_s": ("candidates / s", "{:,.0f}"),
        "tokens_per_s": ("tokens / s", "{:,.0f}"),
        "ingest_wait_share": ("time waiting for data", "{:.1%}"),
    }
    known = {name: value for name, value in throughput.items() if value is not None}
    return {title: text.format(known[name]) for name, (title, text) in titles.items() if name in known}
