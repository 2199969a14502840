import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from mtrec_ray.model.history_attention import GAPS, HistoryAttention, visible_pairs
from mtrec_ray.model.id_table import ExactTable
from mtrec_ray.model.recommender import Recommender
from tests.batches import ITEMS, TASKS, make_batch, make_manifest, make_request, make_run

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@pytest.fixture
def attention() -> HistoryAttention:
    torch.manual_seed(0)
    made = HistoryAttention(ExactTable("items", ITEMS, 4, 0.1), TASKS)
    torch.nn.init.normal_(made.null_score)
    torch.nn.init.normal_(made.age_slope)
    assert made.gap_bias is not None
    torch.nn.init.normal_(made.gap_bias)
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
    found, gap_bias = attention(batch), attention.gap_bias
    assert gap_bias is not None
    for c in range(batch.num_candidates):
        weights, values = [attention.null_score.exp()], [torch.zeros(4)]
        for e in range(int(batch.candidate_event_start[c]), int(batch.candidate_event_end[c])):
            item = attention.items(batch.event_item[e])
            gap = (batch.times[c] - batch.event_time[e]).item() / 1e6
            age = math.log1p(gap)
            score = attention.query(attention.items(batch.item_index[c])) @ attention.key(item) / 2
            bias = gap_bias[min(int(math.log2(1 + gap)), GAPS - 1)]
            weights.append((score - torch.nn.functional.softplus(attention.age_slope) * age + bias).exp())
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


def test_spans_of_gaps_double(attention: HistoryAttention) -> None:
    """From one bias to the next at 1, 3, 7, ... seconds, to the microsecond; nothing lies beyond the last."""
    batch = one_event_each([s * 10**6 + us for k in range(1, GAPS) for s in (2**k - 1,) for us in (-1, 0)] + [10**17])
    weight = torch.full((GAPS,), -30.0).index_put_((torch.arange(0, GAPS, 2),), torch.tensor(30.0))
    assert attention.gap_bias is not None
    with torch.no_grad():
        attention.gap_bias.copy_(weight)
        attention.age_slope.fill_(-100.0)
        attention.value.weight.zero_()
        attention.value.bias.fill_(1.0)
        found = attention(batch)[:, 0].round().tolist()
    expected = [float(span % 2 == 0) for k in range(1, GAPS) for span in (k - 1, k)]
    assert found == [*expected, float((GAPS - 1) % 2 == 0)]


def test_requests_in_one_row_are_read_as_each_alone(attention: HistoryAttention) -> None:
    """The gaps are those of each candidate, also where a request's candidates share its events."""
    requests = [make_request(n) for n in range(6)]
    together = make_batch(requests)
    times = torch.arange(together.num_candidates) ** 5 * 10**6 + 10**10
    found = attention(replace(together, times=times)).split([len(r["item"]) for r in requests])
    own_times = times.split([len(r["item"]) for r in requests])
    event_times = together.event_time.split([r["events"] for r in requests])
    for n, request in enumerate(requests):
        alone = replace(make_batch([request]), times=own_times[n], event_time=event_times[n])
        torch.testing.assert_close(attention(alone), found[n])
    assert not torch.equal(attention(together), attention(replace(together, times=times)))


@pytest.mark.parametrize("decisive", [1, 2, 3])
def test_it_finds_how_long_ago_the_event_was_that_decides(decisive: int) -> None:
    """The label is what was said a minute, an hour, a day, a week or a month ago: neither the youngest nor the oldest,
    which a slope can point at."""
    with_gaps, bias = fitted(decisive, gaps=True)
    without, nothing = fitted(decisive, gaps=False)
    assert nothing is None
    assert with_gaps < 0.1 < 0.45 < without
    assert bias is not None
    spans = [int(math.log2(1 + ago)) for ago in AGO]
    assert max(spans, key=lambda span: bias[span].item()) == spans[decisive]


AGO = (MINUTE, HOUR, DAY, 7 * DAY, 30 * DAY)


def fitted(decisive: int, gaps: bool) -> tuple[float, Tensor | None]:
    """Loss on new rows of what was attended to, after a hundred steps, and the learned biases."""
    torch.manual_seed(0)
    items = ExactTable("items", ITEMS, 4, 0.1)
    attention, head = HistoryAttention(items, TASKS, gaps), torch.nn.Linear(4, 1)
    torch.nn.init.constant_(attention.age_slope, -3.0)  # at first all events count alike
    optimizer = torch.optim.Adam([*attention.parameters(), *head.parameters()], 0.05)

    def loss(rows: int, seed: int) -> Tensor:
        batch, said = planted(rows, seed)
        return torch.nn.functional.binary_cross_entropy_with_logits(
            head(attention(batch)[:, :4])[:, 0], said[:, decisive]
        )

    for step in range(100):
        optimizer.zero_grad()
        loss(256, step).backward()
        optimizer.step()
    with torch.no_grad():
        return loss(1000, 10**6).item(), attention.gap_bias


def planted(rows: int, seed: int) -> tuple[Batch, Tensor]:
    """Rows with one event each at about the times of `AGO`, and what was said with each [rows, 5]."""
    draw = torch.Generator().manual_seed(seed)
    said = torch.randint(0, 2, (rows, len(AGO)), generator=draw).float()
    ago = torch.tensor(AGO) * (1 + 0.05 * torch.rand(rows, len(AGO), generator=draw))
    batch = one_event_each((ago * 1e6).long().flatten().tolist())
    feedback = torch.full((said.numel(), len(TASKS)), torch.nan)
    feedback[:, 0] = said.flatten()
    start = torch.arange(rows) * len(AGO)
    batch = replace(
        batch,
        event_feedback=feedback,
        event_item=torch.randint(0, ITEMS, (said.numel(),), generator=draw),
        item_index=torch.randint(0, ITEMS, (rows,), generator=draw),
        times=batch.times[:rows],
        candidate_event_start=start,
        candidate_event_end=start + len(AGO),
    )
    return batch, said


def one_event_each(gaps: list[int]) -> Batch:
    """Candidates with one event each, so many microseconds before them."""
    count = len(gaps)
    return replace(
        make_batch([]),
        item_index=torch.zeros(count, dtype=torch.int64),
        event_item=torch.zeros(count, dtype=torch.int64),
        event_feedback=torch.full((count, len(TASKS)), torch.nan),
        event_time=10**18 - torch.tensor(gaps),
        times=torch.full((count,), 10**18),
        candidate_event_start=torch.arange(count),
        candidate_event_end=torch.arange(count) + 1,
    )


def test_nothing_at_all(attention: HistoryAttention) -> None:
    found = attention(make_batch([]))
    assert found.shape == (0, 8)
    found.sum().backward()
    assert all(p.grad is not None for p in attention.parameters())


@pytest.mark.parametrize("on", [True, False])
def test_the_config_says_whether_gaps_count(on: bool) -> None:
    run = make_run("features.history_dim=4", f"features.history_gaps={str(on).lower()}")
    model = Recommender(None, make_manifest(), run).eval()
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("gap_bias")]
    assert len(biases) == on
    batch = make_batch([make_request(n) for n in range(6)])
    (before,) = model(batch)
    for bias in biases:
        torch.nn.init.normal_(bias)
    (after,) = model(batch)
    assert torch.equal(before["like"], after["like"]) == (not on)
