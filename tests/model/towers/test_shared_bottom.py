import torch
from torch import nn

from tests.model.towers.architectures import Z_DIM, check_by_hand, double, make, three_tasks, tower_by_hand


def test_each_task_has_a_network_of_its_own_on_z() -> None:
    towers, z, domain = double(make("shared_bottom"))
    check_by_hand(towers, z, domain, {name: tower_by_hand(towers, t, z) for t, name in enumerate(towers.names)})


def test_first_weights_are_drawn_tower_by_tower_and_from_below() -> None:
    torch.manual_seed(3)
    expected = []
    for task in three_tasks():
        for layer in (nn.Linear(Z_DIM, 6), nn.Linear(6, 5)):
            expected += [layer.weight, layer.bias]
        out = nn.Linear(5, task.outputs)
        expected += [out.weight * 0.1, torch.tensor(task.initial_bias())]
    found = list(make("shared_bottom", seed=3).parameters())
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
