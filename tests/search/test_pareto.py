import numpy as np
import pytest

from mtrec_ray.search.pareto import Box, best_values, far_off, hypervolume, hypervolume_history, non_dominated
from tests.search.searches import AUC, FINISH, LOSS, report, trial

UP = np.array([1.0, 1.0])


def test_the_front_of_two_objectives_of_opposite_direction() -> None:
    values = np.array([[0.8, 0.5], [0.7, 0.4], [0.7, 0.6], [0.9, 0.9], [0.9, 1.0]])
    assert non_dominated(values, np.array([1, -1])).tolist() == [True, True, False, True, False]


def test_of_equal_trials_one_stands_for_all_and_nan_for_none() -> None:
    values = np.array([[np.nan, 9], [1, 1], [2, 2], [2, 2], [np.inf, 0], [0, 3]])
    assert non_dominated(values, UP).tolist() == [False, False, True, False, False, True]
    assert not non_dominated(np.full((3, 2), np.nan), UP).any()


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_front_is_what_its_definition_says(objectives: int) -> None:
    values = np.random.default_rng(objectives).integers(0, 5, (60, objectives)).astype(float)
    signs = np.array([1, -1, 1, -1])[:objectives]
    gain = [tuple(row) for row in values * signs]
    beaten = [
        any(all(b >= a for a, b in zip(mine, other, strict=True)) and other != mine for other in gain) for mine in gain
    ]
    expected = [not lost and gain.index(mine) == n for n, (mine, lost) in enumerate(zip(gain, beaten, strict=True))]
    assert non_dominated(values, signs).tolist() == expected


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_what_counting_cells_gives(objectives: int) -> None:
    """On a grid of k cells a side, a dominated cell is one below some point in every coordinate."""
    k, rng = 6, np.random.default_rng(objectives)
    box = Box(np.zeros(objectives), np.ones(objectives))
    for rows in (1, 2, 7, 15):
        points = rng.integers(0, k + 1, (rows, objectives))
        cells = np.stack(np.meshgrid(*[np.arange(k)] * objectives), axis=-1).reshape(-1, objectives)
        covered = (cells[:, None] < points[None]).all(axis=2).any(axis=1).mean()
        assert hypervolume(points / k, np.ones(objectives), box) == pytest.approx(covered, abs=1e-12)


def test_hypervolume_by_hand_with_directions() -> None:
    box = Box(reference=np.array([0.5, 2.0]), ideal=np.array([1.0, 1.0]))
    values = np.array([[0.75, 1.0], [1.0, 1.5], [0.6, 1.9], [0.2, 1.0]])
    assert hypervolume(values, np.array([1, -1]), box) == pytest.approx(0.5 + 0.5 - 0.25)


def test_the_box_leaves_out_far_values_and_incomplete_rows() -> None:
    values = np.array([[0.6, 1.0], [0.8, 2.0], [0.7, 1.5], [0.7, np.nan], [0.65, 1.2], [0.75, 1.8], [-90.0, 1.4]])
    box = Box.of(values, UP)
    assert box.ideal.tolist() == [0.8, 2.0]
    np.testing.assert_allclose(box.reference, [0.6 - 0.02, 1.0 - 0.1])
    assert Box.of(np.full((2, 2), np.nan), UP) is None
    assert far_off(values[[0, 1, 2, 4, 5, 6], 0]).tolist() == [False] * 5 + [True]


def test_one_trial_best_in_everything_fills_the_box_and_a_constant_objective_counts_nothing() -> None:
    values = np.array([[0.1, 0.3], [0.2, 0.3], [0.4, 0.3]])
    box = Box.of(values, UP)
    assert hypervolume(values, UP, box) == 1.0
    assert hypervolume(values[:2], UP, box) == pytest.approx((0.2 - 0.07) / 0.33)


def test_the_history_ends_at_the_whole_and_never_falls() -> None:
    values = np.random.default_rng(0).random((30, 3))
    values[4] = np.nan
    signs = np.array([1, -1, 1])
    box = Box.of(values, signs)
    history = hypervolume_history(values, signs, box)
    assert history == pytest.approx([hypervolume(values[: n + 1], signs, box) for n in range(30)])
    assert (np.diff(history) >= 0).all()
    assert history[0] < history[-1] < 1


def test_values_are_of_one_report_that_with_the_best_first_objective() -> None:
    record = trial(0, 0.7, 0.9).reported(report(2, 0.8, 0.6)).reported(report(3, 0.75, 0.95))
    assert best_values([record], [AUC, FINISH]).tolist() == [[0.8, 0.6]]
    assert best_values([record], [FINISH, AUC]).tolist() == [[0.95, 0.75]]
    assert np.isnan(best_values([record], [AUC, LOSS])).all()
    assert best_values([], [AUC]).shape == (0, 1)
