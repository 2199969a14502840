import pytest

from mtrec_ray.errors import ConfigError, UserError
from mtrec_ray.search.objectives import Objective
from mtrec_ray.search.select import Selection, candidates, select
from tests.search.searches import AUC, FINISH, search_run, trial

FRONT = [trial(0, 0.60, 0.80), trial(1, 0.79, 0.78), trial(2, 0.80, 0.60), trial(3, 0.70, 0.70)]


def chosen(records, rule: str, *settings: str, objectives=(AUC, FINISH)) -> Selection:
    return select(records, objectives, search_run(f"tune.select={rule}", *settings).tune)


def test_best_takes_the_first_objective_and_says_so() -> None:
    found = chosen(FRONT, "best")
    assert (found.record.number, found.rule) == (2, "best")
    assert found.reason == "Trial 2 has the best like AUC (0.8000) of 4 trials."


def test_best_where_lower_is_better() -> None:
    records = [trial(0, 0.3), trial(1, 0.2), trial(2, 0.5)]
    assert chosen(records, "best", objectives=[Objective("like/auc", -1)]).record.number == 1


def test_of_equal_trials_the_finished_then_the_earlier_is_chosen() -> None:
    records = [trial(0, 0.8, status="stopped"), trial(2, 0.8), trial(1, 0.8)]
    assert chosen(records, "best").record.number == 1
    early = chosen(records[:1], "best")
    assert early.reason.endswith("; it was stopped early, after evaluation 1.")


def test_failed_unfinished_and_incomplete_trials_do_not_count() -> None:
    records = [trial(0, 0.9, status="failed"), trial(1, 0.9, status="running"), trial(2, 0.9, None), trial(3, 0.5)]
    assert [record.number for record in candidates(records, [AUC, FINISH])] == [3]
    assert chosen(records, "best").record.number == 3


def test_the_knee_is_farthest_from_the_line_through_the_ends() -> None:
    found = chosen(FRONT, "knee")
    assert found.record.number == 1
    # scaled to the front's range: ends (0, 1) and (1, 0), the knee (0.95, 0.9)
    assert f"lies {(0.95 + 0.9 - 1) / 2**0.5:.2f} beyond" in found.reason
    assert "like AUC 0.7900, finish AUC 0.7800" in found.reason


def test_the_knee_of_three_objectives_is_farthest_from_the_plane_through_the_ends() -> None:
    objectives = [AUC, FINISH, Objective("mood/accuracy", 1)]
    rows = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0.5), (0.9, 0.05, 0.1)]
    records = [trial(n, a, b) for n, (a, b, _) in enumerate(rows)]
    for record, row in zip(records, rows, strict=True):
        record.reports[0]["mood/accuracy"] = float(row[2])
    assert chosen(records, "knee", objectives=objectives).record.number == 3


def test_a_front_without_a_knee() -> None:
    reason = chosen([FRONT[0], FRONT[2]], "knee").reason
    assert reason.startswith("Trial 2 has the best like AUC (0.8000) of the 2 trials that no other beats in everything")
    assert reason.endswith("; the front has no knee.")
    assert "no trade-off to settle" in chosen([trial(0, 0.8, 0.8), trial(1, 0.7, 0.7)], "knee").reason
    assert chosen([trial(0, 0.2, 1.0), trial(1, 0.3, 0.5), trial(2, 1.0, 0.2)], "knee").record.number == 2  # hollow


def test_weights_are_rates_of_exchange() -> None:
    weights = "tune.select_weights={like/auc: 1, finish/auc: 30}"
    found = chosen(FRONT, "weights", weights)
    assert found.record.number == 0
    assert found.reason.startswith("Trial 0 has the best 1 × like AUC + 30 × finish AUC of 4 trials")
    assert chosen(FRONT, "weights", "tune.select_weights={like/auc: 1, finish/auc: 0}").record.number == 2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{}", "exactly the objectives like/auc, finish/auc; found none"),
        ("{like/auc: 1}", "exactly the objectives like/auc, finish/auc; found like/auc"),
        ("{like/auc: 1, finish/auc: -1}", "expected weights of at least 0"),
        ("{like/auc: 0, finish/auc: 0}", "not all 0"),
    ],
)
def test_unusable_weights_are_refused(weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(FRONT, "weights", f"tune.select_weights={weights}")


def test_guard_takes_the_best_among_those_that_lose_little() -> None:
    found = chosen(FRONT, "guard", "tune.guard=0.03")
    assert found.record.number == 1
    assert "2 trials losing at most 3.0%" in found.reason
    assert "(it loses 2.5%)" in found.reason
    assert chosen(FRONT, "guard", "tune.guard=0.02").record.number == 0
    assert chosen(FRONT, "guard", "tune.guard=1").record.number == 2


def test_guard_that_no_trial_keeps_takes_the_least_loss_and_says_so() -> None:
    objectives = [AUC, FINISH, Objective("mood/accuracy", 1)]
    records = [trial(n, 0.5, finish) for n, finish in enumerate((1.0, 0.5, 0.8))]
    for record, mood in zip(records, (0.4, 1.0, 0.7), strict=True):
        record.reports[0]["mood/accuracy"] = mood
    found = chosen(records, "guard", objectives=objectives)
    assert found.record.number == 2
    assert "30.0% of the best: every trial loses more than the guard of 1.0%" in found.reason


def test_nothing_to_choose_from_tells_the_first_error() -> None:
    with pytest.raises(
        UserError, match=r"No trial of 2 .* like AUC, finish AUC; 1 failed, the first one \(trial 0\) with: lost"
    ):
        chosen([trial(0, 0.9, status="failed"), trial(1, 0.5, status="running")], "best")
    with pytest.raises(UserError, match="--resume"):
        chosen([trial(1, 0.5, status="running")], "best")
