import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.errors import BackboneError
from mtrec_ray.model.dropout import token_uids
from mtrec_ray.model.layout import RequestLayout


@st.composite
def layouts(draw) -> RequestLayout:
    histories = draw(st.lists(st.integers(0, 6), max_size=4))
    lengths = [draw(st.lists(st.integers(1, 4), max_size=4)) for _ in histories]
    ends = [[draw(st.integers(0, h)) for _ in n] for h, n in zip(histories, lengths, strict=True)]
    return RequestLayout.from_lengths(histories, lengths, ends)


def test_a_staircase_by_hand():
    layout = RequestLayout.from_lengths([3, 1], [[2, 1], [2]], [[1, 3], [1]])
    assert layout.length == 9
    assert layout.history_start.tolist() == [0, 6]
    assert layout.candidate_request.tolist() == [0, 0, 1]
    assert layout.candidate_start.tolist() == [3, 5, 7]
    assert layout.last_tokens().tolist() == [4, 5, 8]
    assert layout.positions().tolist() == [0, 1, 2, 1, 2, 3, 0, 1, 2]
    assert layout.largest_position == 3
    seen = ["".join(".x"[int(x)] for x in row) for row in layout.dense_mask()]
    assert seen == [
        "x........",
        "xx.......",
        "xxx......",
        "x..x.....",
        "x..xx....",
        "xxx..x...",
        "......x..",
        "......xx.",
        "......xxx",
    ]


def test_an_encoders_history_sees_itself_whole_and_no_candidate():
    layout = RequestLayout.from_lengths([2], [[2, 1]], [[2, 2]], causal=False)
    seen = ["".join(".x"[int(x)] for x in row) for row in layout.dense_mask()]
    assert seen == ["xx...", "xx...", "xxxx.", "xxxx.", "xx..x"]


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_mask_positions_and_separate_sequences_say_the_same(layout):
    mask, positions = layout.dense_mask(), layout.positions()
    batch = layout.separate()
    assert batch.tokens.shape[0] == layout.num_candidates
    for c in range(layout.num_candidates):
        sequence = batch.tokens[c][batch.present[c]]
        assert torch.equal(mask[layout.last_tokens()[c]].nonzero()[:, 0], sequence)
        assert positions[sequence].tolist() == list(range(len(sequence)))
        assert sequence[batch.end[c]] == layout.candidate_start[c]
    assert layout.largest_position == max(positions.tolist(), default=-1)


@settings(max_examples=30, deadline=None)
@given(layouts())
def test_requests_do_not_see_each_other(layout):
    request = layout.token_requests()
    assert not (layout.dense_mask() & (request[:, None] != request[None, :])).any()


def test_an_empty_row():
    layout = RequestLayout.from_lengths([], [], [])
    assert (layout.length, layout.num_requests, layout.num_candidates, layout.largest_position) == (0, 0, 0, -1)
    assert layout.positions().shape == layout.last_tokens().shape == layout.request_offsets().shape == (0,)
    assert layout.dense_mask().shape == (0, 0)


def test_flat_arrays_give_the_same_layout_as_lists():
    lists = RequestLayout.from_lengths([3, 0, 2], [[2, 1], [], [2]], [[1, 3], [], [1]])
    flat = RequestLayout.from_arrays(np.array([3, 0, 2], np.int32), [2, 0, 1], [2, 1, 2], [1, 3, 1])
    for name in lists.host:
        assert torch.equal(getattr(lists, name), getattr(flat, name)), name


def test_a_staircase_for_an_encoder_is_refused_with_the_remedy():
    with pytest.raises(BackboneError, match=r"candidate 1 sees 2 of 3 history tokens.*history.layout: shared_end"):
        RequestLayout.from_lengths([3], [[1, 1]], [[3, 2]], causal=False)


@pytest.mark.parametrize(
    ("lengths", "ends"), [([[0]], [[1]]), ([[1]], [[4]]), ([[1]], [[-1]]), ([[1, 2]], [[1]]), ([[1], [1]], [[1], [1]])]
)
def test_impossible_layouts_are_refused(lengths, ends):
    with pytest.raises(ValueError, match=r"."):
        RequestLayout.from_lengths([3], lengths, ends)


def test_token_uids_name_a_token_whatever_it_is_packed_with():
    uids = torch.tensor([70, 71])
    both = RequestLayout.from_lengths([3, 1], [[2, 1], [2]], [[1, 3], [1]])
    alone = RequestLayout.from_lengths([1], [[2]], [[1]])
    packed = token_uids(uids, both.token_requests(), both.request_offsets())
    assert torch.equal(packed[6:], token_uids(uids[1:], alone.token_requests(), alone.request_offsets()))
    assert len(set(packed.tolist())) == both.length
