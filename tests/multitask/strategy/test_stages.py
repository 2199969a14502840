import re

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
    ("overrides", "message"),
    [
        (
            ["backbone=none", "strategy.stages=[{until: 0.5, train: [towers]}, {until: 1, layers: 2}]"],
            "strategy.stages[1].layers is 2, but backbone is 'none', which has no layers; remove layers, or name a",
        ),
        (
            ["backbone=nano", "strategy.stages=[{until: 0.5, train: [towers, tables], layers: 0}, {until: 1}]"],
            "strategy.stages.0: layers is 0, but it says which adapters are trained, and the stage trains towers",
        ),
    ],
)
def test_layers_that_would_do_nothing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_run(*overrides)


def test_layers_of_a_backbone_and_stages_without_layers_are_taken() -> None:
    assert make_run("backbone=nano", "strategy.stages=[{until: 1, layers: 2}]").strategy.stages[0].layers == 2
    assert make_run("backbone=none", "strategy.stages=[{until: 1}]").strategy.stages[0].layers is None


@pytest.mark.parametrize(
    "stages", ["[{until: 0.5}]", "[{until: 0.5}, {until: 0.5}, {until: 1}]", "[{until: 1}, {until: 0.5}]"]
)
def test_stages_that_do_not_follow_each_other_are_refused(stages: str) -> None:
    with pytest.raises(
        ConfigError, match=r"strategy\.stages: stages must end one after the other and the last one at 1"
    ):
        make_run(f"strategy.stages={stages}")
