import pytest
import torch
from torch import Tensor

from mtrec_ray.model.towers import Towers
from tests.model.towers.architectures import check_by_hand, double, expert_by_hand, make, tower_by_hand


def gate(towers: Towers, path: str, x: Tensor) -> Tensor:
    return torch.softmax(x @ dict(towers.named_parameters())[f"{path}.linear.weight"].T, dim=1)


def mix(gate: Tensor, experts: list[Tensor]) -> Tensor:
    assert gate.shape[1] == len(experts)
    return torch.stack([gate[:, i : i + 1] * expert for i, expert in enumerate(experts)]).sum(0)


def by_hand(towers: Towers, z: Tensor, levels: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits, and the sums of all gates."""
    states, shared, gates = [z] * 3, z, {}
    for level in range(levels):
        path, last = f"levels.{level}", level == levels - 1
        own = [[expert_by_hand(towers, f"{path}.own.{t}", i, states[t]) for i in range(2)] for t in range(3)]
        common = [expert_by_hand(towers, f"{path}.shared", i, shared) for i in range(3)]
        weights = [gate(towers, f"{path}.mixtures.{t}", states[t]) for t in range(3)]
        for t, name in enumerate(towers.names):
            gates[name if last else f"level{level + 1}/{name}"] = weights[t].sum(0)
        if not last:
            of_all = gate(towers, f"{path}.shared_mixture", shared)
            gates[f"level{level + 1}"] = of_all.sum(0)
            shared = mix(of_all, [*own[0], *own[1], *own[2], *common])
        states = [mix(weights[t], [*own[t], *common]) for t in range(3)]
    return {name: tower_by_hand(towers, t, states[t]) for t, name in enumerate(towers.names)}, gates


@pytest.mark.parametrize(("kind", "levels"), [("cgc", 1), ("ple", 1), ("ple", 2), ("ple", 3)])
def test_equals_the_equations_of_the_paper(kind: str, levels: int) -> None:
    towers, z, domain = double(make(kind, params={} if kind == "cgc" else {"levels": levels}))
    expected, gates = by_hand(towers, z, levels)
    check_by_hand(towers, z, domain, expected)
    found = towers.gates()
    assert found.keys() == gates.keys()
    for name, sums in gates.items():
        torch.testing.assert_close(found[name], sums)


def test_cgc_is_ple_with_one_level() -> None:
    one, other = make("cgc"), make("ple", params={"levels": 1})
    weights = other.state_dict()
    assert one.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())
