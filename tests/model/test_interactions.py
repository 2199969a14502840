"""Inner products of embedded side features."""

import pytest
import torch

from mtrec_ray.errors import ConfigError
from mtrec_ray.model.interactions import Interactions
from mtrec_ray.model.recommender import Recommender
from tests.batches import make_batch, make_manifest, make_request, make_run


def test_every_two_are_multiplied_and_scaled_to_a_deviation_of_one() -> None:
    interactions = Interactions({"a": 4, "b": 4, "c": 4}, [0.5, 0.1, 2.0])
    torch.manual_seed(0)
    a, b, c = torch.randn(5000, 4) * 0.5, torch.randn(5000, 4) * 0.1, torch.randn(5000, 4) * 2
    found = interactions([a, b, c])
    expected = torch.stack([(a * b).sum(1) / (0.5 * 0.1), (a * c).sum(1), (b * c).sum(1) / (0.1 * 2)], dim=1) / 2
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.std(0), torch.ones(3), atol=0.05, rtol=0)
    assert interactions.columns() == ["a with b", "a with c", "b with c"]


def test_what_is_wider_is_projected_to_the_narrowest() -> None:
    interactions = Interactions({"narrow": 2, "wide": 3}, [1.0, 1.0])
    narrow, wide = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 5.0]])
    (weight,) = interactions.parameters()
    expected = (narrow * (wide @ weight.T)).sum(1, keepdim=True) / 2**0.5
    torch.testing.assert_close(interactions([narrow, wide]), expected)


def test_the_network_reads_them() -> None:
    run, manifest = make_run("features.interactions=true", "features.item_dim=6"), make_manifest()
    model = Recommender(None, manifest, run).eval()
    side = model.side
    assert side.interactions is not None
    embedded = 2 + len(manifest.categories)
    assert side.interactions.out_dim == embedded * (embedded - 1) // 2
    assert side.network[0].in_features == len(side.entries()["network.0.weight"][1])
    batch = make_batch([make_request(0), make_request(1)])
    before = side(batch)
    with torch.no_grad():
        side.network[0].weight[:, -side.interactions.out_dim :] = 0
    assert not torch.equal(side(batch), before)


def test_less_than_two_embedded_parts_are_refused() -> None:
    run = make_run("features.interactions=true", "features.user_dim=0")
    manifest = make_manifest().model_copy(update={"categories": []})
    with pytest.raises(ConfigError, match=r"features\.interactions: true needs at least two .* found ids\.item"):
        Recommender(None, manifest, run)
