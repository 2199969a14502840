import pytest
import torch

from mtrec_ray.errors import ConfigError
from tests.model.towers.architectures import all_logits, candidates, check_by_hand, double, make, three_tasks


def test_equals_the_equation_of_the_paper() -> None:
    towers, z, domain = double(make("cross_stitch"))
    weights = dict(towers.named_parameters())
    columns = [z, z, z]
    for i in range(2):
        weight, bias = weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]
        own = [torch.relu(columns[t] @ weight[t].T + bias[t]) for t in range(3)]
        alpha = weights[f"stitches.{i}.weight"]
        columns = [alpha[t, 0] * own[0] + alpha[t, 1] * own[1] + alpha[t, 2] * own[2] for t in range(3)]
    ends = [columns[t] @ weights[f"outs.{t}.weight"].T + weights[f"outs.{t}.bias"] for t in range(3)]
    check_by_hand(towers, z, domain, dict(zip(towers.names, ends, strict=True)))


def test_units_start_as_convex_combinations_near_the_identity() -> None:
    stitch = dict(make("cross_stitch", params={"own": 0.8}).named_parameters())["stitches.1.weight"]
    torch.testing.assert_close(stitch, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))
    alone = make("cross_stitch", tasks=three_tasks()[:1])
    assert dict(alone.named_parameters())["stitches.0.weight"].tolist() == [[1.0]]


def test_with_all_weight_on_its_own_column_a_task_is_alone() -> None:
    z, domain = candidates()
    towers = make("cross_stitch", params={"own": 1.0})
    before = towers(z, domain, towers.names)
    with torch.no_grad():
        dict(towers.named_parameters())["layers.0.weight"][0].add_(1.0)
    after = towers(z, domain, towers.names)
    assert [torch.equal(before[name], after[name]) for name in ("click", "mood", "buy")] == [False, True, True]


def test_without_hidden_layers_there_is_nothing_to_mix() -> None:
    with pytest.raises(ConfigError, match=r"towers\.hidden is \[\], but 'cross_stitch' mixes"):
        make("cross_stitch", hidden=[])
    assert all_logits(make("cross_stitch", hidden=[4]), *candidates()).shape == (7, 5)
