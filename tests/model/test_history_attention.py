import math

import pytest
import torch

from mtrec_ray.model.history_attention import HistoryAttention, visible_pairs
from tests.batches import ITEMS, TASKS, make_batch, make_request


@pytest.fixture
def attention() -> HistoryAttention:
    torch.manual_seed(0)
    made = HistoryAttention(ITEMS, TASKS, 4)
    torch.nn.init.normal_(made.null_score)
    torch.nn.init.normal_(made.age_slope)
    return made


def test_visible_pairs() -> None:
    candidate, event = visible_pairs(torch.tensor([0, 0, 3, 3]), torch.tensor([2, 0, 4, 6]))
    assert list(zip(candidate.tolist(), event.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (2, 3),
        (3, 3),
        (3, 4),
        (3, 5),
    ]


def test_equals_a_loop_over_candidates(attention: HistoryAttention) -> None:
    batch = make_batch([make_request(n) for n in range(6)])
    found = attention(batch)
    for c in range(batch.num_candidates):
        weights, values = [attention.null_score.exp()], [torch.zeros(4)]
        for e in range(int(batch.candidate_event_start[c]), int(batch.candidate_event_end[c])):
            item = attention.items(batch.event_item[e])
            age = math.log1p((batch.times[c] - batch.event_time[e]).item() / 1e6)
            score = attention.query(attention.items(batch.item_index[c])) @ attention.key(item) / 2
            weights.append((score - torch.nn.functional.softplus(attention.age_slope) * age).exp())
            seen = ~batch.event_feedback[e].isnan()
            feedback = ((batch.event_feedback[e] - attention.mean) / attention.std).nan_to_num(0.0)
            known = torch.cat([item, feedback, seen.float(), torch.tensor([age / 10])])
            values.append(torch.relu(attention.value(known)))
        weight = torch.stack(weights)
        attended = (weight / weight.sum() * torch.stack(values)).sum(0)
        mean = torch.stack(values).sum(0) / max(1, len(values) - 1)
        torch.testing.assert_close(found[c], torch.cat([attended, mean]), atol=1e-6, rtol=1e-5)


def test_events_after_the_candidates_end_do_not_matter(attention: HistoryAttention) -> None:
    batch = make_batch([make_request(n) for n in range(6)])
    seen = torch.zeros(len(batch.event_item), dtype=torch.bool)
    seen[visible_pairs(batch.candidate_event_start, batch.candidate_event_end)[1]] = True
    assert not seen.all()
    before = attention(batch)
    batch.event_item[~seen] = 0
    batch.event_feedback[~seen] = 9.0
    assert torch.equal(attention(batch), before)


def test_nothing_at_all(attention: HistoryAttention) -> None:
    found = attention(make_batch([]))
    assert found.shape == (0, 8)
    found.sum().backward()
    assert all(p.grad is not None for p in attention.parameters())
