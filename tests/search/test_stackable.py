"""Which way trials are run, and the field that decides."""

import pytest

from mtrec_ray.errors import ConfigError
from mtrec_ray.search.space import Space
from mtrec_ray.search.stackable import choose_mode
from tests.batches import make_run

SPACE = "tune.space={train.learning_rate.towers: {loguniform: [1e-4, 1e-2]}}"


def chosen(*overrides):
    run = make_run("backbone={name: nano, pretrained: false}", SPACE, *overrides)
    return choose_mode(run, Space.parse(run))


def test_trials_are_stacked_where_nothing_keeps_them_from_it():
    assert chosen().name == "stacked"
    assert chosen("backbone=none").name == "stacked"
    assert chosen("tune.mode=distributed").name == "distributed"


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["cluster.workers=2"], "cluster.workers is 2"),
        (["engine.zero_stage=3"], "engine.zero_stage is 3"),
        (["engine.offload=cpu"], "engine.offload is cpu"),
        (["backbone.packing=off"], "backbone.packing is off"),
        (["adapter.kind=full"], "adapter.kind full"),
        (["tune.space={adapter.kind: [lora, full]}"], "adapter.kind full"),
        *(([f"adapter.kind={kind}"], f"adapter.kind {kind}") for kind in ("dora", "ia3", "prefix", "bottleneck")),
        (["adapter.kind=adalora", "engine.zero_stage=0"], "adapter.kind adalora"),
        (["tune.space={adapter.kind: [lora, frozen, prefix]}"], "adapter.kind prefix"),
        (["strategy.adaptive={main: [like]}"], "strategy.adaptive reads validation rows"),
        (["tune.space={engine.precision: [fp32, bf16]}"], "engine.precision is searched"),
        (["tune.space={backbone.pooling: [last, mean]}"], "backbone.pooling is searched"),
    ],
)
def test_what_cannot_be_stacked_is_distributed_and_the_field_named(overrides, field):
    mode = chosen(*overrides)
    assert mode.name == "distributed"
    assert field in mode.reason
    with pytest.raises(ConfigError, match=rf"tune.mode: trials cannot be stacked, since .*{field}"):
        chosen(*overrides, "tune.mode=stacked")


def test_what_is_each_trials_own_can_be_searched_in_a_stack():
    space = "tune.space={engine.optimizer: [adamw, sgd], train.batch_requests: [8, 16], adapter.rank: [2, 4]}"
    assert chosen(space).name == "stacked"
    assert chosen("tune.space={adapter.kind: [lora, frozen]}").name == "stacked"
