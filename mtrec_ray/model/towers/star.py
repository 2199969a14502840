"""A tower per task whose weights are bent to the domain of each candidate."""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray import config
from mtrec_ray.config import Part
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, StatelessDropout
from mtrec_ray.model.entries import Axis, Rows
from mtrec_ray.model.features import mlp
from mtrec_ray.model.towers.base import TOWERS, Towers
from mtrec_ray.model.towers.tower import UNTRAINED
from mtrec_ray.tasks.kind import TaskKind

VECTOR_STD = 0.05
"""Deviation of the first domain vectors, as of other tables."""
DOMAINS = Rows("domain")


class PartitionedNorm(nn.Module):
    """[C, width] -> [C, width]: (γ γ_d) · (z - mean) / √(variance + 1e-5) + (β + β_d), d the candidate's domain.

    γ_d is kept as its difference from 1, so that weight decay draws a domain to the shared norm, not to zero.
    """

    def __init__(self, domains: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.domain_scale = nn.Parameter(torch.zeros(domains - 1, width))
        self.domain_shift = nn.Parameter(torch.zeros(domains - 1, width))

    def forward(self, z: Tensor, domain: Tensor) -> Tensor:
        scale = self.scale * (1 + with_unknown(self.domain_scale))
        shift = self.shift + with_unknown(self.domain_shift)
        normal = functional.layer_norm(z, z.shape[1:])
        return functional.embedding(domain, scale) * normal + functional.embedding(domain, shift)

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"domain_scale": [DOMAINS], "domain_shift": [DOMAINS]}


class StarLinear(nn.Module):
    """[C, width] -> [C, out]: (W ⊙ W_d) x + b + b_d, d the candidate's domain.

    All candidates pass through the layers of all D domains, and each keeps what its own gave: D times the
    multiplications of one layer, but no work whose shape depends on the data, and a gradient (of zeros) for domains
    that are absent. W_d is kept as its difference from 1, as in `PartitionedNorm`.
    """

    def __init__(self, domains: int, width: int, out: int) -> None:
        super().__init__()
        shared = nn.Linear(width, out)
        self.weight, self.bias = shared.weight, shared.bias
        self.domain_weight = nn.Parameter(torch.zeros(domains - 1, out, width))
        self.domain_bias = nn.Parameter(torch.zeros(domains - 1, out))

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        weight = self.weight * (1 + with_unknown(self.domain_weight))
        every = torch.einsum("ci,doi->cdo", x, weight) + self.bias + with_unknown(self.domain_bias)
        return every.gather(1, domain[:, None, None].expand(-1, 1, every.shape[2]))[:, 0]

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"domain_weight": [DOMAINS], "domain_bias": [DOMAINS]}


class StarTower(nn.Module):
    """[C, z_dim], domain [C] -> logits of one task [C, outputs]: a tower of `StarLinear`."""

    def __init__(self, task: TaskKind, domains: int, config: config.Towers, context: DropoutContext) -> None:
        super().__init__()
        name, widths = task.task.name, [config.z_dim, *config.hidden]
        shapes = zip(widths[:-1], config.hidden, strict=True)
        self.layers = nn.ModuleList(StarLinear(domains, *shape) for shape in shapes)
        self.dropouts = nn.ModuleList(
            StatelessDropout(config.dropout, f"tower.{name}.{i}", context) for i in range(len(config.hidden))
        )
        self.out = StarLinear(domains, widths[-1], task.outputs)
        with torch.no_grad():
            self.out.weight.mul_(UNTRAINED)
            self.out.bias.copy_(torch.tensor(task.initial_bias()))

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            x = dropout(torch.relu(layer(x, domain)))
        logits: Tensor = self.out(x, domain)
        return logits


class Auxiliary(nn.Module):
    """z [C, z_dim], domain [C] -> what is added to the logits of one task [C, outputs].

    A small network that reads z beside a vector of the domain, which is zero for the unknown one.
    """

    def __init__(
        self, task: TaskKind, domains: int, sizes: "Star.Params", config: config.Towers, context: DropoutContext
    ) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(domains - 1, sizes.domain_dim) * VECTOR_STD)
        width = config.z_dim + sizes.domain_dim
        self.hidden, width = mlp(width, sizes.auxiliary, config.dropout, f"auxiliary.{task.task.name}", context)
        self.out = nn.Linear(width, task.outputs, bias=False)
        with torch.no_grad():
            self.out.weight.mul_(UNTRAINED)

    def forward(self, z: Tensor, domain: Tensor) -> Tensor:
        vectors = functional.embedding(domain, with_unknown(self.vectors))
        logits: Tensor = self.out(self.hidden(torch.cat([z, vectors], dim=1)))
        return logits

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"vectors": [DOMAINS]}


@TOWERS.register("star")
class Star(Towers):
    """Star topology: each task's tower has the weights W ⊙ W_d and biases b + b_d for a candidate of domain d.

    Sheng et al. 2021, "One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction"
    (arXiv 2101.11427). logits_t = tower_t,d(norm_d(z)) + auxiliary_t(z, d), the auxiliary network being optional. Of
    the unknown domain, 0, W_d is 1 and b_d is 0; those of the others start so.

    Partitioned normalisation, γ γ_d (z - μ) / √(σ² + ε) + β + β_d, takes μ and σ from the candidate's own z (layer
    normalisation), where the paper has the statistics of the domain's mini-batch and moving averages of them: with
    those, a candidate's logits would depend on its batch and on how the batch is dealt to workers. The paper has one
    task; here each has a star tower, behind one norm.
    """

    class Params(Part):
        auxiliary: list[PositiveInt] = Field(default=[16])
        """Layers of the auxiliary networks; [] = none."""
        domain_dim: PositiveInt = 8
        """Width of the domain's vector in the auxiliary networks."""

    params: Params

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        super().__init__(tasks, config, context, domains)
        if domains < 2:
            raise ConfigError(
                "towers.kind 'star' has weights for each domain, but the data tells no domains apart: name the column "
                "that does in data.columns.domain, or choose towers.kind 'shared_bottom'."
            )
        self.norm = PartitionedNorm(domains, config.z_dim)
        self.towers = nn.ModuleList(StarTower(task, domains, config, context) for task in self.tasks)
        sizes = self.params
        with_auxiliary = self.tasks if sizes.auxiliary else []
        self.auxiliaries = nn.ModuleList(Auxiliary(task, domains, sizes, config, context) for task in with_auxiliary)

    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        x = self.norm(z, domain)
        found: dict[str, Tensor] = {}
        for name in wanted:
            t = self.place[name]
            found[name] = self.towers[t](x, domain)
            if self.params.auxiliary:
                found[name] = found[name] + self.auxiliaries[t](z, domain)
        return found

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"towers": [self.names], "auxiliaries": [self.names]}


def with_unknown(values: Tensor) -> Tensor:
    """[domains - 1, ...] of the known domains -> [domains, ...]: zeros for the unknown domain before them."""
    return torch.cat([torch.zeros_like(values[:1]), values])
