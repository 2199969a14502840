import pytest

from mtrec_ray.config import Stage
from mtrec_ray.errors import ConfigError
from mtrec_ray.multitask.strategy.stages import span_at, spans
from tests.batches import make_run

STAGES = [Stage(until=0.25, layers=0), Stage(until=0.3), Stage(until=1.0)]


def test_spans_cover_all_steps() -> None:
    assert [(span.first, span.last) for span in spans(STAGES, 100)] == [(0, 25), (25, 30), (30, 100)]
    assert [(span.first, span.last) for span in spans([], 7)] == [(0, 7)]


def test_a_stage_too_short_for_a_step_is_left_out() -> None:
    assert [(span.first, span.last) for span in spans(STAGES, 4)] == [(0, 1), (1, 4)]


def test_the_span_of_a_step() -> None:
    found = spans(STAGES, 100)
    assert [span_at(found, step) for step in (0, 24, 25, 99, 100)] == [found[0], found[0], found[1], found[2], found[2]]


@pytest.mark.parametrize(
    "stages", ["[{until: 0.5}]", "[{until: 0.5}, {until: 0.5}, {until: 1}]", "[{until: 1}, {until: 0.5}]"]
)
def test_stages_that_do_not_follow_each_other_are_refused(stages: str) -> None:
    with pytest.raises(
        ConfigError, match=r"strategy\.stages: stages must end one after the other and the last one at 1"
    ):
        make_run(f"strategy.stages={stages}")
