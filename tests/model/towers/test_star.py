import pytest
import torch
from torch import Tensor

from mtrec_ray.errors import ConfigError
from mtrec_ray.model.towers import Towers
from tests.model.towers.architectures import (
    all_logits,
    candidates,
    check_by_hand,
    double,
    layers_by_hand,
    make,
    trained,
)


def of_domain(weights: dict[str, Tensor], name: str, domain: int, start: float) -> Tensor | float:
    """The domain's own part, `start` for the unknown domain; it is kept as its difference from `start`."""
    return start if domain == 0 else start + weights[name][domain - 1]


def by_hand(towers: Towers, z: Tensor, domains: Tensor, auxiliary: bool) -> dict[str, Tensor]:
    """Candidate by candidate, with the weight matrix of its domain."""
    weights, rows = dict(towers.named_parameters()), {name: [] for name in towers.names}

    def linear(path: str, x: Tensor, d: int) -> Tensor:
        weight = weights[f"{path}.weight"] * of_domain(weights, f"{path}.domain_weight", d, 1.0)
        return weight @ x + weights[f"{path}.bias"] + of_domain(weights, f"{path}.domain_bias", d, 0.0)

    for c, d in enumerate(domains.tolist()):
        normal = (z[c] - z[c].mean()) / (z[c].var(unbiased=False) + 1e-5).sqrt()
        scale = weights["norm.scale"] * of_domain(weights, "norm.domain_scale", d, 1.0)
        x = scale * normal + weights["norm.shift"] + of_domain(weights, "norm.domain_shift", d, 0.0)
        for t, name in enumerate(towers.names):
            hidden = torch.relu(linear(f"towers.{t}.layers.0", x, d))
            logits = linear(f"towers.{t}.out", torch.relu(linear(f"towers.{t}.layers.1", hidden, d)), d)
            if auxiliary:
                vector = of_domain(weights, f"auxiliaries.{t}.vectors", d, 0.0) + torch.zeros(3, dtype=z.dtype)
                told = layers_by_hand(towers, f"auxiliaries.{t}.hidden", torch.cat([z[c], vector])[None])
                logits = logits + (told @ weights[f"auxiliaries.{t}.out.weight"].T)[0]
            rows[name].append(logits)
    return {name: torch.stack(values) for name, values in rows.items()}


@pytest.mark.parametrize("auxiliary", [[4], []])
def test_equals_the_equations_of_the_paper(auxiliary: list[int]) -> None:
    towers, z, domain = double(make("star", params={"auxiliary": auxiliary}))
    check_by_hand(towers, z, domain, by_hand(towers, z, domain, bool(auxiliary)))


def test_domains_start_alike_and_the_unknown_one_stays_with_the_shared_weights() -> None:
    towers, (z, _) = make("star", params={"auxiliary": []}), candidates()
    unknown = torch.zeros(7, dtype=torch.int64)

    def logits() -> list[Tensor]:
        return [all_logits(towers, z, unknown + d) for d in range(4)]

    first = logits()
    assert all(torch.equal(first[0], other) for other in first[1:])
    with torch.no_grad():
        for name, parameter in towers.named_parameters():
            if ".domain_" in name:
                parameter.add_(0.5 + torch.arange(3.0).view(-1, *[1] * (parameter.dim() - 1)))
    then = logits()
    assert torch.equal(then[0], first[0])
    assert not any(torch.equal(then[a], then[b]) for a in range(4) for b in range(a))


def test_a_domain_without_candidates_gets_a_gradient_of_zeros() -> None:
    towers, (z, _) = trained(make("star")), candidates()
    all_logits(towers, z, torch.full((7,), 2)).square().sum().backward()
    of_domains = {n: p.grad for n, p in towers.named_parameters() if ".domain_" in n or n.endswith(".vectors")}
    assert len(of_domains) == 2 + 3 * (2 * 3 + 1)
    for name, gradient in of_domains.items():
        assert gradient is not None, name
        assert [bool(gradient[d].any()) for d in range(3)] == [False, True, False], name


def test_without_domains_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'star' has weights for each domain, but the data tells no domains apart"):
        make("star", domains=1)
