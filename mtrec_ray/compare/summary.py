"""The figures of a comparison as plain values, ready for JSON: what `compare.json` holds and the page shows."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtrec_ray.compare.plan import Plan, Variant, folder_name
from mtrec_ray.compare.results import Result, Results, metric_signs
from mtrec_ray.evaluate.bootstrap import LEVEL
from mtrec_ray.evaluate.paired import CHANCE, RESAMPLES, Change, Term, difference, relative_change

Summary = dict[str, Any]
Line = tuple[list[float], list[float]]
LOGGED = ("cosine", "balance", "gate")
"""What the training log may say of the tasks beside their losses: keys `cosine/<a>~<b>`, `balance/<task>` and
`gate/<task>/<expert>`."""
MAX_POINTS = 300
"""Of a line over steps."""


def summarise(plan: Plan, results: Results, resamples: int = RESAMPLES) -> Summary:
    """Everything that is known of a comparison but its provenance."""
    return {
        "name": plan.run.name,
        "split": results.split,
        "seeds": list(plan.seeds),
        "resamples": resamples,
        "level": LEVEL,
        "tasks": [_task(plan, results, task) for task in plan.metrics],
        "variants": [
            {"name": variant.name, "task": variant.task, "values": variant.values, "seeds": list(results.of(variant))}
            for variant in plan.variants
        ],
        "values": {variant.name: _values(plan, results, variant) for variant in plan.variants},
        "differences": {joint.name: _differences(plan, results, joint) for joint in plan.joint},
        "relative_change": {joint.name: _relative(plan, results, joint) for joint in plan.joint},
        "cost": {
            "variants": {variant.name: _cost(results, variant) for variant in plan.variants},
            "all_alone": _all_alone(plan, results),
        },
        "conflict": {joint.name: _conflict(results, joint) for joint in plan.joint},
        "baselines": _baselines(plan, results),
        "runs": [_run(results, variant, seed) for variant, seed in plan.trainings()],
    }


def tone(change: dict[str, Any], sign: int) -> str:
    """`better`, `worse`, `even` (the interval holds 0), or `unknown` without an interval."""
    if change["interval"] is None:
        return "unknown"
    low, high = sorted(sign * end for end in change["interval"])
    return "better" if low > 0 else "worse" if high < 0 else "even"


def _task(plan: Plan, results: Results, task: str) -> dict[str, Any]:
    kind = plan.run.tasks[task].kind
    signs = metric_signs(kind)
    main = plan.metrics[task]
    ordered = {main: signs[main]} | signs
    return {"name": task, "kind": kind, "metric": main, "metrics": ordered} | results.counts.get(task, {})


def _values(plan: Plan, results: Results, variant: Variant) -> dict[str, dict[str, Any]]:
    """Task -> metric -> the value of each seed that came to its end, and their mean."""
    runs = results.of(variant)
    tasks = [variant.task] if variant.task else list(plan.metrics)
    return {
        task: {
            name: _averaged([run.measured[task][name].value for run in runs.values()]) for name in _names(plan, task)
        }
        for task in tasks
    }


def _averaged(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {"seeds": values, "mean": float(np.mean(known)) if known and len(known) == len(values) else None}


def _differences(plan: Plan, results: Results, joint: Variant) -> dict[str, dict[str, Any]]:
    """Task -> metric -> what the joint training changes, over the seeds that have both."""
    found: dict[str, dict[str, Any]] = {}
    for task in plan.metrics:
        alone, together = results.of(plan.alone(task)), results.of(joint)
        pairs = [(alone[seed], together[seed]) for seed in plan.seeds if seed in alone and seed in together]
        signs = metric_signs(plan.run.tasks[task].kind)
        found[task] = {}
        for name in _names(plan, task) if pairs else ():
            change = difference([(first.measured[task][name], second.measured[task][name]) for first, second in pairs])
            found[task][name] = _plain(change, [first.seed for first, _ in pairs], signs[name])
    return found


def _relative(plan: Plan, results: Results, joint: Variant) -> dict[str, Any]:
    """The average over the tasks, over the seeds in which all of them came to their end; None: in none, or no need."""
    runs = {task: results.of(plan.alone(task)) for task in plan.metrics}
    together = results.of(joint)
    seeds = [seed for seed in plan.seeds if seed in together and all(seed in found for found in runs.values())]
    ranked = any(metric in CHANCE for metric in plan.metrics.values())

    def over(floor: Callable[[str], float]) -> dict[str, Any] | None:
        if not seeds:
            return None
        terms = [[_term(plan, task, runs[task][seed], together[seed], floor) for task in runs] for seed in seeds]
        return _plain(relative_change(terms), seeds, 1)

    return {
        "of_metric": over(lambda metric: 0.0),
        "above_chance": over(lambda metric: CHANCE.get(metric, 0.0)) if ranked else None,
    }


def _term(plan: Plan, task: str, alone: Result, together: Result, floor: Callable[[str], float]) -> Term:
    metric = plan.metrics[task]
    sign = metric_signs(plan.run.tasks[task].kind)[metric]
    return Term(alone.measured[task][metric], together.measured[task][metric], sign, floor(metric))


def _plain(change: Change, seeds: Sequence[int], sign: int) -> dict[str, Any]:
    found = {"mean": change.mean, "interval": change.interval and list(change.interval)}
    return found | {"seeds": change.seeds, "of_seeds": list(seeds), "tone": tone(found, sign)}


def _cost(results: Results, variant: Variant) -> dict[str, Any] | None:
    """Means over the seeds that came to their end; memory is the most of any."""
    costs = [result.cost for result in results.of(variant).values()]
    if not costs:
        return None
    means = {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}
    return means | {
        "peak_memory_mib": max(cost["peak_memory_mib"] for cost in costs),
        "trained_parameters": int(costs[0]["trained_parameters"]),
    }


def _all_alone(plan: Plan, results: Results) -> dict[str, Any] | None:
    """What the tasks' own models cost together: N trainings, one after the other, and N models."""
    costs = [_cost(results, plan.alone(task)) for task in plan.metrics]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    return {
        "models": len(known),
        "steps": sum(cost["steps"] for cost in known),
        "seconds": sum(cost["seconds"] for cost in known),
        "peak_memory_mib": max(cost["peak_memory_mib"] for cost in known),
        "trained_parameters": sum(cost["trained_parameters"] for cost in known),
    }


def _conflict(results: Results, joint: Variant) -> dict[str, Any]:
    """Lines over steps, mean over seeds; and each pair's cosine, mean over steps too. Empty: it was not logged."""
    lines = {name: _lines(list(results.of(joint).values()), f"{name}/") for name in LOGGED}
    means = {key: float(np.mean(values)) for key, (_, values) in lines["cosine"].items()}
    return {"cosines": means, "lines": {name: _thinned(found) for name, found in lines.items()}}


def _lines(runs: Sequence[Result], prefix: str) -> dict[str, Line]:
    values: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for key, (steps, logged) in run.log.series("train", prefix).items():
            for step, value in zip(steps, logged, strict=True):
                values[key.removeprefix(prefix)][step].append(value)
    return {
        key: (sorted(by_step), [float(np.mean(by_step[step])) for step in sorted(by_step)])
        for key, by_step in values.items()
    }


def _thinned(lines: dict[str, Line]) -> dict[str, list[list[float]]]:
    thinned = {}
    for key, (steps, values) in lines.items():
        keep = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).astype(int))
        thinned[key] = [[steps[n] for n in keep], [values[n] for n in keep]]
    return thinned


def _baselines(plan: Plan, results: Results) -> dict[str, dict[str, dict[str, float | None]]]:
    """Baseline -> task -> metric, from the one run that computed them."""
    found = next((result.baselines for result in results.finished if result.baselines), {})
    return {
        baseline: {
            task: {name: tasks[task].get(name) for name in _names(plan, task)} for task in plan.metrics if task in tasks
        }
        for baseline, tasks in found.items()
    }


def _run(results: Results, variant: Variant, seed: int) -> dict[str, Any]:
    run = {"variant": variant.name, "seed": seed, "folder": folder_name(variant.slug, seed)}
    error = results.failures.get((variant.name, seed))
    if error is not None:
        return run | {"status": "failed", "error": error}
    return run | {"status": "finished", "error": None} | results.of(variant)[seed].cost


def _names(plan: Plan, task: str) -> list[str]:
    return list(metric_signs(plan.run.tasks[task].kind))
