"""Made-up searches: trials with known values, curves and ends."""

import numpy as np

from mtrec_ray import config_file
from mtrec_ray.config import Run
from mtrec_ray.search.objectives import Objective
from mtrec_ray.search.records import TrialRecord

AUC, FINISH = Objective("like/auc", 1), Objective("finish/auc", 1)
LOSS = Objective("like/logloss", -1)
CONFIG = """
name: tuned
data: {logs: logs.csv, columns: {user: user, item: item, time: time}}
tasks:
  like: {label: like, feedback_delay: 0s}
  finish: {label: finish, feedback_delay: 0s}
tune:
  space:
    tasks.like.weight: {loguniform: [0.1, 10]}
    train.learning_rate.towers: {loguniform: [1.0e-4, 1.0e-2]}
    adapter.kind: [lora, frozen]
    adapter.rank: {choice: [2, 4, 8, 16], when: {adapter.kind: lora}}
  objectives: [like/auc, finish/auc]
  select: knee
"""


def search_run(*settings: str) -> Run:
    return config_file.parse(CONFIG, settings)


def report(evaluation: int, like: float | None = None, finish: float | None = None, **others) -> dict:
    metrics = {"like/auc": like, "finish/auc": finish, "metric": like}
    where = {"evaluation": evaluation, "step": 50 * evaluation, "epoch": 0.5 * evaluation}
    cost = {"seconds": 20.0 + 30.0 * evaluation, "accelerator_seconds": 40.0 + 60.0 * evaluation}
    return where | cost | {"startup_seconds": 20.0} | metrics | others


def trial(number: int, like: float | None, finish: float | None = 0.5, status="finished", **values) -> TrialRecord:
    """One that reported once."""
    record = TrialRecord(number, f"t{number}", values or {"train.learning_rate.towers": 1e-3})
    return record.reported(report(1, like, finish)).ended(status, "lost" if status == "failed" else None)


def made_up(trials: int = 24, evaluations: int = 9, seed: int = 0) -> list[TrialRecord]:
    """As a search with successive halving leaves them: the first one the default, two failed, one without an end."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(trials):
        rate, weight = 10 ** rng.uniform(-4, -2), 10 ** rng.uniform(-1, 1)
        values = {"tasks.like.weight": weight, "train.learning_rate.towers": rate, "adapter.kind": "frozen"}
        if number == 0:
            values = {"tasks.like.weight": 1.0, "train.learning_rate.towers": 1e-3, "adapter.kind": "lora"}
        if number % 3 != 1:
            values |= {"adapter.kind": "lora", "adapter.rank": int(rng.choice([2, 4, 8, 16]))}
        found.append(_run_through(TrialRecord(number, f"trial_{number:03d}", values), evaluations, rng))
    return found


def _run_through(record: TrialRecord, evaluations: int, rng: np.random.Generator) -> TrialRecord:
    rate = np.log10(record.values["train.learning_rate.towers"]) + 2.3
    if record.number == 10:
        rate = 4.0  # diverges
    share = np.log10(record.values["tasks.like.weight"])
    like = 0.80 - 0.02 * rate**2 - 0.02 * (share - 1) ** 2 + rng.normal(0, 0.002)
    finish = 0.74 - 0.02 * rate**2 - 0.02 * (share + 1) ** 2 + rng.normal(0, 0.002)
    for evaluation in range(1, evaluations + 1):
        left = 0.12 * np.exp(-0.6 * evaluation)
        record = record.reported(report(evaluation, like - left, finish - left))
        if record.number in (5, 17) and evaluation == 2:
            return record.ended("failed", RuntimeError("The loss of step 61 is not finite\nTraceback ..."))
        if record.number and (record.number % 3, evaluation) in ((1, 1), (2, 3)):
            return record.ended("stopped")
    return record.ended("finished")
