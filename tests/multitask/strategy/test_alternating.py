from collections import Counter

import pytest
import torch

from mtrec_ray.multitask.strategy.alternating import task_factors

WEIGHTS = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
LABELS = [800, 150, 999, 50]
STEPS = 3000


def chosen(turns, steps=range(STEPS), seed: int = 0) -> list[int]:
    found = [task_factors(turns, WEIGHTS, LABELS, seed, step, STEPS) for step in steps]
    assert all(factors is not None and factors.sum() == 1 for factors in found)
    return [int(factors.argmax()) for factors in found]


def test_joint_training_leaves_the_weights_alone() -> None:
    assert task_factors("joint", WEIGHTS, LABELS, 0, 5, STEPS) is None


def test_round_robin_takes_the_tasks_with_a_weight_in_turn() -> None:
    assert chosen("round_robin", range(7)) == [0, 1, 3, 0, 1, 3, 0]


def test_tasks_are_drawn_by_their_labels() -> None:
    counts = Counter(chosen("proportional"))
    assert counts[2] == 0
    assert [counts[t] / STEPS for t in (0, 1, 3)] == pytest.approx([0.8, 0.15, 0.05], abs=0.02)


def test_annealing_ends_nearly_equal() -> None:
    drawn = chosen("annealed")
    early, late = Counter(drawn[:300]), Counter(drawn[-300:])
    flat = torch.tensor([800.0, 150, 50]) ** 0.2
    assert [late[t] / 300 for t in (0, 1, 3)] == pytest.approx((flat / flat.sum()).tolist(), abs=0.08)
    assert early[0] / 300 == pytest.approx(0.8, abs=0.08)


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    assert chosen("proportional", range(50)) == chosen("proportional", range(50))
    assert chosen("proportional", range(50), seed=1) != chosen("proportional", range(50))
