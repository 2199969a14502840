import pytest

from mtrec_ray.search.cost import Cost
from tests.search.searches import report, search_run


def cost(*settings: str, evaluations: int = 9) -> Cost:
    return Cost(search_run(*settings), trials=27, at_a_time=4, evaluations=evaluations, tokens=3_000_000)


def test_all_evaluations_are_expected_but_those_that_asha_saves() -> None:
    assert cost("tune.scheduler=none").expected == 27 * 9
    assert cost("tune.scheduler=asha").expected == 27 * 1 + 9 * (3 - 1) + 3 * (9 - 3)
    assert cost("tune.scheduler=asha", "tune.grace=2", "tune.reduction=4").expected == 27 * 2 + 27 / 4 * 6 + 27 / 16


def test_what_is_said_before_the_start() -> None:
    assert cost("tune.scheduler=none").before() == "27 trials, 4 at a time, each 9 evaluations and 3e+06 tokens at most"
    assert cost("tune.scheduler=asha").before().endswith("asha ends most of them early (about 26% of it all)")


def test_one_evaluation_tells_the_time_of_all() -> None:
    """Each took 30 s after a start-up of 20 s, and 100 accelerator seconds."""
    first = report(1) | {"seconds": 50.0, "startup_seconds": 20.0, "accelerator_seconds": 100.0}
    said = cost("tune.scheduler=none").by(first)
    assert said == "By its first evaluation the search takes about 30.4 min and 6.75 CPU hours"
    assert pytest.approx(30.4, abs=0.05) == 27 * 9 / 4 * 30 / 60
    assert 27 * 9 * 100 / 3600 == 6.75


def test_a_budget_that_is_smaller_is_named() -> None:
    first = report(1) | {"seconds": 50.0, "startup_seconds": 20.0, "accelerator_seconds": 100.0}
    said = cost("tune.scheduler=none", "tune.time_limit=20m", "tune.accelerator_hours=7").by(first)
    assert said.endswith("CPU hours; tune.time_limit ends it sooner")
