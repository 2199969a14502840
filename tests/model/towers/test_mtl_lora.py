import pytest
import torch

from mtrec_ray.errors import ConfigError
from tests.model.towers.architectures import all_logits, candidates, check_by_hand, double, make


def test_equals_the_equation_of_the_paper() -> None:
    towers, z, domain = double(make("mtl_lora"))
    weights = dict(towers.named_parameters())
    expected = {}
    for t, name in enumerate(towers.names):
        x = z
        for i in range(2):
            at = f"layers.{i}"
            shares = (weights[f"{at}.choices"][t] / 0.7).exp()
            up = sum(s * b for s, b in zip(shares / shares.sum(), weights[f"{at}.ups"], strict=True))
            update = up @ weights[f"{at}.transforms"][t] @ weights[f"{at}.down"]
            weight = weights[f"{at}.shared.weight"] + 6.0 / 3 * update
            x = torch.relu(x @ weight.T + weights[f"{at}.shared.bias"])
        expected[name] = x @ weights[f"outs.{t}.weight"].T + weights[f"outs.{t}.bias"]
    check_by_hand(towers, z, domain, expected)


def test_updates_start_at_zero_and_learn_apart() -> None:
    z, domain = candidates()
    towers, other = make("mtl_lora"), make("mtl_lora", params={"alpha": 60.0})
    assert torch.equal(all_logits(towers, z, domain), all_logits(other, z, domain))
    all_logits(towers, z, domain).square().sum().backward()
    ups = dict(towers.named_parameters())["layers.0.ups"]
    assert ups.grad is not None
    assert ups.grad[0].any()
    assert not torch.allclose(ups.grad[0], ups.grad[1])


def test_without_hidden_layers_there_is_nothing_to_update() -> None:
    with pytest.raises(ConfigError, match=r"towers\.hidden is \[\], but 'mtl_lora' updates"):
        make("mtl_lora", hidden=[])
