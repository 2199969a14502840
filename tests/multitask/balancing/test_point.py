"""One backward pass through the balance point against a backward pass per task."""

import torch
from torch import Tensor, nn

from mtrec_ray.multitask.balancing.point import split

TASKS, CANDIDATES, WIDTH = 3, 7, 5


def parts(candidates: int = CANDIDATES) -> tuple[Tensor, nn.Module, nn.ModuleList]:
    torch.manual_seed(0)
    below = nn.Linear(4, WIDTH).double()
    towers = nn.ModuleList(
        nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 1)) for _ in range(TASKS)
    ).double()
    return torch.randn(candidates, 4, dtype=torch.float64), below, towers


def gradients(module: nn.Module) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in module.parameters()]
    )


def test_the_weights_see_the_gramian_and_scale_the_gradients_below_alone() -> None:
    x, below, towers = parts()
    z = below(x)
    per_task = [torch.autograd.grad(tower(z).square().sum(), z, retain_graph=True)[0] for tower in towers]
    weights = torch.tensor([0.3, 2.0, -0.5], dtype=torch.float64)
    z.backward(sum(w * g for w, g in zip(weights, per_task, strict=True)))
    expected_below = gradients(below)
    sum(tower(z.detach()).square().sum() for tower in towers).backward()  # type: ignore[union-attr]
    expected_towers = gradients(towers)

    seen: list[Tensor] = []
    x, below, towers = parts()
    copies = split(below(x), TASKS, lambda gramian: seen.append(gramian) or weights)
    sum(tower(copy).square().sum() for tower, copy in zip(towers, copies, strict=True)).backward()  # type: ignore[union-attr]
    flat = torch.stack(per_task).flatten(1)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], flat @ flat.T, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(below), expected_below, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients(towers), expected_towers, rtol=1e-12, atol=0)


def test_weights_of_one_are_the_plain_sum() -> None:
    x, below, towers = parts()
    z = below(x)
    sum(tower(z).square().sum() for tower in towers).backward()  # type: ignore[union-attr]
    expected = gradients(below)
    x, below, towers = parts()
    copies = split(below(x), TASKS, lambda gramian: torch.ones(TASKS, dtype=torch.float64))
    sum(tower(copy).square().sum() for tower, copy in zip(towers, copies, strict=True)).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(gradients(below), expected, rtol=1e-12, atol=1e-14)


def test_a_copy_that_no_loss_reads_has_a_row_of_zeros() -> None:
    x, below, towers = parts()
    seen: list[Tensor] = []
    copies = split(below(x), TASKS, lambda gramian: seen.append(gramian) or torch.ones(TASKS, dtype=torch.float64))
    (towers[0](copies[0]).sum() + towers[2](copies[2]).sum()).backward()
    assert seen[0][1].eq(0).all()
    assert seen[0][:, 1].eq(0).all()
    assert seen[0].diagonal()[[0, 2]].gt(0).all()


def test_without_candidates_the_weights_are_asked_for_all_the_same() -> None:
    """Other ranks wait for this one."""
    x, below, towers = parts(candidates=0)
    asked: list[Tensor] = []
    copies = split(below(x), TASKS, lambda gramian: asked.append(gramian) or torch.ones(TASKS, dtype=torch.float64))
    sum(tower(copy).sum() for tower, copy in zip(towers, copies, strict=True)).backward()  # type: ignore[union-attr]
    assert asked[0].eq(0).all()
    assert gradients(below).eq(0).all()
