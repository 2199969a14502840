"""Methods that weigh by the Gramian, against TorchJD's aggregation of the Jacobian and against their equations."""

import pytest
import torch
from torch import Tensor
from torchjd import aggregation
from torchjd.linalg import QuadprogProjector

from mtrec_ray.multitask.balancing import Seen
from mtrec_ray.multitask.balancing.method import step_generator
from mtrec_ray.multitask.balancing.quadratic import project, shortest_mean
from tests.multitask.balancing.units import jacobian, make, unit

CONFLICT = torch.tensor([[3.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
"""Two gradients of which the sum, [2, 1], worsens the second task: its slope along it is -1."""
SHARP = QuadprogProjector(reg_eps=1e-11)
"""TorchJD's solver with hardly anything added to the diagonal."""
SAFE = {
    "mgda": {},
    "pcgrad": {},
    "gradvac": {},
    "cagrad": {"c": 1.0},
    "imtl_g": {},
    "nash_mtl": {},
    "fairgrad": {},
    "aligned_mtl": {},
    "upgrad": {},
    "dualproj": {},
}
"""Methods, with parameters, that worsen neither of two tasks here."""
SAFE_WITH_MANY = ["mgda", "nash_mtl", "fairgrad", "upgrad", "dualproj"]


def combined(name: str, gradients: Tensor, step: int = 0, **params: object) -> Tensor:
    """The combined gradient [D] of gradients [T, D]."""
    return make(name, len(gradients), **params).weights(step, unit(gradients)) @ gradients


def slopes(name: str, gradients: Tensor, **params: object) -> Tensor:
    """Per task, how fast its loss falls along the combined gradient, [T]; relative to both lengths."""
    update = combined(name, gradients, **params)
    return (gradients @ update) / gradients.norm(dim=1) / update.norm()


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize(
    ("name", "params", "aggregator", "tolerance"),
    [
        ("cagrad", {"c": 0.4}, aggregation.CAGrad(c=0.4), 1e-6),  # Clarabel's tolerance is 1e-8, of the objective
        ("imtl_g", {}, aggregation.IMTLG(), 1e-9),
        ("aligned_mtl", {"scale": "min"}, aggregation.AlignedMTL(), 1e-9),
        ("aligned_mtl", {"scale": "rmse"}, aggregation.AlignedMTL(scale_mode="rmse"), 1e-9),
        ("upgrad", {}, aggregation.UPGrad(projector=SHARP), 1e-8),
        ("dualproj", {}, aggregation.DualProj(projector=SHARP), 1e-8),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_result_is_the_number_of_tasks_times_torchjds(name, params, aggregator, tolerance, count) -> None:
    gradients = jacobian(count, width=count + 1)
    expected = count * aggregator(gradients)
    torch.testing.assert_close(combined(name, gradients, **params), expected, rtol=0, atol=tolerance)


def orders(count: int, step: int) -> list[list[int]]:
    """In which order each task meets the others in a step of seed 0."""
    generator = step_generator(0, step)
    others = [[j for j in range(count) if j != i] for i in range(count)]
    return [[row[k] for k in torch.randperm(count - 1, generator=generator)] for row in others]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_pcgrad_equals_torchjd_in_the_same_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = jacobian(count, width=4)
    update = combined("pcgrad", gradients, step=5)
    permutations = iter([torch.tensor([*order, i]) for i, order in enumerate(orders(count, 5))])
    monkeypatch.setattr(torch, "randperm", lambda _: next(permutations))
    torch.testing.assert_close(update, aggregation.PCGrad()(gradients), rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_gradvac_equals_torchjd_over_steps_in_the_same_order(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    method, library = make("gradvac", 4, beta=beta), aggregation.GradVac(beta=beta, eps=0.0)
    for step in range(8):
        gradients = jacobian(4, seed=step, width=5)
        update = method.weights(step, unit(gradients)) @ gradients
        generator = step_generator(0, step)
        permutations = iter([torch.randperm(3, generator=generator) for _ in range(4)])
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", lambda _, drawn=permutations: next(drawn))
            expected = library(gradients)
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-9)
        method.learn(step, unit(gradients), None)


def test_gradvac_at_the_start_is_pcgrad() -> None:
    gradients = jacobian(6, width=4)
    torch.testing.assert_close(combined("gradvac", gradients), combined("pcgrad", gradients))


def test_gradvac_of_gradients_that_were_always_the_same_stays_finite() -> None:
    method, same = make("gradvac", 2, beta=1.0), unit(torch.ones(2, 3, dtype=torch.float64))
    method.learn(0, same, None)
    assert method.weights(1, unit(CONFLICT)).isfinite().all()


def hard_gramian(kind: str, count: int) -> Tensor:
    """A Gramian [count, count] of mean diagonal 1: gradients of one kind that solvers find hard."""
    gradients = jacobian(count, width=30)
    if kind == "opposed":
        gradients[1] = -gradients[0] + 0.01 * gradients[1]
    if kind == "scales":
        gradients *= torch.logspace(-3, 1, count, dtype=torch.float64)[:, None]
    if kind == "dependent":
        gradients[:, 2:] = 0
    gramian = gradients @ gradients.T
    return gramian / gramian.diagonal().mean()


@pytest.mark.parametrize("count", [2, 3, 8, 20])
@pytest.mark.parametrize("kind", ["random", "opposed", "scales", "dependent"])
def test_the_shortest_mean_is_optimal(count: int, kind: str) -> None:
    """Every gradient's product with the mean d is at least |d|², and the weights are of a mean."""
    gramian = hard_gramian(kind, count)
    weights = shortest_mean(gramian)
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1, rel=1e-12)
    assert (gramian @ weights).min() >= weights @ gramian @ weights - 1e-12


@pytest.mark.parametrize("count", [2, 3, 8, 20])
@pytest.mark.parametrize("kind", ["random", "opposed", "scales", "dependent"])
def test_the_projection_on_the_dual_cone_is_optimal(count: int, kind: str) -> None:
    """Karush, Kuhn and Tucker: inside the cone, nothing taken off, and added only where the cone is touched."""
    gramian = hard_gramian(kind, count)
    weights = torch.linspace(0, 1, count, dtype=torch.float64)
    projected = project(weights, gramian)
    products = gramian @ projected / gramian.diagonal().sqrt()
    assert products.min() > -1e-9
    assert (projected - weights).min() >= 0
    assert (projected - weights) @ (gramian @ projected) < 1e-12


def test_mgda_equals_torchjds_iteration_where_that_is_exact() -> None:
    gradients = jacobian(2)
    expected = 2 * aggregation.MGDA()(gradients)
    torch.testing.assert_close(combined("mgda", gradients), expected, rtol=0, atol=1e-9)


def test_mgda_is_what_torchjds_iteration_tends_to() -> None:
    gradients = jacobian(4)
    distances = [
        (combined("mgda", gradients) - 4 * aggregation.MGDA(epsilon=1e-12, max_iters=turns)(gradients)).norm()
        for turns in (30, 3000)
    ]
    assert distances[1] < 1e-2
    assert distances[1] < distances[0]


@pytest.mark.parametrize("fairness", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", ["random", "opposed", "scales"])
def test_fair_weights_solve_the_papers_equation(fairness: float, kind: str) -> None:
    """G α = c α^(-1/fairness): the same c for all tasks, since our sum leaves the length open."""
    gradients = jacobian(5, width=30)
    if kind == "opposed":
        gradients[1] = -gradients[0] + 0.1 * gradients[1]
    if kind == "scales":
        gradients *= torch.logspace(-2, 1, 5, dtype=torch.float64)[:, None]
    weights = make("fairgrad", 5, alpha=fairness).weights(0, unit(gradients))
    constants = (gradients @ gradients.T @ weights) * weights ** (1 / fairness)
    assert weights.min() > 0
    assert weights.sum().item() == pytest.approx(5, rel=1e-12)
    assert (constants / constants.mean() - 1).abs().max() < 1e-5  # gradient of the potential to 1e-10


@pytest.mark.parametrize("fairness", [1.0, 2.0])
def test_fairgrad_has_the_direction_of_torchjds(fairness: float) -> None:
    gradients = jacobian(4)
    expected = aggregation.FairGrad(alpha=fairness)(gradients)
    update = combined("fairgrad", gradients, alpha=fairness)
    torch.testing.assert_close(update / update.norm(), expected / expected.norm(), rtol=0, atol=1e-6)  # scipy's ftol


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_nash_mtl_has_the_direction_of_torchjds() -> None:
    gradients = jacobian(4)
    expected = aggregation.NashMTL(n_tasks=4, optim_niter=100)(gradients)
    update = combined("nash_mtl", gradients)
    torch.testing.assert_close(
        update / update.norm(), expected / expected.norm(), rtol=0, atol=2e-3
    )  # it stops at 1e-3


def test_nash_mtl_is_fairgrad_with_alpha_one() -> None:
    gradients = jacobian(4)
    torch.testing.assert_close(combined("nash_mtl", gradients), combined("fairgrad", gradients, alpha=1.0))


@pytest.mark.parametrize("scale", [1e-6, 100.0])
@pytest.mark.parametrize("name", ["nash_mtl", "imtl_g"])
def test_the_scale_of_one_task_does_not_change_the_direction(name: str, scale: float) -> None:
    gradients = jacobian(4)
    scaled = gradients * torch.tensor([scale, 1, 1, 1]).double()[:, None]
    update, other = combined(name, gradients), combined(name, scaled)
    torch.testing.assert_close(other / other.norm(), update / update.norm(), rtol=0, atol=1e-7)


def test_imtl_g_is_equally_steep_for_all_tasks() -> None:
    found = slopes("imtl_g", jacobian(4))
    torch.testing.assert_close(found, found.mean().expand(4), rtol=1e-9, atol=0)


def test_cagrad_without_a_ball_is_the_plain_sum() -> None:
    torch.testing.assert_close(combined("cagrad", CONFLICT, c=0.0), CONFLICT.sum(dim=0))


def test_cagrad_is_better_than_the_plain_sum_for_the_worst_task() -> None:
    update = combined("cagrad", CONFLICT, c=0.5)
    total = CONFLICT.sum(dim=0)
    assert (update - total).norm().item() == pytest.approx(0.5 * total.norm().item(), rel=1e-6)
    assert (CONFLICT @ update).min() > (CONFLICT @ total).min() + 0.5


def test_the_plain_sum_worsens_a_task_of_the_planted_conflict() -> None:
    assert slopes("sum", CONFLICT).min() < -0.3


@pytest.mark.parametrize("name", SAFE)
def test_the_planted_conflict_worsens_no_task(name: str) -> None:
    assert slopes(name, CONFLICT, **SAFE[name]).min() > -1e-8  # cagrad: Clarabel


@pytest.mark.parametrize("name", SAFE_WITH_MANY)
def test_a_planted_conflict_of_many_tasks_worsens_none(name: str) -> None:
    gradients = jacobian(8, width=20)
    gradients -= 0.98 * gradients.mean(dim=0)
    gradients[0] *= 30
    assert slopes("sum", gradients).min() < -0.1
    assert slopes(name, gradients).min() > -1e-9


@pytest.mark.parametrize("name", ["pcgrad", "upgrad", "dualproj"])
def test_without_a_conflict_the_plain_sum_is_kept(name: str) -> None:
    gradients = torch.tensor([[1.0, 0.2], [0.1, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(combined(name, gradients), gradients.sum(dim=0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["mgda", "nash_mtl", "fairgrad", "cagrad", "imtl_g", "pcgrad", "upgrad", "dualproj"])
def test_gradients_that_are_exactly_opposed_move_nothing(name: str) -> None:
    opposed = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    assert combined(name, opposed).norm() < 1e-6


def test_db_mtl_makes_the_gradients_of_log_losses_equally_long() -> None:
    """Lin et al., Algorithm 1 with beta 0, by autograd of log losses of a linear model."""
    inputs = jacobian(4, seed=1)
    weight = jacobian(1, seed=2)[0].requires_grad_()
    losses = (inputs @ weight).square() + 0.1
    logs = torch.stack([torch.autograd.grad(torch.log(loss), weight, retain_graph=True)[0] for loss in losses])
    longest = logs.norm(dim=1).max()
    paper = (longest / logs.norm(dim=1, keepdim=True) * logs).sum(dim=0)
    gradients = torch.stack([torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses])
    update = make("db_mtl", 4, beta=0.0).weights(0, unit(gradients, losses.detach())) @ gradients
    torch.testing.assert_close(update / update.norm(), paper / paper.norm(), rtol=0, atol=1e-7)  # the 1e-8 added


def test_db_mtl_averages_lengths_over_steps() -> None:
    method = make("db_mtl", 2, beta=0.8, sigma=1.0)
    losses, first, second = torch.ones(2).double(), torch.tensor([1.0, 4.0]).double(), torch.tensor([3.0, 2.0]).double()
    method.learn(0, unit(torch.diag(first), losses), None)
    weights = method.weights(1, unit(torch.diag(second), losses))
    lengths = 0.4 * first + 0.6 * second  # beta / 2^sigma = 0.4 in the second step
    torch.testing.assert_close(weights, 2 / lengths / (1 / lengths).sum(), rtol=1e-7, atol=0)


def test_a_task_that_has_labels_but_no_gradient_is_left_out() -> None:
    gradients = jacobian(3)
    gradients[2] = 0
    seen = unit(gradients)
    assert isinstance(seen, Seen)
    torch.testing.assert_close(make("mgda", 3).weights(0, seen)[:2], make("mgda", 2).weights(0, unit(gradients[:2])))
    assert make("mgda", 3).weights(0, seen)[2] == 1
