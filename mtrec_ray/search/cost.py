"""What a search may cost: counted before it starts, in time as soon as one evaluation has been measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.search import wording


@dataclass(frozen=True)
class Cost:
    """Of the trials that have not ended yet."""

    run: Run
    trials: int
    at_a_time: int
    evaluations: int
    """Of a trial that nothing stops"""
    tokens: int
    """That such a trial reads to train"""

    @property
    def expected(self) -> float:
        """Evaluations of all trials. `asha`: if at each rung one in `tune.reduction` goes on; the others: at most."""
        tune = self.run.tune
        if tune.scheduler != "asha":
            return float(self.trials * self.evaluations)
        spent, left, before, rung = 0.0, float(self.trials), 0, tune.grace
        while rung < self.evaluations:
            spent += left * (rung - before)
            before, left, rung = rung, left / tune.reduction, rung * tune.reduction
        return spent + left * (self.evaluations - before)

    def before(self) -> str:
        """What is known without any training."""
        text = f"{self.trials} trials, {self.at_a_time} at a time, each {self.evaluations} evaluations and "
        text += f"{self.tokens:.3g} tokens at most"
        if self.run.tune.scheduler == "asha":
            share = self.expected / (self.trials * self.evaluations)
            text += f"; asha ends most of them early (about {share:.0%} of it all)"
        return text

    def by(self, report: Mapping[str, Any]) -> str:
        """What it comes to in time if all evaluations cost what those of this report did (`search.records.Report`)."""
        done, startup = report["evaluation"], report.get("startup_seconds") or 0.0
        wall = self.expected / self.at_a_time * (report["seconds"] - startup) / done
        spent = self.expected * report["accelerator_seconds"] / done
        what = "GPU" if self.run.cluster.gpus_per_worker else "CPU"
        cost = f"about {wording.seconds(wall)} and {wording.hours(spent)} {what} hours"
        limits = [
            f"tune.{name} ends it sooner"
            for name, limit, needed in (
                ("time_limit", self.run.tune.time_limit, wall),
                ("accelerator_hours", self.run.tune.accelerator_hours, spent / 3600),
            )
            if limit is not None and limit < needed
        ]
        return "; ".join([f"By its first evaluation the search takes {cost}", *limits])
