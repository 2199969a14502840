"""The same eight trials carried out in five ways: wall time by start-up and steps, memory, and the same metrics.

    python benchmarks/search.py [--minutes 1] [--json search.json]

The ways: `mtrec tune` with a training job per trial, (i) one after another or (ii) as many at a time as there are
processors, or with all trials stacked on one backbone copy, (iii) with adapters on all layers or (iv) on the top 2,
where they share the layers below; and (v) a loop over `train.worker.fit` in one process that loads the backbone once.
Every way has a process of its own, whose whole life is its wall time, and one thread per training. The data is prepared
before. The trials are a grid, nothing stops them early, and each is evaluated twice.

A minute of training is as many steps as (v) does in one, so all ways do the same steps, and a trial's last metric must
be the same in all of them, or the benchmark fails. Other lengths are computed from what was measured (start-up,
evaluations, pace of the steps), and are marked so. Then a longer list of random trials, stacked as in (iv), is carried
out with ASHA and without: how long until the best metric is there.

Whole searches cannot take turns: the machine must be idle for the hour and more that this takes.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from sampled import machine
from ways import LAYERS, STACK, TOP, WAYS, Sample

from mtrec_ray.progress import say
from mtrec_ray.search.records import read_records

EVALUATIONS, ASHA_EVALUATIONS = 2, 9
CALIBRATION_STEPS = 120
USERS = 400
"""Of the sample, for each minute: an epoch must be longer than the steps from one evaluation to the next."""
METRIC, COMPARED_METRICS = "click/auc", ("click/auc", "click/logloss")
TOLERANCE = 1e-3
"""Of a trial's last metrics between two ways, and of what counts as the best metric reached."""
STEP_TARGETS = {"iii": 1.2, "iv": 2.0}
"""Least trial-steps/s over those of (v)."""
WALL_TARGET, WALL_MINUTES = 3.0, 5.0
"""Least wall time of (i) over that of (iv), at so many minutes of training per trial."""
QUICK_GRID = {"tasks.like.weight": {"choice": [1.0, 3.0]}}
GRID = {"train.learning_rate.adapters": {"choice": [1e-4, 2e-4, 3e-4, 5e-4]}, **QUICK_GRID}
RANDOM = {
    "train.learning_rate.adapters": {"loguniform": [1e-5, 3e-3]},
    "train.learning_rate.towers": {"loguniform": [1e-5, 1e-2]},
    "train.learning_rate.tables": {"loguniform": [1e-5, 1e-2]},
    "tasks.like.weight": {"loguniform": [0.1, 10.0]},
}
TITLES = {"all": f"LoRA on all {LAYERS} layers", "top": f"LoRA on the top {TOP} of {LAYERS} layers"}
ADAPTERS = {"all": (), "top": (f"adapter.top_layers={TOP}",)}
COMPARED = {"all": ("v", "iii", "i", "ii"), "top": ("v", "iv", "i")}
"""In the order in which they are measured."""


def main() -> None:
    arguments = parsed()
    project = [minutes for minutes in arguments.project if minutes not in arguments.minutes]
    result: dict[str, Any] = {"quick": arguments.quick, "tables": []}
    with tempfile.TemporaryDirectory(prefix="mtrec-search-") as folder:
        bench = Bench(folder, arguments)
        result["step"] = bench.sample.facts
        for part in arguments.parts:
            for minutes in arguments.minutes[:1] if part == "asha" else arguments.minutes:
                found = bench.asha(minutes) if part == "asha" else bench.compare(part, minutes, project)
                result["tables"].append(found)
                arguments.json.write_text(json.dumps(result, indent=2) + "\n")  # what there is, if a later one fails
                (print_asha if part == "asha" else print_table)(found)
    print()
    for name, value in bench.sample.facts.items():
        print(f"{name}: {value:.1f}")
    if arguments.quick:
        print("--quick: none of these figures means anything")
    check_equal(result["tables"])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0], help="of training per trial, measured")
    parser.add_argument("--project", type=float, nargs="*", default=[5.0, 15.0], help="the same, computed")
    parser.add_argument("--parts", nargs="+", choices=(*TITLES, "asha"), default=[*TITLES, "asha"])
    parser.add_argument("--asha-trials", type=int, default=24, help=f"random trials, {STACK} at a time")
    parser.add_argument("--batch-requests", type=int, default=1, help="requests in a step, one micro-batch")
    parser.add_argument("--quick", action="store_true", help="a few steps of a tiny model: whether it runs")
    parser.add_argument("--json", type=Path, default=Path("search.json"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.project, arguments.asha_trials = [0.005], [], 3
    return arguments


class Bench:
    """Searches on one sample."""

    def __init__(self, folder: str, arguments: argparse.Namespace) -> None:
        users = math.ceil(USERS * max(1.0, *arguments.minutes) * arguments.batch_requests)
        self.sample = Sample.make(folder, users, arguments.batch_requests, arguments.quick)
        self._grid = searching("grid", QUICK_GRID if arguments.quick else GRID)
        self._asha_trials = arguments.asha_trials
        self._paces: dict[str, float] = {}

    def compare(self, part: str, minutes: float, project: list[float]) -> dict[str, Any]:
        """All ways with the adapter of this part."""
        steps, length = self.sample.length(self._steps(part, minutes), EVALUATIONS)
        found = {"part": part, "minutes": minutes, "steps": steps, "machine": machine()}
        ways = {}
        for key in COMPARED[part]:
            ways[key] = self._carry_out(key, f"{part}-{key}-{steps}", (*ADAPTERS[part], *self._grid, *length))
            ways[key]["computed_wall_s"] = {f"{other:g}": wall(ways[key], other / minutes) for other in project}
        return {
            **found,
            "ways": dict(sorted(ways.items())),
            "ratios": ratios(ways, minutes, project),
            "largest_differences": largest_differences(ways),
        }

    def asha(self, minutes: float) -> dict[str, Any]:
        """Random trials, stacked with a shared trunk, without a scheduler and with ASHA."""
        steps, length = self.sample.length(self._steps("top", minutes), ASHA_EVALUATIONS)
        found = {"part": "asha", "minutes": minutes, "steps": steps, "machine": machine()}
        trials = (*searching("random", RANDOM), f"tune.trials={self._asha_trials}")
        ways = {}
        for scheduler in ("none", "asha"):
            name, settings = f"scheduler-{scheduler}-{steps}", (*ADAPTERS["top"], *trials, *length)
            carried = self._carry_out("iv", name, (*settings, f"tune.scheduler={scheduler}"))
            records = read_records(self.sample.search(name))
            ways[scheduler] = {
                **{key: carried[key] for key in ("wall_s", "trials", "trial_steps", "reports")},
                "accelerator_s": sum(record.accelerator_seconds for record in records),
                "stopped": sum(record.status == "stopped" for record in records),
                "best": max(report[METRIC] for trial in carried["reports"] for report in trial),
            }
        wanted = ways["none"]["best"] - TOLERANCE
        for way in ways.values():
            times = [one["at"] for trial in way["reports"] for one in trial if one[METRIC] >= wanted]
            way["until_best_s"] = min(times, default=None)
        return {**found, "ways": ways}

    def _steps(self, part: str, minutes: float) -> int:
        """How many steps (v) does in `minutes`, by a short trial."""
        if part not in self._paces:
            _, length = self.sample.length(CALIBRATION_STEPS, EVALUATIONS)
            settings = (*ADAPTERS[part], *self._grid, *length)
            carried = self.sample.carry_out(WAYS["v"], f"{part}-calibration", settings, most=1)
            self._paces[part] = carried["trial_steps_per_s"]
        return max(2 * ASHA_EVALUATIONS, round(60 * minutes * self._paces[part]))

    def _carry_out(self, key: str, name: str, settings: tuple[str, ...]) -> dict[str, Any]:
        say(f"{name}: {WAYS[key].name}")
        carried = self.sample.carry_out(WAYS[key], name, settings)
        say(f"{name}: {carried['wall_s']:.0f} s, {carried['trial_steps_per_s']:.1f} trial-steps/s")
        return carried


def searching(searcher: str, space: dict[str, Any]) -> tuple[str, ...]:
    return f"tune.searcher={searcher}", f"tune.space={json.dumps(space)}"


def largest_differences(ways: dict[str, Any]) -> dict[str, float]:
    """Between two ways, of a trial's last metrics."""
    found = {}
    for metric in COMPARED_METRICS:
        by_trial = zip(*([trial[-1][metric] for trial in way["reports"]] for way in ways.values()), strict=True)
        found[metric] = max(max(values) - min(values) for values in by_trial)
    return found


def check_equal(tables: list[dict[str, Any]]) -> None:
    """Ends with an error if a trial came to another metric in one way than in another."""
    compared = [table for table in tables if table["part"] in TITLES]
    wrong = [TITLES[one["part"]] for one in compared if max(one["largest_differences"].values()) > TOLERANCE]
    if wrong:
        raise SystemExit(f"the ways do not come to the same metrics: {', '.join(wrong)}")


def wall(way: dict[str, Any], times: float) -> float:
    """Seconds of the search with so many times the steps, all else as it was."""
    return float(way["startup_s"] + way["evaluations_s"] + times * way["steps_s"])


def ratios(ways: dict[str, Any], minutes: float, project: list[float]) -> list[dict[str, Any]]:
    """What was found, beside what is promised."""
    stacked = "iii" if "iii" in ways else "iv"
    found: list[tuple[str, float, float | None]] = []
    steps_per_s = {key: way["trial_steps_per_s"] for key, way in ways.items()}
    found.append((f"trial-steps/s, ({stacked}) / (v)", steps_per_s[stacked] / steps_per_s["v"], STEP_TARGETS[stacked]))
    for one in (minutes, *project):
        what = f"wall time at {one:g} min{', computed' if one != minutes else ''}, (i) / ({stacked})"
        target = WALL_TARGET if (stacked, one) == ("iv", WALL_MINUTES) else None
        found.append((what, wall(ways["i"], one / minutes) / wall(ways[stacked], one / minutes), target))
    if "ii" in ways:
        # As many processes as a stack has trials, each like the largest; what they share is there once.
        apart = STACK * ways["ii"]["own_mib"] + ways["ii"]["shared_mib"]
        together = ways["iii"]["own_mib"] + ways["iii"]["shared_mib"]
        found.append((f"memory of training, {STACK} processes computed from (ii) / (iii)", apart / together, None))
    return [{"what": what, "ratio": ratio, "at_least": target} for what, ratio, target in found]


def print_table(table: dict[str, Any]) -> None:
    ways = table["ways"]
    print(f"\n{TITLES[table['part']]}: {ways['v']['trials']} trials of {table['steps']} steps", end="")
    print(f" ({table['minutes']:g} min of training) each; {table['machine']}")
    lengths = "".join(f"{f'{minutes} min':>10}" for minutes in ways["v"]["computed_wall_s"])
    computed = f"   computed:{lengths}" if lengths else ""
    print(f"{'':<40}{'start-up':>10}{'evaluate':>10}{'steps':>8}{'wall s':>8}{'steps/s':>9}{computed}")
    for key, way in ways.items():
        times = f"{way['startup_s']:>10.0f}{way['evaluations_s']:>10.0f}{way['steps_s']:>8.0f}{way['wall_s']:>8.0f}"
        walls = "".join(f"{seconds:>10.0f}" for seconds in way["computed_wall_s"].values())
        print(f"{f'({key}) {WAYS[key].name}':<40}{times}{way['trial_steps_per_s']:>9.1f}{'':>12}{walls}")
    print(f"\n{'MiB':<40}{'training process, its own':>28}{'shareable':>11}{'all processes':>15}")
    for key, way in ways.items():
        memory = f"{way['own_mib']:>28.0f}{way['shared_mib']:>11.0f}{way['all_processes_mib']:>15.0f}"
        print(f"{f'({key}) {WAYS[key].name}':<40}{memory}")
    print()
    for ratio in table["ratios"]:
        target = f", at least {ratio['at_least']:g}" if ratio["at_least"] else ""
        print(f"{ratio['what']}: {ratio['ratio']:.2f}{target}")
    for metric, difference in table["largest_differences"].items():
        print(f"a trial's last {metric} differs between two ways by {difference:.1e}, at most {TOLERANCE:g}")


ASHA_ROWS = {
    "wall_s": "wall time, s",
    "until_best_s": "until the best metric, s",
    "accelerator_s": "accelerator seconds",
    "trial_steps": "steps of all trials",
    "stopped": "trials stopped",
    "best": "best click/auc",
}
RATIO_ROWS = ("wall_s", "until_best_s", "accelerator_s", "trial_steps")


def print_asha(table: dict[str, Any]) -> None:
    none, asha = table["ways"]["none"], table["ways"]["asha"]
    print(f"\n{none['trials']} random trials of {table['steps']} steps, {STACK} at a time as in (iv), ", end="")
    print(f"evaluated {ASHA_EVALUATIONS} times; {table['machine']}")
    print(f"{'':<28}{'no scheduler':>14}{'ASHA':>10}{'ratio':>8}")
    for row, name in ASHA_ROWS.items():
        values = [f"{way[row]:.4g}" if way[row] is not None else "never" for way in (none, asha)]
        ratio = f"{none[row] / asha[row]:.2f}" if row in RATIO_ROWS and asha[row] else ""
        print(f"{name:<28}{values[0]:>14}{values[1]:>10}{ratio:>8}")
    print(f"the best metric: that of the search without a scheduler, less {TOLERANCE:g}")


if __name__ == "__main__":
    main()
