"""What vectors of users and items hold at a time, and that they are what they would be if they held everything."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.requests.ragged import Ragged
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.item_vectors import ItemVectors
from mtrec_ray.tasks import groups
from mtrec_ray.tasks.groups import group_sums, handed_out, weighted_sums
from tests.matching import catalogue, manifest, matching_run

HIDDEN, WORDS, TOKENS = 24, 40, 50


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that was made, in forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return found


def with_long_texts() -> Catalogue:
    """Of up to `TOKENS` tokens; some have none."""
    plain, rng = catalogue(), np.random.default_rng(0)
    texts = [rng.integers(0, WORDS, 0 if n % 4 == 0 else rng.integers(1, TOKENS)) for n in range(len(plain.items))]
    return Catalogue(**{**vars(plain), "text": Ragged.of([text.astype(np.int32) for text in texts], np.int32)})


def item_vectors() -> ItemVectors:
    torch.manual_seed(0)
    run = matching_run("features.id_dropout=0")
    made = ItemVectors(manifest(), with_long_texts(), run.matching, run.features, HIDDEN, DropoutContext())
    return made.double()


def mean_of_every_token(items: ItemVectors, rows: Tensor, words: nn.Embedding) -> Tensor:
    """The plain way: [N, longest, H]."""
    steps = torch.arange(items.longest)
    present = steps < items.lengths[rows, None]
    embedded = words(items.ids[torch.where(present, items.starts[rows, None] + steps, 0)])
    return (embedded * present[..., None]).sum(1) / items.lengths[rows, None].clamp(min=1)


def test_the_mean_embedding_of_a_text_is_that_of_all_its_tokens() -> None:
    items, words = item_vectors(), nn.Embedding(WORDS, HIDDEN).double()
    rows = torch.randint(0, len(items.lengths), (64,), generator=torch.Generator().manual_seed(1))
    weight = torch.randn(64, HIDDEN, dtype=torch.float64)
    found = items._mean_embedding(rows, words)
    expected = mean_of_every_token(items, rows, words)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (items.lengths[rows] == 0).any()
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), words.weight),
        torch.autograd.grad((expected * weight).sum(), words.weight),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_tokens_are_looked_up_once_in_one_call_whatever_the_items() -> None:
    items, words, calls = item_vectors(), nn.Embedding(WORDS, HIDDEN).double(), []

    def embed(ids: Tensor) -> Tensor:
        calls.append(ids)
        found: Tensor = words(ids)
        return found

    empty = torch.zeros(0, dtype=torch.int64)
    assert items(empty, embed).shape == (0, items.text[1].out_features)
    assert items(torch.tensor([0, 0]), embed).isfinite().all()  # no text
    items(torch.arange(len(items.lengths)), embed)
    assert len(calls) == 3
    assert all(len(ids.unique()) == len(ids) for ids in calls)
    torch.autograd.grad(items(empty, embed).sum(), words.weight)  # zero, but defined


def test_no_tensor_holds_all_tokens_of_all_items() -> None:
    items, words = item_vectors(), nn.Embedding(WORDS, HIDDEN).double()
    rows = torch.arange(len(items.lengths)).repeat(20)
    with Largest() as ours:
        items._mean_embedding(rows, words).sum().backward()
    with Largest() as plain:
        mean_of_every_token(items, rows, words).sum().backward()
    assert plain.numbers == len(rows) * items.longest * HIDDEN
    assert ours.numbers <= len(rows) * max(HIDDEN, items.longest)


class Asked(np.ndarray):
    """Says how many rows were looked up at a time."""

    def __getitem__(self, place: Any) -> Any:
        self.rows = max(getattr(self, "rows", 0), np.size(place))
        return np.asarray(super().__getitem__(place))


def test_of_declared_vectors_no_more_are_there_at_a_time_than_are_asked_for(monkeypatch: Any) -> None:
    """The whole catalogue's are read part after part, and the model holds none of them."""
    run, about, plain = matching_run("features.id_dropout=0"), manifest(vectors=True), catalogue(vectors=True)
    assert plain.vectors is not None
    stored = plain.vectors.view(Asked)
    items = ItemVectors(about, replace(plain, vectors=stored), run.matching, run.features, None, DropoutContext())
    rows, width = torch.arange(len(plain)).repeat(20), plain.vectors.shape[1]
    at_once = items.all_of(rows, None)
    assert stored.rows == len(rows)
    stored.rows = 0
    monkeypatch.setattr("mtrec_ray.model.item_vectors._NUMBERS_AT_ONCE", 7 * width)
    with Largest() as found:
        in_parts = items.all_of(rows, None)
    torch.testing.assert_close(in_parts, at_once)
    assert stored.rows == 7
    assert found.numbers == at_once.numel(), "the result is the largest"
    with Largest() as found:
        items(rows[:7], None).sum().backward()
    assert found.numbers <= max(7 * width, 7 * 2 * run.matching.dim), "an item has two categories at most"
    names = {name for name, _ in (*items.named_parameters(), *items.named_buffers())}
    without = ItemVectors(manifest(), catalogue(), run.matching, run.features, None, DropoutContext())
    more = names - {name for name, _ in (*without.named_parameters(), *without.named_buffers())}
    assert more
    assert all(name.startswith("projections.") for name in more)


def pairs(events: int = 30, candidates: int = 12, dim: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Values, weights, and of each pair the value and the group; one group is empty."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(events).repeat(candidates)
    group = torch.arange(candidates).repeat_interleave(events)
    group = torch.where(group == 3, 4, group)
    values = torch.randn(events, dim, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(len(place), generator=generator, dtype=torch.float64, requires_grad=True)
    return values, weight, place, group, candidates


def test_weighted_sums_and_their_gradients_are_those_of_all_products(monkeypatch: Any) -> None:
    values, weight, place, group, size = pairs()
    expected = group_sums(weight[:, None] * handed_out(values, place), group, size)
    wanted = torch.autograd.grad((expected**2).sum(), (values, weight))
    for at_once in (1, 3 * len(place), groups._NUMBERS_AT_ONCE):
        monkeypatch.setattr(groups, "_NUMBERS_AT_ONCE", at_once)
        found = weighted_sums(values, weight, place, group, size)
        assert torch.equal(found, expected)
        for one, other in zip(torch.autograd.grad((found**2).sum(), (values, weight)), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert not weighted_sums(values, weight[:0], nothing, nothing, size).any()


def test_no_tensor_holds_all_columns_of_all_pairs(monkeypatch: Any) -> None:
    monkeypatch.setattr(groups, "_NUMBERS_AT_ONCE", 1)
    values, weight, place, group, size = pairs()
    with Largest() as ours:
        weighted_sums(values, weight, place, group, size).sum().backward()
    assert ours.numbers <= max(len(place), values.numel())
