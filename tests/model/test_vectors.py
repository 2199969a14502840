"""How declared vectors are read by the network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import Manifest, VectorEntry
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.model.vectors import VectorProjection
from tests.batches import make_batch, make_manifest, make_request, make_run

SIZES = (6, 4)
NAN = torch.nan


def manifest() -> Manifest:
    entries = [
        VectorEntry(name="image", scope="item", offset=0, size=SIZES[0]),
        VectorEntry(name="audio", scope="log", offset=SIZES[0], size=SIZES[1]),
    ]
    return make_manifest().model_copy(update={"vectors": entries})


def with_vectors(requests: list[int], seed: int = 0) -> Batch:
    """A fifth of the vectors is missing."""
    batch = make_batch([make_request(n) for n in requests])
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(batch.num_candidates, sum(SIZES), generator=draw)
    vectors[::5, : SIZES[0]] = NAN
    return replace(batch, vectors=vectors)


def test_a_vector_is_centred_scaled_and_projected() -> None:
    projection = VectorProjection(VectorEntry(name="v", scope="log", offset=1, size=4), 3).double()
    vectors = torch.tensor([[9.0, 1.0, 2.0, 3.0, 6.0], [9.0, 10.0, 20.0, 30.0, 60.0], [9.0, *[NAN] * 4]]).double()
    projection.missing.data.copy_(torch.tensor([7.0, 8.0, 9.0]))
    own = np.array([1.0, 2.0, 3.0, 6.0])
    scaled = torch.from_numpy((own - 3) / np.sqrt(own.var() + 1e-5))
    expected = projection.linear.weight @ scaled + projection.linear.bias
    found = projection(vectors)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=1e-5)
    assert found[2].tolist() == [7, 8, 9]


def test_missing_is_told_from_every_vector_and_learned() -> None:
    projection = VectorProjection(VectorEntry(name="v", scope="log", offset=0, size=4), 3)
    found = projection(torch.tensor([[0.0] * 4, [NAN] * 4, [1.0, 2.0, 3.0, 4.0]]))
    assert not torch.equal(found[0], found[1])
    found[1].sum().backward()
    assert projection.missing.grad is not None
    assert projection.missing.grad.tolist() == [1, 1, 1]
    assert projection.linear.weight.grad is not None
    assert not projection.linear.weight.grad.any(), "and nothing of it is NaN"


def test_nothing_at_all() -> None:
    projection = VectorProjection(VectorEntry(name="v", scope="log", offset=0, size=4), 3)
    found = projection(torch.zeros(0, 4))
    found.sum().backward()
    assert found.shape == (0, 3)
    assert all(p.grad is not None for p in projection.parameters())


def outputs(batch: Batch, *overrides: str, declared: bool = True) -> Tensor:
    model = Recommender(None, manifest() if declared else make_manifest(), make_run(*overrides)).eval()
    (logits,) = model(batch)
    return torch.cat(list(logits.values()), dim=1)


def test_vectors_and_their_width_change_the_outputs() -> None:
    batch = with_vectors([0, 1, 2])
    found = outputs(batch)
    assert torch.isfinite(found).all()
    assert not torch.equal(found, outputs(batch, declared=False))
    assert not torch.equal(found, outputs(batch, "features.vector_dim=3"))
    changed = replace(batch, vectors=batch.vectors.roll(1, dims=1))
    assert not torch.equal(found, outputs(changed))


def test_candidates_in_one_row_are_read_as_each_request_alone() -> None:
    together, sizes = with_vectors(list(range(5))), [len(make_request(n)["item"]) for n in range(5)]
    found = outputs(together).split(sizes)
    for n, vectors in enumerate(together.vectors.split(sizes)):
        alone = replace(make_batch([make_request(n)]), vectors=vectors)
        torch.testing.assert_close(outputs(alone), found[n])


@pytest.mark.parametrize("declared", [True, False])
def test_what_vectors_say_is_learned(declared: bool) -> None:
    """Labels follow a direction of one vector, and nothing else that the model reads; the scales are those of another
    encoder for each row."""
    run = make_run("features.dropout=0", "features.id_dropout=0", "towers.dropout=0")
    model = Recommender(None, manifest() if declared else make_manifest(), run)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    direction = torch.tensor([1.0, -1.0, 1.0, -1.0])

    def planted(seed: int) -> tuple[Batch, Tensor]:
        batch = with_vectors(list(range(40 * seed, 40 * seed + 40)), seed)
        audio = batch.vectors[:, SIZES[0] :]
        label = (audio @ direction > 0).float()
        scale = 10 ** torch.randn(len(label), 1, generator=torch.Generator().manual_seed(seed))
        return replace(batch, vectors=torch.cat([batch.vectors[:, : SIZES[0]], audio * scale], dim=1)), label

    for step in range(60):
        batch, label = planted(step)
        (logits,) = model.train()(batch, DropoutKey(0, step))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits["like"][:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch, label = planted(100)
    with torch.no_grad():
        (logits,) = model.eval()(batch)
    right = ((logits["like"][:, 0] > 0) == (label > 0)).float().mean().item()
    assert right > 0.95 if declared else right < 0.65
