"""Methods that weigh by losses, against autograd of their objectives and against the papers' updates."""

import math

import pytest
import torch
from torch import Tensor
from torchjd import scalarization

from mtrec_ray.multitask.balancing import Method, Seen
from tests.multitask.balancing.units import after, jacobian, make, random_unit, unit

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def of_losses(*losses: float) -> Seen:
    values = torch.tensor(losses, dtype=torch.float64)
    return Seen(values, torch.ones(len(losses), dtype=torch.bool))


def gradient(function, values: Tensor) -> Tensor:
    values = values.detach().clone().requires_grad_()
    return torch.autograd.grad(function(values), values)[0]


def learn(method: Method, objective, steps: int = 30, learning_rate: float = 0.1, start: float = 0.0) -> Tensor:
    """Lets the method learn, and torch's Adam minimise `objective(s, losses)` beside it; gives that s."""
    values = torch.full((3,), start, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([values], lr=learning_rate)
    for step in range(steps):
        seen = random_unit(step)
        method.learn(step, seen, None)
        adam.zero_grad()
        objective(values, seen.losses).backward()
        adam.step()
    return values.detach()


def test_the_plain_sum_has_weights_one() -> None:
    assert make("sum").weights(3, None).tolist() == [1, 1, 1]


def test_rlw_is_on_average_the_plain_sum_and_always_sums_to_the_number_of_tasks() -> None:
    method = make("rlw", 4)
    draws = torch.stack([method.weights(step, None) for step in range(4000)])
    torch.testing.assert_close(draws.sum(dim=1), torch.full((4000,), 4.0, dtype=torch.float64))
    assert (draws.mean(dim=0) - 1).abs().max() < 5 * draws.std() / math.sqrt(4000)


def test_rlw_are_softmax_of_normal_numbers() -> None:
    method = make("rlw", 2)
    logits = torch.stack([method.weights(step, None).log() for step in range(4000)])
    spread = logits[:, 0] - logits[:, 1]  # the difference of two standard normal numbers
    assert spread.std().item() == pytest.approx(math.sqrt(2), rel=0.05)
    assert (spread**4).mean().item() == pytest.approx(3 * 4, rel=0.15)


def test_uncertainty_follows_autograd_of_the_papers_objective() -> None:
    """Kendall et al., Eq. 10, in σ² = exp(s), on half squared errors and cross-entropies."""
    method = make("uncertainty", learning_rate=0.1)
    assert method.weights(0, None).tolist() == [1, 1, 1]
    values = learn(method, lambda s, losses: (losses / s.exp() + s.exp().sqrt().log()).sum())
    torch.testing.assert_close(method.weights(0, None), 1 / values.exp(), **TIGHT)


def test_uncertainty_is_the_common_form_with_halves_started_at_the_plain_sum() -> None:
    method = make("uncertainty", learning_rate=0.1)
    values = learn(method, lambda s, losses: (0.5 * (-s).exp() * losses + s / 2).sum(), start=-math.log(2))
    torch.testing.assert_close(method.weights(0, None), 0.5 * (-values).exp(), **TIGHT)


def test_imtl_l_follows_autograd_of_the_papers_objective() -> None:
    method, library = make("imtl_l", learning_rate=0.1), scalarization.IMTLL(3).double()
    adam = torch.optim.Adam(library.parameters(), lr=0.1)
    for step in range(30):
        seen = random_unit(step)
        method.learn(step, seen, None)
        adam.zero_grad()
        library(seen.losses).backward()
        adam.step()
    weights = gradient(library, random_unit(0).losses)
    torch.testing.assert_close(method.weights(0, None), weights, **TIGHT)


@pytest.mark.parametrize(("name", "rest"), [("uncertainty", 0.5), ("imtl_l", 1.0)])
def test_learned_scales_come_to_rest_where_the_papers_do(name: str, rest: float) -> None:
    method, seen = make(name, learning_rate=0.05), of_losses(0.1, 1.0, 4.0)
    for step in range(1500):
        method.learn(step, seen, None)
    torch.testing.assert_close(
        method.weights(0, None) * seen.losses, torch.full((3,), rest).double(), rtol=1e-4, atol=0
    )


def test_dwa_equals_torchjd_with_windows_for_epochs() -> None:
    method, library = make("dwa", window=4, temperature=1.5), scalarization.DWA(temperature=1.5)
    for step in range(14):
        losses = random_unit(step).losses
        torch.testing.assert_close(method.weights(step, None), gradient(library, losses), **TIGHT)
        method.learn(step, random_unit(step), None)
        if step % 4 == 3:
            library.step()


def test_dwa_by_hand() -> None:
    method = make("dwa", 2, window=1, temperature=2.0)
    for step, losses in enumerate([(1.0, 2.0), (0.5, 2.0)]):
        assert method.weights(step, None).tolist() == [1, 1]
        method.learn(step, of_losses(*losses), None)
    slow, fast = math.exp(1.0 / 2), math.exp(0.5 / 2)
    expected = [2 * fast / (fast + slow), 2 * slow / (fast + slow)]
    assert method.weights(2, None).tolist() == pytest.approx(expected, rel=1e-12)


def test_dwa_repeats_the_mean_of_a_task_without_labels() -> None:
    method = make("dwa", 2, window=1)
    method.learn(0, of_losses(1.0, 0.3), None)
    method.learn(1, Seen(torch.tensor([0.5, 0.0]).double(), torch.tensor([True, False])), None)
    repeated = make("dwa", 2, window=1)
    repeated.learn(0, of_losses(1.0, 0.3), None)
    repeated.learn(1, of_losses(0.5, 0.3), None)
    assert torch.equal(method.weights(2, None), repeated.weights(2, None))


def test_gls_is_the_gradient_of_the_geometric_mean() -> None:
    seen = of_losses(0.2, 0.9, 3.0)
    expected = 3 * gradient(scalarization.GeometricMean(), seen.losses)
    torch.testing.assert_close(make("gls").weights(0, seen), expected, **TIGHT)


def test_gls_of_a_loss_of_zero_is_finite() -> None:
    assert make("gls").weights(0, of_losses(0.0, 1.0, 1.0)).isfinite().all()


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_stch_is_the_gradient_of_the_smooth_maximum(mu: float) -> None:
    seen = of_losses(0.2, 0.9, 3.0)
    expected = 3 * gradient(lambda losses: mu * torch.log(torch.exp(losses / mu).sum()), seen.losses)
    torch.testing.assert_close(make("stch", mu=mu).weights(0, seen), expected, **TIGHT)


def test_stch_of_large_losses_and_small_mu_does_not_overflow() -> None:
    assert make("stch", mu=1e-3).weights(0, of_losses(1.0, 50.0, 3.0)).tolist() == [0, 3, 0]


def test_famo_equals_torchjds_update() -> None:
    method = make("famo", learning_rate=0.1, weight_decay=0.01)
    library = scalarization.FAMO(3, lr=0.1, weight_decay=0.01).double()
    for step in range(20):
        seen = random_unit(step)
        expected = 3 * gradient(library, seen.losses)
        torch.testing.assert_close(method.weights(step, seen), expected, **TIGHT)
        method.learn(step, seen, after(seen, step))
        library.update(after(seen, step))


def test_famo_gives_more_to_the_task_whose_loss_fell_less() -> None:
    method, seen = make("famo", 2), of_losses(1.0, 1.0)
    method.learn(0, seen, torch.tensor([0.5, 0.9], dtype=torch.float64))
    lesser, larger = method.weights(1, seen)
    assert lesser < 1 < larger


def test_gradnorm_follows_autograd_of_its_own_loss() -> None:
    """Chen et al., Eq. 2, in the parametrisation T · softmax, by autograd through norms of weighted gradients."""
    method = make("gradnorm", alpha=0.7, learning_rate=0.1, first_steps=3)
    first = torch.stack([random_unit(step).losses for step in range(3)]).mean(dim=0)
    values = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([values], lr=0.1)
    for step in range(20):
        seen = random_unit(step)
        torch.testing.assert_close(method.weights(step, None), 3 * torch.softmax(values.detach(), 0), **TIGHT)
        method.learn(step, seen, None)
        if step < 3:
            continue
        lengths = torch.linalg.vector_norm(3 * torch.softmax(values, 0)[:, None] * jacobian(seed=step), dim=1)
        pace = seen.losses / first / (seen.losses / first).mean()
        adam.zero_grad()
        (lengths - (lengths.mean() * pace**0.7).detach()).abs().sum().backward()
        adam.step()


def test_gradnorm_of_tasks_of_equal_pace_makes_their_gradients_equally_long() -> None:
    method, gradients = make("gradnorm", learning_rate=0.01), torch.diag(torch.tensor([0.5, 1.0, 2.0]).double())
    for step in range(1500):
        method.learn(step, unit(gradients), None)
    lengths = method.weights(0, None) * torch.tensor([0.5, 1.0, 2.0]).double()
    assert (lengths / lengths.mean() - 1).abs().max() < 0.03  # the slope is a sign: it ends within a step or two


@pytest.mark.parametrize(("name", "power"), [("gls", -1), ("famo", -1)])
def test_multiplying_a_loss_divides_its_weight(name: str, power: int) -> None:
    weights = make(name).weights(0, of_losses(0.4, 0.7, 1.0))
    scaled = make(name).weights(0, of_losses(4.0, 0.7, 1.0))
    ratio = (scaled / weights) / (scaled / weights)[1]
    torch.testing.assert_close(ratio, torch.tensor([10.0**power, 1, 1]).double(), rtol=1e-6, atol=0)
