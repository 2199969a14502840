import torch

from tests.model.towers.architectures import check_by_hand, double, expert_by_hand, make, tower_by_hand


def test_equals_the_equations_of_the_paper() -> None:
    towers, z, domain = double(make("mmoe"))
    weights = dict(towers.named_parameters())
    experts = [expert_by_hand(towers, "experts", i, z) for i in range(3)]
    expected, gates = {}, {}
    for t, name in enumerate(towers.names):
        gates[name] = torch.softmax(z @ weights[f"mixtures.{t}.linear.weight"].T, dim=1)
        mixed = sum(gates[name][:, i : i + 1] * expert for i, expert in enumerate(experts))
        expected[name] = tower_by_hand(towers, t, mixed)
    check_by_hand(towers, z, domain, expected)
    for name, sums in towers.gates().items():
        torch.testing.assert_close(sums, gates[name].sum(0))
