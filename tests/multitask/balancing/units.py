"""Units of training for balance methods: random gradients, and the tables that name what each method promises."""

import torch
from torch import Tensor

from mtrec_ray.multitask.balancing import METHODS, Method, Seen

NAMES = METHODS.names()
OF_GRAMIAN = [name for name in NAMES if METHODS[name].reads == "gramian"]
OF_UNIT = [name for name in NAMES if METHODS[name].reads != "nothing"]
WITH_MEMORY = [name for name in NAMES if METHODS[name].learns != "nothing"]


def make(name: str, count: int = 3, seed: int = 0, **params: object) -> Method:
    return METHODS[name]([f"task{t}" for t in range(count)], params, seed)


def jacobian(count: int = 3, seed: int = 0, width: int = 10) -> Tensor:
    """Gradients [count, width] of standard normal numbers, with a few conflicts among them."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(gradients: Tensor, losses: Tensor | None = None, missing: tuple[int, ...] = ()) -> Seen:
    """What is seen of gradients [T, D]; `missing` tasks have no labels, so no loss and no gradient either."""
    count = len(gradients)
    observed = torch.ones(count, dtype=torch.bool)
    observed[list(missing)] = False
    losses = torch.linspace(0.4, 1.2, count, dtype=torch.float64) if losses is None else losses
    gradients = torch.where(observed[:, None], gradients, 0.0)
    return Seen(torch.where(observed, losses, 0.0), observed, gradients @ gradients.T)


def random_unit(step: int, count: int = 3, missing: tuple[int, ...] = ()) -> Seen:
    generator = torch.Generator().manual_seed(1000 + step)
    losses = 0.2 + torch.rand(count, generator=generator, dtype=torch.float64)
    return unit(jacobian(count, seed=step), losses, missing)


def after(seen: Seen, step: int) -> Tensor:
    """Losses [T] of the same batch after the update: 0 to 20 % lower."""
    generator = torch.Generator().manual_seed(2000 + step)
    return seen.losses * (1 - 0.2 * torch.rand(len(seen.losses), generator=generator, dtype=torch.float64))


def train(method: Method, first: int, last: int, missing: tuple[int, ...] = ()) -> Method:
    """Lets it learn steps [first, last) of random units."""
    for step in range(first, last):
        seen = random_unit(step, len(method.tasks), missing)
        method.learn(step, seen, after(seen, step))
    return method
