"""Tasks, small towers of every architecture, and what tests ask of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtrec_ray import config
from mtrec_ray.model.dropout import DropoutContext, DropoutKey
from mtrec_ray.model.towers import TOWERS, Towers
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.kinds import KINDS

NAMES = ("aitm", "cgc", "cross_stitch", "mmoe", "mtl_lora", "ple", "shared_bottom", "star")
GATED = ("aitm", "cgc", "mmoe", "ple")
Z_DIM, DOMAINS = 8, 4
SMALL: dict[str, dict[str, Any]] = {
    "mmoe": {"experts": 3, "expert_hidden": [7, 5]},
    "cgc": {"experts": 2, "shared_experts": 3, "expert_hidden": [7, 5]},
    "ple": {"experts": 2, "shared_experts": 3, "expert_hidden": [7, 5], "levels": 3},
    "cross_stitch": {"own": 0.8},
    "star": {"auxiliary": [4], "domain_dim": 3},
    "mtl_lora": {"rank": 3, "alpha": 6.0, "up_projections": 2, "temperature": 0.7},
}
KEY = DropoutKey(0, 3)


@dataclass(frozen=True)
class Fitted:
    """What a kind may know of its task."""

    name: str
    classes: int = 1
    mean: float = 0.3
    std: float = 0.5
    frequencies: list[float] = field(default_factory=list)


def chain(*names: str) -> list[TaskKind]:
    """Binary tasks, each the parent of the next."""
    tasks: list[TaskKind] = []
    for name in names:
        tasks.append(KINDS["binary"](Fitted(name), len(tasks), {}, tasks[-1] if tasks else None))
    return tasks


def three_tasks() -> list[TaskKind]:
    """`click`, `mood` of three classes, and `buy`, whose parent is `click`."""
    click = KINDS["binary"](Fitted("click"), 0, {})
    mood = KINDS["multiclass"](Fitted("mood", classes=3, frequencies=[0.5, 0.3, 0.2]), 1, {})
    return [click, mood, KINDS["binary"](Fitted("buy", mean=0.1), 2, {}, click)]


def make(
    kind: str,
    *,
    tasks: Sequence[TaskKind] | None = None,
    params: Mapping[str, Any] | None = None,
    hidden: Sequence[int] = (6, 5),
    dropout: float = 0.0,
    domains: int = DOMAINS,
    seed: int = 0,
    context: DropoutContext | None = None,
) -> Towers:
    """Untrained towers; `params` are added to those of `SMALL`."""
    settings = config.Towers(
        kind=kind,
        params={**SMALL.get(kind, {}), **(params or {})},
        z_dim=Z_DIM,
        hidden=list(hidden),
        dropout=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TOWERS[kind](three_tasks() if tasks is None else tasks, settings, context or DropoutContext(), domains)


def trained(towers: Towers) -> Towers:
    """The towers with random numbers added to all weights: zeros and ones of the start would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return towers


def candidates(count: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """z [C, Z_DIM], not negative as after the fusion, and domains [C], the unknown one among them."""
    generator = torch.Generator().manual_seed(count)
    z = torch.randn(count, Z_DIM, generator=generator, dtype=torch.float64).relu().to(dtype)
    return z, torch.tensor([2, 0, 1, 3, 1, 1, 0]).repeat(count // 7 + 1)[:count]


def all_logits(towers: Towers, z: Tensor, domain: Tensor) -> Tensor:
    """The logits of all tasks side by side."""
    return torch.cat(list(towers(z, domain, towers.names).values()), dim=1)


def layers_by_hand(towers: Towers, prefix: str, x: Tensor) -> Tensor:
    """relu(W x + b) for each linear layer of an `mlp`: linear, ReLU and dropout take three places."""
    weights, place = dict(towers.named_parameters()), 0
    while f"{prefix}.{place}.weight" in weights:
        x = torch.relu(x @ weights[f"{prefix}.{place}.weight"].T + weights[f"{prefix}.{place}.bias"])
        place += 3
    return x


def tower_by_hand(towers: Towers, place: int, x: Tensor) -> Tensor:
    """Tower number `place`, of an architecture that ends in a `Tower` for each task."""
    weights, prefix = dict(towers.named_parameters()), f"towers.{place}"
    hidden = layers_by_hand(towers, f"{prefix}.hidden", x)
    return hidden @ weights[f"{prefix}.out.weight"].T + weights[f"{prefix}.out.bias"]


def expert_by_hand(towers: Towers, prefix: str, number: int, x: Tensor) -> Tensor:
    """Expert `number` of the `Experts` called `prefix`."""
    weights, layer = dict(towers.named_parameters()), 0
    while f"{prefix}.layers.{layer}.weight" in weights:
        at = f"{prefix}.layers.{layer}"
        x = torch.relu(x @ weights[f"{at}.weight"][number].T + weights[f"{at}.bias"][number])
        layer += 1
    return x


def check_by_hand(towers: Towers, z: Tensor, domain: Tensor, expected: Mapping[str, Tensor]) -> None:
    """Logits, and a gradient through them to z and all weights, are those of `expected`, to 1e-9 in float64."""
    found = towers(z, domain, towers.names)
    assert list(found) == list(expected)
    generator = torch.Generator().manual_seed(1)
    ends = {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) for n, v in expected.items()}
    sources = [z, *towers.parameters()]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9)
    pairs = [
        torch.autograd.grad(sum((logits[name] * ends[name]).sum() for name in ends), sources)
        for logits in (found, expected)
    ]
    for own, by_hand in zip(*pairs, strict=True):
        torch.testing.assert_close(own, by_hand, rtol=0, atol=1e-9)


def double(towers: Towers) -> tuple[Towers, Tensor, Tensor]:
    """The towers as if trained, and candidates, in float64 and ready for gradients with respect to z."""
    z, domain = candidates(dtype=torch.float64)
    return trained(towers.double()), z.requires_grad_(), domain
