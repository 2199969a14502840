from dataclasses import replace

import numpy as np
import pytest

from mtrec_ray.search.importance import MIN_TRIALS, importance
from tests.search.searches import AUC, FINISH, report, trial


def searched(count: int = 24, noise: float = 0.001):
    """AUC depends on the learning rate, and on the rank where the adapter has one; never on the weight."""
    rng, found = np.random.default_rng(1), []
    for number in range(count):
        rate, weight = rng.uniform(-4, -2), rng.uniform(0.1, 10)
        values = {"rate": 10**rate, "weight": weight, "kind": "lora" if number % 2 else "frozen"}
        values |= {"rank": int(rng.choice([2, 16]))} if number % 2 else {}
        auc = 0.8 - 0.05 * (rate + 3) + 0.01 * (values.get("rank") == 16) + rng.normal(0, noise)
        found.append(trial(number, auc, rng.random(), **values))
    return found


def test_what_matters_is_found_and_shares_sum_to_one() -> None:
    found = importance(searched(), [AUC])
    assert found.reason is None
    assert found.explained > 0.5
    assert next(iter(found.shares)) == "rate"
    assert found.shares["rate"] > 0.7
    assert found.shares["weight"] < 0.1
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares.keys() == found.spread.keys() == {"rate", "weight", "kind", "rank"}
    assert (found.trials, found.evaluation, found.objective) == (24, 1, "like/auc")
    assert importance(searched(), [AUC]) == found


def test_nothing_is_claimed_of_noise() -> None:
    found = importance(searched(), [AUC, FINISH], of=1)
    assert found.shares == {}
    assert "cannot be predicted from their parameters" in found.reason
    assert found.explained < 0.05


def test_too_few_trials_and_what_does_not_vary() -> None:
    assert (
        importance(searched(MIN_TRIALS - 1), [AUC]).reason == "7 trials have a value of like/auc; at least 8 are needed"
    )
    assert importance([], [AUC]).reason.startswith("0 trials")
    assert importance([trial(n, 0.5, rate=n) for n in range(9)], [AUC]).reason == "like/auc is the same in all trials"
    same = [trial(n, 0.1 * n, rate=1, kind="lora") for n in range(9)]
    assert importance(same, [AUC]).reason == "no parameter differs between the trials"


def test_trials_are_compared_at_an_evaluation_that_enough_of_them_reached() -> None:
    records = searched(16)
    later = [replace(r, status="finished").reported(report(2, 0.99)).ended("finished") for r in records[:4]]
    early = [r.ended("stopped") for r in records[4:]]
    found = importance([*later, *early], [AUC])
    assert (found.evaluation, found.trials) == (1, 16)
    assert found.shares == importance(records, [AUC]).shares
