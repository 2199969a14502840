import pytest

from mtrec_ray.train.guards import Guard
from mtrec_ray.train.stopping import Stopping

AUC = Guard("like/auc", 1, loses_at_most=0.01)
RMSE = Guard("stars/rmse", -1, loses_at_most=0.1)
FLOOR = Guard("like/auc", 1, no_worse_than=0.8)
CEILING = Guard("stars/rmse", -1, no_worse_than=1.0)


def follow(patience: int | None, *metrics: float) -> Stopping:
    state = Stopping(patience)
    for step, metric in enumerate(metrics, 1):
        state = state.after(metric, step)
    return state


def guarded(guard: Guard, *evaluations: tuple[float, float], patience: int | None = None) -> Stopping:
    """After evaluations of (metric, guarded metric)."""
    state = Stopping(patience, guards=(guard,))
    for step, (metric, value) in enumerate(evaluations, 1):
        state = state.after(metric, step, {guard.metric: value})
    return state


def test_keeps_the_best() -> None:
    state = follow(2, 0.5, 0.7, 0.6)
    assert (state.best, state.best_step, state.stop) == (0.7, 2, False)


def test_stops_when_patience_ends() -> None:
    assert follow(2, 0.7, 0.6, 0.7).stop  # equal is not better
    assert not follow(2, 0.7, 0.6, 0.8, 0.1).stop


def test_without_patience_it_never_stops() -> None:
    assert not follow(None, 0.9, *([0.1] * 50)).stop


def test_nan_is_never_best() -> None:
    state = follow(1, float("nan"))
    assert state.best is None
    assert state.stop


@pytest.mark.parametrize(
    ("guard", "good", "passes", "fails"),
    [(AUC, 0.85, 0.841, 0.839), (RMSE, 0.9, 0.99, 1.01), (FLOOR, 0.85, 0.8, 0.799), (CEILING, 0.9, 1.0, 1.001)],
)
def test_the_best_metric_counts_only_where_the_guard_passes(guard, good, passes, fails) -> None:
    """Worse is lower for AUC, higher for RMSE."""
    assert guarded(guard, (0.5, good), (0.6, passes)).best_step == 2
    state = guarded(guard, (0.5, good), (0.6, fails))
    assert (state.best, state.best_step, state.waited, state.problem) == (0.5, 1, 1, None)


def test_an_absolute_guard_does_not_move_with_the_best_so_far() -> None:
    assert guarded(FLOOR, (0.5, 0.99), (0.6, 0.81)).best_step == 2
    assert guarded(AUC, (0.5, 0.99), (0.6, 0.81)).best_step == 1


def test_of_two_limits_the_stricter_holds() -> None:
    both = Guard("like/auc", 1, loses_at_most=0.1, no_worse_than=0.8)
    assert both.limit(0.95) == pytest.approx(0.85)
    assert both.limit(0.85) == 0.8
    both = Guard("stars/rmse", -1, loses_at_most=0.1, no_worse_than=1.0)
    assert both.limit(0.8) == pytest.approx(0.9)
    assert both.limit(0.95) == 1.0


def test_all_guards_must_pass() -> None:
    state = Stopping(None, guards=(AUC, RMSE))
    state = state.after(0.5, 1, {"like/auc": 0.85, "stars/rmse": 0.9})
    assert state.after(0.6, 2, {"like/auc": 0.85, "stars/rmse": 1.2}).best_step == 1
    assert state.after(0.6, 2, {"like/auc": 0.75, "stars/rmse": 0.9}).best_step == 1
    assert state.after(0.6, 2, {"like/auc": 0.85, "stars/rmse": 0.9}).best_step == 2


def test_the_best_is_judged_again_when_a_guarded_metric_gets_better() -> None:
    """The second has the higher metric, but the third has shown that it gave up .04 of the guarded one."""
    state = guarded(AUC, (0.5, 0.80), (0.7, 0.81), (0.6, 0.85))
    assert (state.best, state.best_step, state.waited) == (0.6, 3, 0)
    assert guarded(FLOOR, (0.5, 0.80), (0.7, 0.81), (0.6, 0.85)).best_step == 2


def test_where_none_passes_the_one_that_misses_by_least_is_kept_and_explained() -> None:
    state = guarded(FLOOR, (0.9, 0.70), (0.5, 0.76), (0.8, 0.75), (0.4, 0.76))
    assert (state.best, state.best_step, state.waited) == (0.5, 2, 2)
    assert state.problem == (
        "train.guards: no evaluation held them all; kept are the weights of step 2, which miss by least: like/auc is "
        "0.76, its best was 0.76, and it may be no worse than 0.8. Raise tasks.like.weight, or loosen "
        "train.guards.like/auc."
    )
    assert state.after(0.1, 5, {"like/auc": 0.8}).problem is None


def test_of_several_guards_the_largest_share_of_a_limit_counts() -> None:
    """.1 of a limit of .8 is more than .1 of a limit of 1; so the second, which misses the other guard, is better."""
    state = Stopping(None, guards=(FLOOR, CEILING))
    state = state.after(0.5, 1, {"like/auc": 0.7, "stars/rmse": 1.0})
    state = state.after(0.5, 2, {"like/auc": 0.8, "stars/rmse": 1.1})
    assert state.best_step == 2
    assert state.after(0.5, 3, {"like/auc": 0.79, "stars/rmse": 1.11}).best_step == 2


def test_a_limit_of_zero_has_no_shares() -> None:
    assert Guard("stars/bias", -1, no_worse_than=0.0).miss(0.25, 0.1) == 0.25


def test_patience_counts_evaluations_that_are_not_better_under_the_guards() -> None:
    assert guarded(FLOOR, (0.5, 0.85), (0.6, 0.7), (0.7, 0.7), patience=2).stop
    assert not guarded(FLOOR, (0.5, 0.85), (0.6, 0.7), (0.7, 0.81), patience=2).stop


def test_nan_and_guards() -> None:
    state = guarded(FLOOR, (float("nan"), 0.9), (0.5, 0.7))
    assert (state.best, state.best_step) == (0.5, 2)
