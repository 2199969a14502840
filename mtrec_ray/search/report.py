"""`report.html` and `tune.json` of a search: one self-contained page for whoever chooses, and its figures for programs.

`summary` computes, this module turns figures into words and drawings, the template beside it lays them out.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.config_file import dump
from mtrec_ray.data.filesystem import open_fs, write_atomic
from mtrec_ray.evaluate import page
from mtrec_ray.evaluate.page import Pen, counted
from mtrec_ray.evaluate.provenance import provenance
from mtrec_ray.evaluate.tables import number
from mtrec_ray.search import drawings
from mtrec_ray.search.figures import Roles
from mtrec_ray.search.objectives import Objective
from mtrec_ray.search.records import TrialRecord
from mtrec_ray.search.select import Selection
from mtrec_ray.search.summary import Summary, summarise
from mtrec_ray.search.wording import hours, sampled_paths, seconds, title, value_text

REPORT, SUMMARY = "report.html", "tune.json"
MAX_ROWS = 12
"""Tables with more rows than this are folded."""
STATUSES = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "end not seen"}


def write_report(
    folder: str,
    run: Run,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    selection: Selection | None,
    default: int | None = None,
    config_path: str = "CONFIG",
    facts: Mapping[str, str] | None = None,
) -> Summary:
    """Writes `tune.json`, then `report.html` (so a search with a page is finished); returns what `tune.json` holds.

    Args:
        folder: the search's folder or URL.
        run: the config with `tune`; that of the search, not of a trial.
        records: all trials, by number.
        objectives: the first one colours the parameters and orders the tables.
        selection: the chosen trial; None if none came to an end, then the page tells of the failures.
        default: number of the trial with the config's own values, if there is one.
        config_path: how the user named the config, for the commands that the page shows.
        facts: further lines of "What was run", e.g. how trials were run and why.
    """
    found = summarise(run, records, objectives, selection, default, config_path) | {"run": provenance()}
    filesystem, root = open_fs(folder)
    write_atomic(filesystem, f"{root}/{SUMMARY}", json.dumps(found, indent=1, allow_nan=False).encode())
    write_atomic(filesystem, f"{root}/{REPORT}", render(found, run, facts or {}).encode())
    return found


def render(found: Summary, run: Run, facts: Mapping[str, str]) -> str:
    """The page of a search; `found` is what `tune.json` holds."""
    pen = Pen()
    selected = found["selected"]
    roles = Roles(frozenset(found["front"]), found["default"], selected["trial"] if selected else None)
    ended = [trial for trial in found["trials"] if trial["number"] in found["best_so_far"]["trials"]]
    return page.template("search_report.html.j2", "mtrec_ray.search").render(
        found=found,
        tiles=_tiles(found, run),
        facts=_facts(found, run) | dict(facts),
        chosen=_chosen(found),
        trade_off=drawings.trade_off(found, ended, roles, pen) if ended else [],
        parameters=drawings.parameters(found, ended, run, roles, pen) if ended else [],
        importance=drawings.importance(found, pen),
        course=drawings.course(found, roles, pen),
        cost=_cost(found["cost"]),
        unit=_unit(run),
        trials=_trials(found, roles),
        objective_titles=[title(objective["name"], arrow=True) for objective in found["objectives"]],
        paths=sampled_paths(found["trials"]),
        failed=[trial for trial in found["trials"] if trial["status"] == "failed"],
        fold=len(found["trials"]) > MAX_ROWS,
        config=dump(run),
    )


def _unit(run: Run) -> str:
    return "GPU hours" if run.cluster.gpus_per_worker else "CPU hours"


def _tiles(found: Summary, run: Run) -> list[dict[str, str]]:
    """Best per objective, how many trials came to what end, what they cost."""
    by_number = {trial["number"]: trial for trial in found["trials"]}
    tiles = [_best_tile(objective, found, by_number.get(found["default"])) for objective in found["objectives"]]
    if found["hypervolume"]:
        volume, on = number(found["hypervolume"]["value"]), counted(len(found["front"]), "trial", "trials")
        tiles.append(_tile("hypervolume", volume, f"{on} on the front"))
    ends = ", ".join(f"{count} {text}" for status, text in STATUSES.items() if (count := found["counts"][status]))
    total = found["cost"]
    return [
        *tiles,
        _tile("trials", str(len(found["trials"])), ends),
        _tile(_unit(run), hours(total["accelerator_seconds"]), f"{seconds(total['seconds'])} in all trials"),
    ]


def _tile(name: str, value: str, note: str, chip: str = "", tone: str = "") -> dict[str, str]:
    return {"title": name, "value": value, "note": note, "chip": chip, "tone": tone}


def _best_tile(objective: dict[str, Any], found: Summary, default: dict[str, Any] | None) -> dict[str, str]:
    """The best value, with its difference to the config as it was."""
    name, best = f"best {title(objective['name'])}", found["best"].get(objective["name"])
    if best is None:
        return _tile(name, "–", "no trial has a value")
    before = default["objectives"][objective["name"]] if default else None
    if before is None or best["trial"] == found["default"]:
        note = "the config as it was" if best["trial"] == found["default"] else f"trial {best['trial']}"
        return _tile(name, number(best["value"]), note)
    gain = best["value"] - before
    tone = "better" if gain * objective["sign"] > 0 else "even"
    note = f"trial {best['trial']} against the {_as_it_was(default)}"
    return _tile(name, number(best["value"]), note, number(gain, signed=True), tone)


def _as_it_was(default: dict[str, Any] | None) -> str:
    """What the trial with the config's own values is called; where it was stopped, its figures are too low."""
    if default is None or default["status"] != "stopped":
        return "config as it was"
    return f"config as it was, stopped at evaluation {default['evaluations']}"


def _facts(found: Summary, run: Run) -> dict[str, str]:
    tune = run.tune
    workers = counted(run.cluster.workers, "worker", "workers")
    rule = tune.select + (f" {tune.guard:g}" if tune.select == "guard" else "")
    limits = [f"{tune.trials} trials"]
    limits += [seconds(tune.time_limit)] if tune.time_limit else []
    limits += [f"{tune.accelerator_hours:g} {_unit(run)}"] if tune.accelerator_hours else []
    return {
        "objectives": ", ".join(title(objective["name"], arrow=True) for objective in found["objectives"])
        + ", on the validation split",
        "search": f"{tune.searcher}, scheduler {tune.scheduler}, at most {', '.join(limits)}; seed {run.seed}",
        "space": "; ".join(f"{path}: {json.dumps(given, ensure_ascii=False)}" for path, given in tune.space.items()),
        "trials": f"{tune.mode}, {workers} each",
        "selection": rule,
    }


def _chosen(found: Summary) -> dict[str, Any] | None:
    """The chosen trial beside the config as it was: values, then objectives."""
    if not found["selected"]:
        return None
    by_number = {trial["number"]: trial for trial in found["trials"]}
    trial, default = by_number[found["selected"]["trial"]], by_number.get(found["default"])
    default = None if default is trial else default
    values = [
        (path, value_text(value), value_text(default["values"].get(path)) if default else "")
        for path, value in trial["values"].items()
    ]
    return found["selected"] | {
        "number": trial["number"],
        "before": _as_it_was(default) if default else None,
        "values": values,
        "objectives": [_compared(objective, trial, default) for objective in found["objectives"]],
    }


def _compared(objective: dict[str, Any], trial: dict[str, Any], default: dict[str, Any] | None) -> dict[str, str]:
    value, before = (
        trial["objectives"][objective["name"]],
        default["objectives"][objective["name"]] if default else None,
    )
    row = {"title": title(objective["name"], arrow=True), "value": number(value), "before": "–", "gain": "", "tone": ""}
    if before is not None:
        gain = (value - before) * objective["sign"]
        tone = "better" if gain > 0 else "worse" if gain < 0 else "even"
        row |= {"before": number(before), "gain": number(value - before, signed=True), "tone": tone}
    return row


def _cost(cost: dict[str, Any]) -> list[dict[str, str]]:
    parts = {STATUSES[status]: part for status, part in cost["by_status"].items()}
    parts |= {"all trials": cost} if len(parts) > 1 else {}
    return [_cost_row(name, part) for name, part in parts.items()]


def _cost_row(name: str, part: dict[str, Any]) -> dict[str, str]:
    return {
        "name": name,
        "trials": str(part["trials"]),
        "evaluations": f"{part['evaluations']:,}",
        "seconds": seconds(part["seconds"]),
        "startup": seconds(part["startup_seconds"]),
        "steps": seconds(part["step_seconds"]),
        "hours": hours(part["accelerator_seconds"]),
        "each": hours(part["accelerator_seconds"] / part["trials"]),
    }


def _trials(found: Summary, roles: Roles) -> list[dict[str, Any]]:
    """All trials, the best of the first objective first; those without a value last."""
    first = found["objectives"][0]
    paths = sampled_paths(found["trials"])

    def place(trial: dict[str, Any]) -> tuple[bool, float, int]:
        value = trial["objectives"][first["name"]]
        return value is None, -first["sign"] * (value or 0.0), trial["number"]

    return [
        {
            "number": trial["number"],
            "role": _role(trial["number"], roles),
            "status": STATUSES[trial["status"]],
            "objectives": ["–" if value is None else number(value) for value in trial["objectives"].values()],
            "evaluations": trial["evaluations"],
            "seconds": seconds(trial["seconds"]),
            "startup": seconds(trial["startup_seconds"]),
            "steps": seconds(trial["step_seconds"]),
            "hours": hours(trial["accelerator_seconds"]),
            "values": [value_text(trial["values"].get(path)) for path in paths],
        }
        for trial in sorted(found["trials"], key=place)
    ]


def _role(trial: int, roles: Roles) -> str:
    if trial == roles.chosen:
        return "chosen"
    if trial == roles.default:
        return "as it was"
    return "front" if trial in roles.front and len(roles.front) > 1 else ""
