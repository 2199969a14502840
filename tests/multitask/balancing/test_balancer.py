"""Balance methods in the training loop, on one rank."""

import pytest
import torch

from mtrec_ray.multitask.balancing import METHODS
from tests.batches import make_steps
from tests.multitask.balancing.training import by_hand, run_of, train, whole_steps
from tests.training import distance

MEMORYLESS = sorted(
    name for name in METHODS.names() if METHODS[name].learns == "nothing" and METHODS[name].reads != "nothing"
)
LEARNING = sorted(name for name in METHODS.names() if METHODS[name].learns != "nothing")


@pytest.mark.parametrize("method", ["sum", *MEMORYLESS])
def test_each_method_is_the_few_lines_of_autograd(method: str) -> None:
    run = run_of(method)
    looped, expected = train(run, whole_steps(3)), by_hand(run, whole_steps(3))
    for found, reference in zip(looped["gradients"], expected, strict=True):
        assert distance(found, reference) < 1e-5


SOONER = {"dwa": {"window": 1}, "gradnorm": {"first_steps": 1}}
"""Methods that else begin only after a while."""


@pytest.mark.parametrize("method", [name for name in METHODS.names() if name != "sum"])
def test_each_method_changes_the_training(method: str) -> None:
    settings = ("tasks.stars.weight=10", "seed=2")  # tasks that fight, else dualproj has nothing to do
    plain = train(run_of("sum", *settings), whole_steps(8))
    balanced = train(run_of(method, *settings, **SOONER.get(method, {})), whole_steps(8))
    assert distance(balanced["parameters"], plain["parameters"]) > 1e-6


@pytest.mark.parametrize("method", LEARNING)
def test_methods_that_learn_have_learned_after_some_steps(method: str) -> None:
    run = run_of(method, **SOONER.get(method, {}))
    before, after = train(run, whole_steps(1))["memory"], train(run, whole_steps(4))["memory"]
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_measuring_conflict_changes_nothing() -> None:
    watched = train(run_of("sum", "train.log_every=1"), whole_steps(3))
    unwatched = train(run_of("sum", "balance.conflict=false"), whole_steps(3))
    assert distance(watched["parameters"], unwatched["parameters"]) < 1e-6
    assert all(gramian is not None for gramian in watched["gramian"])
    assert all(gramian is None for gramian in unwatched["gramian"])


def test_conflict_is_measured_at_logged_steps_alone() -> None:
    found = train(run_of("sum", "train.log_every=2"), whole_steps(5))
    assert [gramian is not None for gramian in found["gramian"]] == [False, True, False, True, True]


@pytest.mark.parametrize("method", ["sum", "uncertainty", "stch", "famo"])
def test_the_measured_gramian_is_that_of_the_plain_sum_whatever_multiplies_the_losses(method: str) -> None:
    """In the first step all methods have the same model."""
    plain, other = (train(run_of(name, "train.log_every=1"), whole_steps(1)) for name in ("sum", method))
    torch.testing.assert_close(other["gramian"][0], plain["gramian"][0], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("method", ["cagrad", "stch", "db_mtl", "dwa", "mgda", "gls"])
def test_with_the_step_as_the_unit_accumulation_changes_nothing(method: str) -> None:
    run = run_of(method, "balance.scope=step")
    whole = train(run, make_steps(3, tokens=True))
    parts = train(run, make_steps(3, tokens=True, micro_steps=8))
    for a, b in zip(whole["gradients"], parts["gradients"], strict=True):
        assert distance(a, b) < 1e-5
    torch.testing.assert_close(torch.stack(parts["balance"]), torch.stack(whole["balance"]), rtol=1e-3, atol=1e-6)


def test_with_one_micro_step_both_scopes_are_the_same() -> None:
    step, micro = (
        train(run_of("pcgrad", f"balance.scope={scope}"), whole_steps(2)) for scope in ("step", "micro_step")
    )
    assert distance(step["gradients"][1], micro["gradients"][1]) < 1e-6


def test_with_micro_steps_as_units_accumulation_changes_the_step() -> None:
    run = run_of("mgda")
    whole, parts = train(run, make_steps(1, tokens=True)), train(run, make_steps(1, tokens=True, micro_steps=4))
    assert distance(whole["gradients"][0], parts["gradients"][0]) > 1e-3


def test_famo_is_told_the_losses_after_the_update() -> None:
    """Without an update losses do not fall, and its numbers only decay: from zero, not at all."""
    still = "train.learning_rate={adapters: 0.0, towers: 0.0, tables: 0.0}"
    memory = train(run_of("famo", still), whole_steps(3))["memory"]["values"]
    assert memory.abs().max() < 1e-12
    assert train(run_of("famo"), whole_steps(3))["memory"]["values"].abs().max() > 1e-3


def test_a_task_of_weight_zero_takes_no_part() -> None:
    found = train(run_of("mgda", "tasks.kind.weight=0", "train.log_every=1"), whole_steps(1))
    assert found["gramian"][0][2].abs().sum() == 0
    two = train(run_of("mgda", "tasks.kind.weight=0"), whole_steps(1))
    assert all(torch.isfinite(value).all() for value in two["gradients"][0].values())


@pytest.mark.parametrize("method", ["sum", "upgrad", "mgda", "pcgrad", "dualproj"])
def test_planted_conflict_hurts_under_the_sum_and_under_no_balanced_update(method: str) -> None:
    """Two frozen towers that read z alike, labels that are each other's opposite, and one task that
    weighs ten times the other: what is good for one is bad for the other, and only the tables can be trained.

    What no task loses by at z it may lose by through what is trained below: from other first weights these methods
    cost the small task up to a twentieth of what the sum costs it. From these they cost it nothing."""
    (step,) = make_steps(1, tokens=True, requests=16)
    (batch,) = step.batches
    batch.labels[:, 0] = batch.row_ids % 2
    batch.labels[:, 1] = 3.5 - 2 * (batch.labels[:, 0] - 0.5)
    batch.labels[:, 2] = float("nan")
    overrides = (
        "tasks.stars.weight=10",
        "towers={z_dim: 4, hidden: [], dropout: 0}",
        "features.dropout=0",
        "features.id_dropout=0",
        "train.learning_rate={adapters: 0.0, towers: 0.0, tables: 2.0}",
        "seed=2",
    )

    def alike(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(value) if name.startswith("towers.") and name.endswith("out.weight") else value

    losses = train(run_of(method, *overrides), [step] * 30, with_backbone=False, start=alike)["losses"]
    like, stars = (float(losses[-1][t] - losses[0][t]) for t in (0, 1))
    if method == "sum":
        assert like > 0.003
        assert stars < -0.003
    else:
        assert like <= 1e-6
        assert stars <= 1e-6
