import math

import pytest
import torch

from mtrec_ray.multitask.losses import Objective, label_counts, loss_sum
from mtrec_ray.tasks import KINDS
from tests.batches import TASKS, make_manifest, make_run, make_steps
from tests.training import backward, distance, make_engine, make_objective

NAN = float("nan")
LIKE, STARS, KIND = TASKS


def gradients(*overrides: str, batches=None, tasks=TASKS):
    engine = make_engine(make_run(*overrides), manifest=make_manifest(tasks))
    backward(
        engine,
        batches or make_steps(1, tasks=len(tasks))[0].batches,
        make_objective(make_run(*overrides), make_manifest(tasks)),
    )
    return engine.gradients()


def shared(found):
    """Gradients of what all tasks share."""
    return {name: value for name, value in found.items() if not name.startswith("towers.")}


def test_counts_are_observed_labels_per_task() -> None:
    labels = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, 2.0]])
    assert label_counts(labels).tolist() == [1, 0, 2]
    assert label_counts(labels[:0]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_only_observed_rows_count(task) -> None:
    outputs = KINDS[task.kind].outputs(task)
    logits = torch.randn(4, outputs, requires_grad=True)
    labels = torch.tensor([1.0, NAN, 0.0, NAN])
    total = loss_sum(task, logits, labels)
    expected = KINDS[task.kind].loss(logits[[0, 2]], labels[[0, 2]], task).sum()
    torch.testing.assert_close(total, expected)
    total.backward()
    assert logits.grad is not None
    assert logits.grad[[1, 3]].abs().sum() == 0
    assert logits.grad[[0, 2]].abs().sum() > 0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_in_float64_gradients_are_finite_differences_of_the_loss(task) -> None:
    logits = torch.randn(4, KINDS[task.kind].outputs(task), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, NAN, 0.0, 2.0 if task.kind == "multiclass" else 1.0])
    assert torch.autograd.gradcheck(lambda x: loss_sum(task, x, labels), logits)


def test_the_loss_is_a_sum_of_means_over_the_whole_step() -> None:
    objective = Objective(TASKS[:2], {"like": 2.0, "stars": 0.5})
    scales = objective.scales(torch.tensor([4.0, 10.0], dtype=torch.float64))
    assert objective.loss(torch.tensor([8.0, 5.0]), scales).item() == pytest.approx(2 * 8 / 4 + 0.5 * 5 / 10)


def test_a_task_without_labels_gives_zero_and_no_nan() -> None:
    batches = make_steps(1)[0].batches
    batches[0].labels[:, 1] = NAN
    found = gradients(batches=batches)
    assert all(torch.isfinite(value).all() for value in found.values())
    own = [value for name, value in found.items() if name.startswith("towers.1.")]
    assert own
    assert all(value.abs().sum() == 0 for value in own)


def test_a_task_without_labels_adds_zero_to_the_loss() -> None:
    objective = Objective(TASKS[:2], {"like": 1.0, "stars": 1.0})
    scales = objective.scales(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert objective.loss(torch.tensor([2.0, 0.0]), scales).item() == 2


def test_a_step_without_any_label_gives_zero() -> None:
    batches = make_steps(1)[0].batches
    batches[0].labels[:] = NAN
    assert all(value.abs().sum() == 0 for value in gradients(batches=batches).values())


def test_weight_zero_equals_removing_the_task() -> None:
    weightless = shared(gradients("tasks.kind.weight=0"))
    removed = shared(gradients(tasks=TASKS[:2]))
    assert distance(weightless, removed) < 1e-6


def test_weight_zero_ignores_even_an_infinite_loss() -> None:
    objective = Objective(TASKS[:2], {"like": 1.0, "stars": 0.0})
    scales = objective.scales(torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert objective.loss(torch.tensor([3.0, math.inf]), scales).item() == 3


def test_doubling_a_weight_doubles_that_tasks_gradient() -> None:
    others = ("tasks.stars.weight=0", "tasks.kind.weight=0")
    once, twice = gradients("tasks.like.weight=1", *others), gradients("tasks.like.weight=2", *others)
    assert distance(twice, {name: 2 * value for name, value in once.items()}) < 1e-6


def test_gradients_of_tasks_add_up() -> None:
    alone = [
        shared(gradients(*(f"tasks.{name}.weight=0" for name in ("like", "stars", "kind") if name != kept)))
        for kept in ("like", "stars", "kind")
    ]
    added = {name: sum(part[name] for part in alone) for name in alone[0]}
    assert distance(added, shared(gradients())) < 1e-6
