"""What every method promises, whatever it computes."""

import subprocess
import sys

import pytest
import torch

from mtrec_ray.errors import ConfigError
from mtrec_ray.multitask.balancing import METHODS, Seen
from tests.multitask.balancing.units import (
    NAMES,
    OF_GRAMIAN,
    OF_UNIT,
    WITH_MEMORY,
    after,
    jacobian,
    make,
    random_unit,
    train,
    unit,
)

SHORT = {"dwa": {"window": 2}, "gradnorm": {"first_steps": 2}}
"""Parameters with which a method has something to say after a few steps."""
CHANGED = [
    ("uncertainty", "learning_rate", 0.5),
    ("imtl_l", "learning_rate", 0.5),
    ("dwa", "temperature", 0.5),
    ("dwa", "window", 3),
    ("gradnorm", "alpha", 0.2),
    ("gradnorm", "learning_rate", 0.5),
    ("gradnorm", "first_steps", 4),
    ("famo", "learning_rate", 0.5),
    ("famo", "weight_decay", 0.9),
    ("stch", "mu", 0.1),
    ("db_mtl", "beta", 0.1),
    ("db_mtl", "sigma", 0.1),
    ("gradvac", "beta", 0.9),
    ("cagrad", "c", 0.9),
    ("fairgrad", "alpha", 5.0),
    ("aligned_mtl", "scale", "rmse"),
    ("aligned_mtl", "scale", "median"),
]


def test_all_methods_of_the_design_are_there() -> None:
    assert set(NAMES) == {
        *("sum", "rlw", "uncertainty", "dwa", "gls", "gradnorm", "imtl_l", "stch", "famo", "db_mtl"),
        *("mgda", "pcgrad", "gradvac", "cagrad", "imtl_g", "nash_mtl", "aligned_mtl", "upgrad", "fairgrad", "dualproj"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_float64_and_finite_per_task(name: str) -> None:
    weights = train(make(name), 0, 3).weights(3, random_unit(3))
    assert weights.dtype == torch.float64
    assert weights.shape == (3,)
    assert weights.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_asking_for_weights_changes_nothing(name: str) -> None:
    method = train(make(name, **SHORT.get(name, {})), 0, 5)
    before, seen = method.state(), random_unit(5)
    first = method.weights(5, seen)
    method.weights(5, random_unit(6))
    assert torch.equal(method.weights(5, seen), first)
    assert all(torch.equal(value, before[key]) for key, value in method.state().items())


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_with_the_same_seed_agree(name: str) -> None:
    one, other = (train(make(name, seed=7), 0, 4) for _ in range(2))
    torch.manual_seed(123)  # the other rank's global state is another one
    assert torch.equal(one.weights(4, random_unit(4)), other.weights(4, random_unit(4)))


@pytest.mark.parametrize("name", ["rlw", "pcgrad", "gradvac"])
def test_random_methods_depend_on_the_seed_and_on_the_step(name: str) -> None:
    seen = unit(jacobian(6, width=4))
    draws = [make(name, 6, seed).weights(step, seen) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.allclose(draws[a], draws[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_the_global_random_state_is_left_as_it_was(name: str) -> None:
    before = torch.get_rng_state()
    train(make(name), 0, 2).weights(2, random_unit(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    params = SHORT.get(name, {})
    never_stopped = train(make(name, **params), 0, 9)
    resumed = make(name, **params)
    resumed.load_state(train(make(name, **params), 0, 5).state())
    train(resumed, 5, 9)
    assert torch.equal(resumed.weights(9, random_unit(9)), never_stopped.weights(9, random_unit(9)))


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_what_was_learned_matters(name: str) -> None:
    params = SHORT.get(name, {})
    learned, fresh = train(make(name, **params), 0, 9), make(name, **params)
    assert not torch.allclose(learned.weights(9, random_unit(9)), fresh.weights(9, random_unit(9)))


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_state_that_was_taken_does_not_change_any_more(name: str) -> None:
    method = train(make(name), 0, 3)
    state = method.state()
    copies = {key: value.clone() for key, value in state.items()}
    other = make(name)
    other.load_state(state)
    train(method, 3, 5)
    train(other, 3, 5)
    assert all(torch.equal(value.nan_to_num(), copies[key].nan_to_num()) for key, value in state.items())


@pytest.mark.parametrize("name", NAMES)
def test_only_methods_that_learn_have_a_state(name: str) -> None:
    assert bool(make(name).state()) == (METHODS[name].learns != "nothing")


@pytest.mark.parametrize(("name", "other", "count"), [("famo", "dwa", 3), ("famo", "famo", 4), ("sum", "dwa", 3)])
def test_a_state_that_does_not_fit_is_refused(name: str, other: str, count: int) -> None:
    with pytest.raises(ConfigError, match=r"balance\.method: the checkpoint holds the state"):
        make(name).load_state(make(other, count).state())


@pytest.mark.parametrize("name", OF_UNIT)
def test_a_missing_task_has_weight_one_and_the_others_are_balanced_without_it(name: str) -> None:
    gradients = jacobian(4, seed=3)
    losses = torch.tensor([0.5, 0.9, 0.7, 1.3], dtype=torch.float64)
    kept = [0, 2, 3]
    weights = make(name, 4).weights(0, unit(gradients, losses, missing=(1,)))
    assert weights[1] == 1
    torch.testing.assert_close(weights[kept], make(name, 3).weights(0, unit(gradients[kept], losses[kept])))


@pytest.mark.parametrize("name", [name for name in WITH_MEMORY if name != "dwa"])  # its memory is of whole windows
def test_a_task_that_is_missing_leaves_its_own_memory_as_it_was(name: str) -> None:
    method = train(make(name, 4, **SHORT.get(name, {})), 0, 4)
    before = method.state()
    train(method, 4, 8, missing=(1,))
    now = method.state()
    assert all(torch.equal(now[key][1], before[key][1]) for key in now)
    assert any(not torch.equal(now[key][0], before[key][0]) for key in now)


@pytest.mark.parametrize("name", NAMES)
def test_with_labels_of_one_task_or_none_a_step_still_passes(name: str) -> None:
    method = make(name, **SHORT.get(name, {}))
    for step, missing in enumerate([(0, 2), (0, 1, 2), ()]):
        seen = random_unit(step, missing=missing)
        assert method.weights(step, seen).isfinite().all()
        method.learn(step, seen, after(seen, step))
    assert method.weights(3, random_unit(3)).isfinite().all()


@pytest.mark.parametrize("name", OF_UNIT)
def test_a_unit_with_one_task_has_weights_one(name: str) -> None:
    method = train(make(name), 0, 3)
    assert method.weights(3, unit(jacobian(), missing=(0, 2))).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_with_one_task_has_weight_one(name: str) -> None:
    method = train(make(name, 1, **SHORT.get(name, {})), 0, 6)
    assert method.weights(6, random_unit(6, count=1)).tolist() == [1]


@pytest.mark.parametrize("name", OF_GRAMIAN)
def test_a_gramian_of_zeros_gives_the_plain_sum(name: str) -> None:
    assert make(name).weights(0, unit(torch.zeros(3, 5, dtype=torch.float64))).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", OF_GRAMIAN)
def test_a_gradient_that_is_not_finite_is_left_to_the_check_of_the_loss(name: str) -> None:
    gradients = jacobian()
    gradients[1, 4] = float("inf")
    assert make(name).weights(0, unit(gradients)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", OF_GRAMIAN)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_the_common_scale_of_the_gradients_does_not_matter(name: str, scale: float) -> None:
    method, gradients = make(name, 4), jacobian(4)
    weights, scaled = method.weights(0, unit(gradients)), method.weights(0, unit(scale * gradients))
    torch.testing.assert_close(scaled, weights, rtol=1e-6, atol=1e-6)  # cagrad, fairgrad: solvers


@pytest.mark.parametrize("name", [name for name in OF_UNIT if name != "cagrad"])  # which lengthens the sum by its ball
def test_tasks_that_are_alike_are_summed(name: str) -> None:
    """Orthogonal gradients of one length and equal losses: nothing is to be balanced."""
    weights = make(name).weights(0, unit(2 * torch.eye(3, dtype=torch.float64), torch.full((3,), 0.7).double()))
    torch.testing.assert_close(weights, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "key", "value"), CHANGED)
def test_each_parameter_changes_the_result(name: str, key: str, value: object) -> None:
    params = SHORT.get(name, {})
    one, other = (train(make(name, 4, **chosen), 0, 7) for chosen in (params, params | {key: value}))
    assert not torch.allclose(one.weights(7, random_unit(7, 4)), other.weights(7, random_unit(7, 4)), rtol=1e-4)


def test_each_parameter_is_among_those_that_change_something() -> None:
    declared = {(name, key) for name in NAMES for key in METHODS[name].Params.model_fields}
    assert declared == {(name, key) for name, key, _ in CHANGED}


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_is_refused_with_its_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'balance\.params\.colour'\."):
        METHODS[name].check({"colour": 1})


def test_a_misspelled_parameter_is_told_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'balance\.params\.temprature'\. Did you mean 'temperature'\? Known: .*window"
    ):
        make("dwa", temprature=1.0)


def test_a_parameter_out_of_range_is_refused_with_its_path_and_value() -> None:
    with pytest.raises(ConfigError, match=r"'balance\.params\.mu' is -1: input should be greater than 0\."):
        make("stch", mu=-1)


def test_an_unknown_method_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown balance method 'pcgard'\. Did you mean 'pcgrad'"):
        METHODS["pcgard"]


def test_a_part_of_what_is_seen_has_its_tasks_alone() -> None:
    seen = Seen(torch.arange(3.0), torch.tensor([True, True, False]), torch.arange(9.0).reshape(3, 3))
    part = seen.part(torch.tensor([True, False, True]))
    assert part.losses.tolist() == [0, 2]
    assert part.observed.tolist() == [True, False]
    assert part.gramian is not None
    assert part.gramian.tolist() == [[0, 2], [6, 8]]


def test_methods_of_losses_import_no_solver() -> None:
    code = (
        "import sys; from mtrec_ray.multitask.balancing import METHODS\n"
        "for name in METHODS.names():\n"
        "    METHODS[name].check({})\n"
        "    if METHODS[name].reads != 'gramian': METHODS[name](['a', 'b'], {}, 0)\n"
        "print(sorted({'torchjd', 'cvxpy', 'scipy', 'qpsolvers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
