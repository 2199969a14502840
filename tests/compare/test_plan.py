"""What a comparison trains, and what it refuses before anything starts."""

import re

import pytest

from mtrec_ray import config_file
from mtrec_ray.compare.plan import make_plan
from mtrec_ray.config_file import dump, parse
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.errors import ConfigError
from tests.evaluate.world import CONFIG


def plan(*overrides: str):
    return make_plan(config_file.parse(CONFIG, overrides))


def test_each_task_alone_then_the_ways_together():
    found = plan("compare.methods=[sum, {method: cagrad, params: {c: 0.2}, scope: step}]")
    assert [variant.name for variant in found.variants] == [
        "like alone",
        "rating alone",
        "mood alone",
        "sum",
        "cagrad c=0.2 step",
    ]
    assert found.metrics == {"like": "auc", "rating": "rmse", "mood": "accuracy"}
    cagrad = found.joint[1].run.balance
    assert (cagrad.method, cagrad.params, cagrad.scope) == ("cagrad", {"c": 0.2}, "step")


def test_a_task_alone_is_the_config_with_the_weights_of_the_others_at_zero():
    found = plan(
        "tasks.like.weight=2",
        "balance={method: uncertainty, scope: step}",
        "strategy.tasks=round_robin",
        "train.guards={rating/rmse: {no_worse_than: 1}, like/logloss: {no_worse_than: 1}}",
        "compare.metrics={like: gauc}",
    )
    run, base = found.alone("like").run, found.run
    assert {name: task.weight for name, task in run.tasks.items()} == {"like": 2, "rating": 0, "mood": 0}
    assert run.train.metric == "like/gauc"
    assert list(run.train.guards) == ["like/logloss"]
    assert run.balance.method == "sum"
    assert settings(run) == settings(base)
    assert run.strategy.tasks == "joint"
    same = {"tasks", "train", "balance", "strategy", "compare"}
    assert run.model_dump(exclude=same) == base.model_dump(exclude=same)
    changed = {"metric", "guards"}
    assert run.train.model_dump(exclude=changed) == base.train.model_dump(exclude=changed)


def test_adaptive_weights_are_compared_as_a_variant_and_mean_nothing_to_a_task_alone():
    found = plan("compare.variants={steered: {strategy.adaptive: {main: [like]}}}")
    assert found.joint[-1].run.strategy.adaptive.main == ["like"]
    assert not found.joint[0].run.strategy.adaptive.is_on
    steered = plan("strategy.adaptive={main: [like]}", "compare.variants={quick: {strategy.adaptive.rate: 1}}")
    assert not steered.alone("like").run.strategy.adaptive.is_on
    assert steered.joint[-1].run.strategy.adaptive.rate == 1


def test_the_plain_sum_is_plain_also_where_the_config_balances():
    found = plan(
        "balance={method: cagrad, params: {c: 0.2}, scope: step}", "compare.variants={wide: {towers.z_dim: 8}}"
    )
    plain, wide = found.joint
    assert (plain.run.balance.method, plain.run.balance.params, plain.run.balance.scope) == ("sum", {}, "step")
    assert (wide.run.balance.method, wide.run.towers.z_dim) == ("cagrad", 8)
    assert plain.run.train.metric == found.run.train.metric


def test_seeds_are_counted_from_the_configs_own():
    assert plan("seed=5").seeds == (5, 6, 7)
    assert plan("compare.seeds=[4, 1]").seeds == (4, 1)
    order = [(variant.name, seed) for variant, seed in plan("compare.seeds=2").trainings()]
    assert order[:5] == [("like alone", 0), ("rating alone", 0), ("mood alone", 0), ("sum", 0), ("like alone", 1)]


def test_a_training_is_a_run_of_its_own_in_the_comparisons_folder():
    found = plan("cluster.storage=s3://bucket/runs/", "compare.methods=[sum, rlw]", "compare.seeds=2", "tune.trials=3")
    runs = {(variant.name, seed): found.run_of(variant, seed) for variant, seed in found.trainings()}
    run = runs["rating alone", 1]
    assert (run.name, run.seed, run.cluster.storage) == ("alone-rating-seed1", 1, "s3://bucket/runs/demo")
    assert parse(dump(run)) == run
    assert run.compare == type(run.compare)()
    assert run.tune == type(run.tune)()
    assert len({run.name for run in runs.values()}) == len(runs)
    with_baselines = [key for key, run in runs.items() if run.evaluate.baselines]
    assert with_baselines == [("sum", 0)]
    assert runs["sum", 0].evaluate == found.run.evaluate


def test_names_become_folders():
    found = plan('compare.variants={"PLE, 8 experts": {towers.kind: ple}}')
    assert found.joint[-1].slug == "PLE-8-experts"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare.methods=[cagard]"], "'cagard' is unknown. Did you mean 'cagrad'?"),
        (["compare.methods=[{method: cagrad, params: {k: 1}}]"], "unknown key 'balance.params.k'"),
        (["compare.methods=[{method: cagrad, scop: step}]"], "Did you mean 'scope'?"),
        (["compare.methods=[sum, sum]"], "'sum' and 'sum' would share the folder sum"),
        (["compare.variants={Sum: {towers.z_dim: 8}}"], "'sum' and 'Sum' would share the folder"),
        (["compare.methods=[]"], "nothing to compare: compare.methods and compare.variants are empty"),
        (["compare.variants={x: {towers.knd: ple}}"], "x: unknown key 'towers.knd'. Did you mean 'kind'?"),
        (["compare.variants={x: {towers.kind: pel}}"], "x: towers.kind: 'pel' is unknown. Did you mean 'ple'"),
        (["compare.variants={x: {train.epochs: many}}"], "compare.variants.x: 'train.epochs' is 'many'"),
        (["compare.variants={x: {tasks.lik.weight: 2}}"], "there is no task 'lik'. Did you mean 'like'?"),
        (["compare.variants={x: {balance.method: cagard}}"], "compare.variants.x: balance.method: 'cagard' is unknown"),
        (["compare.variants={x: {history.lag: 1h}}"], "compare.variants.x changes the prepared data"),
        (["compare.variants={x: {seed: 2}}"], "'seed' is the same for all trainings: compare.seeds says"),
        (["compare.variants={x: {evaluate.bootstrap: 2}}"], "'evaluate.bootstrap' is the same for all trainings"),
        (["compare.variants={x: {}}"], "compare.variants.x is empty"),
        (["compare.variants={'?': {towers.z_dim: 8}}"], "the name needs a letter or a digit"),
        (["compare.seeds=0"], "0 is no number of trainings; give 1 or more"),
        (["compare.seeds=[]"], "[] is no number of trainings"),
        (["compare.seeds=[1, 1]"], "[1, 1] is no number of trainings"),
        (["compare.metrics={like: ac}"], "'ac' is no metric of kind 'binary'"),
        (["compare.metrics={lik: auc}"], "'lik' is no task that is compared. Did you mean 'like'?"),
        (["tasks.rating.weight=0", "tasks.mood.weight=0"], "nothing to compare: the only task that is learned is like"),
        (["tasks={like: {label: like}}"], "nothing to compare: the only task that is learned is like."),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_the_remedy(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(*overrides)


def test_a_task_without_weight_is_not_compared_and_stays_out():
    found = plan("tasks.mood.weight=0")
    assert list(found.metrics) == ["like", "rating"]
    assert found.alone("like").values == {"tasks.rating.weight": 0.0, "train.metric": "like/auc"}
