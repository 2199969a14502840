import math

import pytest
import torch

from mtrec_ray.multitask.losses import Objective
from tests.batches import TASKS, make_batch, make_manifest, make_request, make_run, make_steps
from tests.training import backward, distance, make_engine, make_objective

NAN = float("nan")
NAMES = [task.name for task in TASKS]


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


def random_logits(candidates: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    kinds = make_objective(make_run()).kinds
    return {k.task.name: torch.randn(candidates, k.outputs, dtype=dtype, requires_grad=True) for k in kinds}


def two_tasks(like: float, stars: float) -> Objective:
    return make_objective(
        make_run(f"tasks.like.weight={like}", f"tasks.stars.weight={stars}"), make_manifest(TASKS[:2])
    )


def test_counts_are_observed_labels_per_task() -> None:
    batch = make_batch([make_request(0), make_request(1)])
    objective = make_objective(make_run())
    assert objective.counts(batch).tolist() == (~batch.labels.isnan()).sum(0).tolist()
    assert objective.counts(make_batch([])).tolist() == [0, 0, 0]


def test_a_labels_weight_counts_in_the_sum_and_in_what_it_is_divided_by() -> None:
    batch, objective = make_batch([make_request(number) for number in range(4)]), make_objective(make_run())
    logits = random_logits(batch.num_candidates)
    like = batch.labels[:, 0]
    weighted = batch.label_weights.clone()
    weighted[like == 1, 0] = 3.0
    plain = objective.row_losses([logits], batch, 0)
    batch.label_weights.copy_(weighted)
    assert objective.counts(batch)[0] == (~like.isnan()).sum() + 2 * (like == 1).sum()
    torch.testing.assert_close(objective.row_losses([logits], batch, 0), torch.where(like == 1, 3 * plain, plain))


@pytest.mark.parametrize("t", range(len(TASKS)), ids=NAMES)
def test_only_observed_rows_count(t: int) -> None:
    batch, objective = make_batch([make_request(number) for number in range(6)]), make_objective(make_run())
    observed = ~batch.labels[:, t].isnan()
    logits = random_logits(batch.num_candidates)
    total = objective.loss_sums([logits], batch)[t]
    kind = objective.kinds[t]
    torch.testing.assert_close(total, kind.loss(logits[NAMES[t]][observed], batch.labels[observed, t]).sum())
    total.backward()
    gradient = logits[NAMES[t]].grad
    assert gradient is not None
    assert gradient[~observed].abs().sum() == 0
    assert gradient[observed].abs().sum(1).gt(0).all()


def test_in_float64_gradients_are_finite_differences_of_the_loss() -> None:
    batch, objective = make_batch([make_request(1), make_request(2)]), make_objective(make_run())
    logits = random_logits(batch.num_candidates, torch.float64)

    def sums(*values: torch.Tensor) -> torch.Tensor:
        return objective.loss_sums([dict(zip(NAMES, values, strict=True))], batch)

    assert torch.autograd.gradcheck(sums, tuple(logits.values()))


def test_each_task_reads_its_own_view() -> None:
    batch, objective = make_batch([make_request(1), make_request(2)]), make_objective(make_run())
    views = [random_logits(batch.num_candidates) for _ in NAMES]
    apart = [objective.loss_sums([view], batch)[t] for t, view in enumerate(views)]
    torch.testing.assert_close(objective.loss_sums(views, batch), torch.stack(apart))


def test_the_loss_is_a_sum_of_means_over_the_whole_step() -> None:
    objective = two_tasks(2.0, 0.5)
    scales = objective.scales(torch.tensor([4.0, 10.0], dtype=torch.float64))
    assert objective.loss(torch.tensor([8.0, 5.0]), scales).item() == pytest.approx(2 * 8 / 4 + 0.5 * 5 / 10)


def test_a_task_without_labels_gives_zero_and_no_nan() -> None:
    batches = make_steps(1)[0].batches
    batches[0].labels[:, 1] = NAN
    found = gradients(batches=batches)
    assert all(torch.isfinite(value).all() for value in found.values())
    own = [value for name, value in found.items() if name.startswith("towers.towers.1.")]
    assert own
    assert all(value.abs().sum() == 0 for value in own)


def test_a_task_without_labels_adds_zero_to_the_loss() -> None:
    objective = two_tasks(1.0, 1.0)
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
    objective = two_tasks(1.0, 0.0)
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
