"""The figures of a search as plain values, ready for JSON: what `tune.json` holds and the page shows."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import yaml

from mtrec_ray.config import Run
from mtrec_ray.search import pareto
from mtrec_ray.search.importance import importance
from mtrec_ray.search.objectives import Objective, best_report
from mtrec_ray.search.pareto import Box
from mtrec_ray.search.records import CONFIG, TRIALS, Status, TrialRecord
from mtrec_ray.search.select import Selection, candidates

Summary = dict[str, Any]


def summarise(
    run: Run,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    selection: Selection | None,
    default: int | None,
    config_path: str,
) -> Summary:
    """Everything that is known of a search but its provenance; see `report.write_report` for the arguments."""
    kept = sorted(candidates(records, objectives), key=lambda record: record.number)
    values, signs = pareto.best_values(kept, objectives), pareto.signs(objectives)
    front = pareto.non_dominated(values, signs)
    return {
        "name": run.name,
        "objectives": [{"name": objective.name, "sign": int(objective.sign)} for objective in objectives],
        "counts": {status: sum(record.status == status for record in records) for status in get_args(Status)},
        "default": default,
        "selected": _selected(run, selection, config_path),
        "best": _best(kept, values, objectives),
        "front": [record.number for record, on in zip(kept, front, strict=True) if on],
        "hypervolume": _hypervolume(kept, values, objectives) if len(objectives) > 1 else None,
        "best_so_far": _best_so_far(kept, values[:, 0], int(objectives[0].sign)),
        "rungs": rungs(records),
        "importance": [asdict(importance(records, objectives, m, run.seed)) for m in range(len(objectives))],
        "cost": cost(records),
        "trials": [_trial(record, objectives) for record in records],
    }


def command(run: Run, record: TrialRecord, config_path: str) -> str:
    """The command that trains a trial's config as a run of its own."""
    settings = {"name": f"{run.name}-trial-{record.name}"} | record.values
    return " ".join(
        ["mtrec train", shlex.quote(config_path)]
        + [f"--set {shlex.quote(f'{path}={_as_yaml(value)}')}" for path, value in settings.items()]
    )


def rungs(records: Sequence[TrialRecord]) -> list[dict[str, int]]:
    """Per evaluation how many trials `reached` it, how many went `on` from there, and how the others ended there."""
    reached = [record for record in records if record.evaluations]
    found = []
    for evaluation in range(1, max((record.evaluations for record in reached), default=0) + 1):
        ended = Counter(record.status for record in reached if record.evaluations == evaluation)
        on = sum(record.evaluations > evaluation for record in reached)
        by_status = {status: ended[status] for status in get_args(Status)}
        found.append({"evaluation": evaluation, "reached": on + ended.total(), "on": on} | by_status)
    return found


def cost(records: Sequence[TrialRecord]) -> dict[str, Any]:
    """Sums over all trials and per status; start-up and steps apart where every trial that reported tells them."""
    by_status = {status: [record for record in records if record.status == status] for status in get_args(Status)}
    return _sums(records) | {"by_status": {status: _sums(part) for status, part in by_status.items() if part}}


def _sums(records: Sequence[TrialRecord]) -> dict[str, Any]:
    startups = [record.startup_seconds for record in records if record.reports]
    told = [startup for startup in startups if startup is not None]
    known = bool(told) and len(told) == len(startups)
    seconds = sum(record.seconds for record in records)
    return {
        "trials": len(records),
        "evaluations": sum(record.evaluations for record in records),
        "seconds": seconds,
        "startup_seconds": sum(told) if known else None,
        "step_seconds": seconds - sum(told) if known else None,
        "accelerator_seconds": sum(record.accelerator_seconds for record in records),
    }


def _trial(record: TrialRecord, objectives: Sequence[Objective]) -> dict[str, Any]:
    best, startup = best_report(objectives, record.reports), record.startup_seconds
    return {
        "number": record.number,
        "trial_id": record.trial_id,
        "status": record.status,
        "error": record.error,
        "config": f"{TRIALS}/{record.name}/{CONFIG}",
        "values": record.values,
        "objectives": {objective.name: best[objective.key] if best else None for objective in objectives},
        "evaluations": record.evaluations,
        "best_evaluation": best["evaluation"] if best else None,
        "seconds": record.seconds,
        "startup_seconds": startup,
        "step_seconds": None if startup is None else record.seconds - startup,
        "accelerator_seconds": record.accelerator_seconds,
        "curve": {
            objective.name: [[report["evaluation"], report.get(objective.key)] for report in record.reports]
            for objective in objectives
        },
    }


def _selected(run: Run, selection: Selection | None, config_path: str) -> dict[str, Any] | None:
    if selection is None:
        return None
    return {
        "trial": selection.record.number,
        "rule": selection.rule,
        "reason": selection.reason,
        "command": command(run, selection.record, config_path),
    }


def _best(kept: Sequence[TrialRecord], values: np.ndarray, objectives: Sequence[Objective]) -> dict[str, Any]:
    """Per objective the trial with the best value; of equal ones the earliest."""
    if not kept:
        return {}
    rows = [int(np.argmax(values[:, m] * objective.sign)) for m, objective in enumerate(objectives)]
    return {
        objective.name: {"trial": kept[row].number, "value": float(values[row, m])}
        for m, (objective, row) in enumerate(zip(objectives, rows, strict=True))
    }


def _hypervolume(
    kept: Sequence[TrialRecord], values: np.ndarray, objectives: Sequence[Objective]
) -> dict[str, Any] | None:
    signs = pareto.signs(objectives)
    box = Box.of(values, signs)
    if box is None:
        return None
    history = pareto.hypervolume_history(values, signs, box)
    names = [objective.name for objective in objectives]
    return {
        "value": history[-1],
        "reference": dict(zip(names, box.reference.tolist(), strict=True)),
        "ideal": dict(zip(names, box.ideal.tolist(), strict=True)),
        "trials": [record.number for record in kept],
        "history": history,
    }


def _best_so_far(kept: Sequence[TrialRecord], values: np.ndarray, sign: int) -> dict[str, list[Any]]:
    history = (sign * np.maximum.accumulate(sign * values)).tolist() if len(values) else []
    return {"trials": [record.number for record in kept], "values": values.tolist(), "history": history}


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
