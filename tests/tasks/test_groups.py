import pytest
import torch

from mtrec_ray.tasks.groups import first_alike, group_log_softmax, group_sums, groups, handed_out
from tests.tasks.shown import at_random, members, part, shown


@pytest.mark.parametrize("by", ["shown", "request"])
@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_named_by_its_first_candidate(seed: int, by: str) -> None:
    candidates = at_random(seed)
    found = groups(candidates, by).tolist()
    for members_ in members(candidates, by):
        assert [found[c] for c in members_] == [members_[0]] * len(members_)


def test_requests_with_the_same_end_are_apart() -> None:
    # Ends count events of the whole batch: the last event of one request is where the next one begins.
    candidates = shown([0.0] * 4, request=[0, 0, 1, 1], end=[3, 3, 3, 5])
    assert groups(candidates, "shown").tolist() == [0, 0, 2, 3]
    assert groups(candidates, "request").tolist() == [0, 0, 2, 2]


def test_no_candidates() -> None:
    none = part(shown([0.0]), [])
    assert groups(none, "shown").tolist() == []
    group, values = groups(none, "request"), torch.zeros(0, requires_grad=True)
    assert group_sums(values, group).tolist() == []
    assert group_log_softmax(values, group, torch.zeros(0, dtype=torch.bool)).tolist() == []


def test_sums_stand_at_the_name_of_the_group() -> None:
    values, group = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, 2, 0])
    assert group_sums(values, group).tolist() == [10, 0, 5, 0]
    assert group_sums(values, group, 6).tolist() == [10, 0, 5, 0, 0, 0]


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(30, generator=generator, dtype=torch.float64, requires_grad=True)
    group = first_alike(torch.randint(0, 7, (30,), generator=generator))
    takes_part = torch.rand(30, generator=generator) < 0.7
    assert torch.autograd.gradcheck(lambda x: group_sums(x**2, group, 40), values)
    assert torch.autograd.gradcheck(lambda x: handed_out(x, group) * torch.arange(30), values)
    assert torch.autograd.gradcheck(lambda x: group_log_softmax(x, group, takes_part), values)


def test_the_softmax_is_that_of_torch_within_each_group() -> None:
    values, group = torch.randn(20) * 50, first_alike(torch.arange(20) % 3)
    takes_part = torch.arange(20) < 15
    found = group_log_softmax(values, group, takes_part)
    for first in range(3):
        chosen = (group == first) & takes_part
        torch.testing.assert_close(found[chosen], torch.log_softmax(values[chosen], 0))


def test_a_group_of_which_nobody_takes_part_is_left_alone() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = group_log_softmax(values, torch.tensor([0, 0, 2]), torch.tensor([True, True, False]))
    assert found[2].item() == 3
    found.sum().backward()
    assert torch.isfinite(values.grad).all()
