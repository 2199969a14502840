from itertools import pairwise

import numpy as np
import pytest
import torch

from mtrec_ray.model.numeric import NumberEncoder, PiecewiseLinear
from tests.batches import make_batch, make_manifest, make_request

NAN = float("nan")


def test_piecewise_linear_encoding_equals_numpy() -> None:
    edges = [[-1.0, 0.0, 2.0, 3.0], [10.0, 20.0]]
    values = torch.tensor([[-5.0, 15.0], [0.5, 10.0], [2.5, 99.0], [NAN, NAN]])
    found = PiecewiseLinear(edges, 2).encode(values)
    for f, edge in enumerate(edges):
        for c in range(3):
            x = values[c, f].item()
            expected = [np.interp(x, [low, high], [0, 1]) for low, high in pairwise(edge)]
            assert found[c, f, : len(expected)].tolist() == pytest.approx(expected)
            assert (found[c, f, len(expected) :] == 0).all()
    assert (found[3] == 0).all()


def encode(numbers: list[float], dim: int = 2) -> torch.Tensor:
    batch = make_batch([make_request(1)])
    rows = torch.tensor([numbers]).repeat(batch.num_candidates, 1)
    encoder = NumberEncoder(make_manifest().numbers, dim)
    return encoder(type(batch)(**{**vars(batch), "numbers": rows}))[0]


def test_standardised_values_missing_flags_and_learned_features() -> None:
    found = encode([1.0, 5.0, 6.0])
    assert found[:6].tolist() == [1.0, 2.0, 1.0, 0, 0, 0]  # a deviation of 0 counts as 1
    assert len(found) == 3 * (2 + 2)
    assert encode([NAN, NAN, 6.0])[:6].tolist() == [0, 0, 1.0, 1.0, 1.0, 0]


def test_missing_is_not_the_mean() -> None:
    assert not torch.equal(encode([0.0, 1.0, 5.0]), encode([NAN, 1.0, 5.0]))


def test_wild_values_are_cut() -> None:
    assert encode([1e9, -1e9, 5.0])[:2].tolist() == [4.0, -4.0]


def test_without_a_learned_part() -> None:
    assert len(encode([0.0, 0.0, 0.0], dim=0)) == 6
