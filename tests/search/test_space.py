import numpy as np
import optuna
import pytest
import yaml

from mtrec_ray.config_file import dump
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.towers import TOWERS
from mtrec_ray.search.applied import applied
from mtrec_ray.search.space import Space
from tests.search.spaces import LR, planted_run, run_of

LORA = {"adapter.kind": ["lora", "frozen"], "adapter.rank": {"choice": [2, 4], "when": {"adapter.kind": "lora"}}}


def test_values_become_a_config_that_differs_in_nothing_else():
    run = planted_run()
    space = Space.parse(run)
    assert space.paths == ["tasks.a.weight", "tasks.b.weight", "tasks.c.weight", LR]
    values = space.sample(np.random.default_rng(0))
    trial = applied(run, values)
    assert trial.train.learning_rate.towers == values[LR]
    assert [task.weight for task in trial.tasks.values()] == [values[f"tasks.{name}.weight"] for name in "abc"]
    assert trial.tune.space == {}
    assert applied(trial, space.default(run)) == applied(run, {})


def test_sampled_values_are_plain_and_can_be_written():
    run = run_of({LR: {"loguniform": [1e-4, 1e-2]}, "adapter.rank": {"randint": [1, 8]}, "towers.dropout": [0.0, 0.2]})
    values = Space.parse(run).sample(np.random.default_rng(0))
    assert yaml.safe_load(yaml.safe_dump(values)) == values
    assert "rank" in dump(applied(run, values))


def test_values_depend_on_the_seed_alone():
    space = Space.parse(planted_run())
    draws = [space.sample(np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_whole_numbers_are_drawn_up_to_both_ends():
    space = Space.parse(run_of({"adapter.rank": {"randint": [1, 3]}, "towers.z_dim": {"lograndint": [1, 4]}}))
    rng = np.random.default_rng(0)
    draws = [space.sample(rng) for _ in range(100)]
    assert {values["adapter.rank"] for values in draws} == {1, 2, 3}
    assert {values["towers.z_dim"] for values in draws} == {1, 2, 3, 4}


def test_a_condition_holds_whatever_the_order_of_the_entries():
    space = Space.parse(run_of(dict(reversed(LORA.items()))))
    rng = np.random.default_rng(0)
    draws = [space.sample(rng) for _ in range(30)]
    assert {("adapter.rank" in values) for values in draws} == {True, False}
    assert all(("adapter.rank" in values) == (values["adapter.kind"] == "lora") for values in draws)


def test_parameters_of_kinds_towers_and_methods_are_paths_like_others():
    space = {
        "tasks.a.params.label_smoothing": {"uniform": [0.05, 0.2]},
        "towers.params.experts": {"randint": [2, 3]},
        "balance.params.alpha": {"uniform": [0.5, 1.0]},
    }
    run = run_of(space, towers={"kind": "mmoe"}, balance={"method": "gradnorm", "params": {"alpha": 2.0}})
    parsed = Space.parse(run)
    assert parsed.default(run) == {
        "tasks.a.params.label_smoothing": 0.0,
        "towers.params.experts": TOWERS["mmoe"].check({}).experts,
        "balance.params.alpha": 2.0,
    }
    trial = applied(run, parsed.sample(np.random.default_rng(0)))
    assert 0.05 <= trial.tasks["a"].params["label_smoothing"] <= 0.2
    assert trial.towers.params["experts"] in (2, 3)
    assert 0.5 <= trial.balance.params["alpha"] <= 1


def test_a_misspelt_parameter_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"towers\.params\.expert'; did you mean 'towers\.params\.experts'"):
        Space.parse(run_of({"towers.params.expert": [2, 3]}, towers={"kind": "mmoe"}))


def test_what_is_ranked_is_not_searched_and_vectors_that_no_task_reads_are_idle():
    tasks = {"a": {"label": "a"}, "b": {"kind": "retrieval", "label": "b"}}
    with pytest.raises(ConfigError, match=r"exclude_seen is not searched: trials are compared by it"):
        Space.parse(run_of({"tasks.b.params.exclude_seen": [False, True]}, tasks=tasks))
    with pytest.raises(ConfigError, match="changes nothing, since no task is of kind retrieval or interest_match"):
        Space.parse(run_of({"matching.dim": [8, 16]}))
    assert Space.parse(run_of({"matching.dim": [8, 16]}, tasks=tasks)).paths == ["matching.dim"]


def test_conditions_of_conditions():
    space = {**LORA, "adapter.alpha": {"uniform": [1, 8], "when": {"adapter.rank": [4]}}}
    parsed = Space.parse(run_of(space))
    rng = np.random.default_rng(0)
    draws = [parsed.sample(rng) for _ in range(40)]
    assert any("adapter.alpha" in values for values in draws)
    assert all(("adapter.alpha" in values) == (values.get("adapter.rank") == 4) for values in draws)


def test_an_optuna_trial_gives_values_and_values_give_it_back():
    run = run_of({**LORA, "towers.hidden": [[64], [32, 32]], LR: {"loguniform": [1e-4, 1e-2]}})
    space = Space.parse(run)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        values = space.suggest(trial)
        assert space.parameters(values) == trial.params
        applied(run, values)


def test_default_values_are_the_configs_own_even_outside_the_space():
    run = run_of({LR: {"loguniform": [1e-5, 1e-4]}, "train.clip_norm": [0.5, None]})
    space = Space.parse(run)
    assert space.default(run) == {LR: 1e-3, "train.clip_norm": 1.0}
    assert space.parameters(space.default(run)) is None
    assert space.parameters({LR: 5e-5}) is None  # a path is missing
    assert space.parameters({LR: 5e-5, "train.clip_norm": None}) is not None


def test_the_grid_is_the_product_without_repetitions():
    grid = Space.parse(run_of({**LORA, LR: {"loguniform": [1e-4, 1e-2], "points": 3}})).grid()
    assert len(grid) == (2 + 1) * 3
    assert len({tuple(sorted(values.items())) for values in grid}) == len(grid)


def test_a_range_without_points_has_no_grid():
    with pytest.raises(ConfigError, match=r"tune.space.train.learning_rate.towers: .* add `points: 4`"):
        Space.parse(run_of({LR: {"uniform": [0, 1]}})).grid()


def test_a_grid_that_is_too_large_is_refused():
    ranges = {
        f"train.learning_rate.{group}": {"uniform": [0, 1], "points": 30} for group in ("adapters", "towers", "tables")
    }
    with pytest.raises(ConfigError, match="more than 10000 combinations"):
        Space.parse(run_of(ranges)).grid()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "tune.space is empty: name what to search"),
        ({"train.learning_rate.tower": {"uniform": [0, 1]}}, "did you mean 'train.learning_rate.towers'?"),
        ({"tasks.d.weight": {"uniform": [0, 1]}}, "the config has no value 'tasks.d.weight'; did you mean 'tasks."),
        ({"zzz": {"uniform": [0, 1]}}, "the config has no value 'zzz'; write it as"),
        (
            {"train.learning_rate": {"uniform": [0, 1]}},
            "is a part of the config, not a value; choose from train.learning_rate.adapters",
        ),
        ({LR: {"uniform": [1, 0]}}, f"tune.space.{LR}.uniform is [1, 0]: an empty range"),
        ({"train.decay": {"uniform": [0, 1]}}, "tune.space.train.decay: 'train.decay' is 0.0: input should be"),
        ({"adapter.rank": {"uniform": [1, 8]}}, "tune.space.adapter.rank: 'adapter.rank' is 3.6"),
        ({"towers.dropout": {"uniform": [0, 1]}}, "'towers.dropout' is 1.0: input should be less than 1"),
        ({"adapter.rank": [4, "many"]}, "'adapter.rank' is 'many': input should be a valid integer"),
        ({LR: [0.001, "1e-3"]}, "changes nothing: all its values are the config's own"),
        ({"tasks.*.weight": {"uniform": [0, 1]}}, "has 1 `*`: a simplex needs exactly one"),
        ({"tasks.a.weight": {"simplex": ["a", "b"]}}, "has 0 `*`: a simplex needs exactly one"),
        ({"tasks.*.weight": {"simplex": ["a", "d"]}}, "the config has no value 'tasks.d.weight'"),
        (
            {"tasks.*.weight": {"simplex": ["a", "b"]}, "tasks.b.weight": {"uniform": [0, 1]}},
            "'tasks.b.weight' is searched by tune.space.tasks.*.weight too",
        ),
    ],
)
def test_what_cannot_be_searched_is_told_in_one_line(space, message):
    with pytest.raises(ConfigError) as error:
        Space.parse(run_of(space))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "values", "reason"),
    [
        ("name", ["a", "b"], "each trial has its own name"),
        ("seed", [1, 2], "luck"),
        ("data.buckets", [1, 2], "prepared once"),
        ("split.valid", [0.1, 0.2], "prepared once"),
        ("cluster.workers", [1, 2], "what the search may use"),
        ("evaluate.bootstrap", [0, 9], "after the search"),
        ("tune.trials", [1, 2], "the search itself"),
        ("plugins", [["a"], ["b"]], "imported once"),
        ("pretrain.epochs", [1, 2], "pretrained once"),
        ("train.metric", ["auto", "a/auc"], "compared by it"),
        ("train.guards", ["a", "b"], "which evaluation of a trial counts"),
        ("train.epochs", [1, 2], "equally many evaluations"),
        ("engine.zero_stage", [1, 2], "how fast a step is"),
        ("history.max_events", [16, 32], "changes the prepared data"),
        ("tasks.a.label", ["a", "b"], "changes the prepared data"),
        ("features.time", [True, False], "changes the prepared data"),
        ("features.aggregates", [["user"], ["item"]], "changes the prepared data"),
        ("backbone.vocab_size", [512, 1024], "changes the prepared data"),
        ("backbone.width", [32, 64], "changes the pretrained backbone"),
        ("engine.precision", ["fp32", "bf16"], "changes the pretrained backbone"),
    ],
)
def test_what_trials_must_share_is_refused_with_the_reason(path, values, reason):
    with pytest.raises(ConfigError, match=rf"^tune.space.{path} .*{reason}"):
        Space.parse(run_of({path: values}))


def test_what_trials_need_not_share_can_be_searched():
    Space.parse(run_of({"backbone.width": [32, 64]}, backbone={"name": "nano", "pretrained": False}))
    Space.parse(run_of({"backbone.pretrained": [True, False]}))
    Space.parse(run_of({"train.epochs": [1, 2]}, tune={"scheduler": "none"}))
    for path, values in {
        "features.user_dim": [0, 8],
        "towers.hidden": [[64], [32, 32]],
        "train.batch_requests": [16, 32],
        "train.decay": ["cosine", "linear"],
        "engine.optimizer": ["adamw", "sgd"],
        "adapter.top_layers": [1, None],
    }.items():
        assert Space.parse(run_of({path: values})).paths == [path]


def test_pretrained_weights_that_nobody_would_make_are_refused():
    with pytest.raises(ConfigError, match="changes the pretrained backbone"):
        Space.parse(run_of({"backbone.pretrained": [True, False]}, backbone={"name": "nano", "pretrained": False}))


@pytest.mark.parametrize(
    ("path", "parts", "reason"),
    [
        ("adapter.rank", {"backbone": "none"}, "backbone.name is none"),
        ("adapter.rank", {"adapter": {"kind": "full"}}, "adapter.kind is full"),
        ("adapter.rank", {"adapter": {"kind": "prefix"}}, "adapter.kind is prefix"),
        ("adapter.dropout", {"adapter": {"kind": "ia3"}}, "adapter.kind is ia3"),
        ("adapter.orthogonality", {}, "adapter.kind is lora"),
        ("train.learning_rate.adapters", {"adapter": {"kind": "frozen"}}, "adapter.kind is frozen"),
        ("features.id_dropout", {}, "features.user_dim and features.item_dim are 0"),
        ("features.history_gaps", {}, "features.history_dim is 0"),
        ("features.vector_dim", {}, "no vectors are declared"),
    ],
)
def test_a_path_without_effect_is_refused(path, parts, reason):
    values = {"adapter.rank": [2, 4], "features.vector_dim": [2, 4], "features.history_gaps": [True, False]}
    space = {path: values.get(path, {"uniform": [0.1, 0.2]})}
    with pytest.raises(ConfigError, match=f"tune.space.{path} changes nothing, since {reason}"):
        Space.parse(run_of(space, **parts))


def test_a_path_that_another_searched_one_brings_to_effect_is_taken():
    run = run_of({**LORA, "features.id_dropout": [0.1, 0.2], "features.item_dim": [0, 4]}, adapter={"kind": "full"})
    assert set(Space.parse(run).paths) == {*LORA, "features.id_dropout", "features.item_dim"}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"adapter.rank": {"choice": [2, 4], "when": "lora"}},
            "adapter.rank.when is 'lora': expected `other.path: value`",
        ),
        ({"adapter.rank": {"choice": [2, 4], "when": {"adapter.kind": "lora"}}}, "'adapter.kind' is not searched"),
        ({"adapter.rank": {"choice": [2, 4], "when": {"adapter.rank": 2}}}, "cannot depend on itself"),
        (
            {**LORA, "adapter.rank": {"choice": [2, 4], "when": {"adapter.kind": "lorra"}}},
            "'adapter.kind' never is 'lorra'; its values are 'lora', 'frozen'",
        ),
        (
            {LR: {"uniform": [0, 1]}, "adapter.rank": {"choice": [2, 4], "when": {LR: 0.5}}},
            "has no single values to depend on",
        ),
        (
            {
                "adapter.rank": {"choice": [2, 4], "when": {"towers.z_dim": 8}},
                "towers.z_dim": {"choice": [8, 16], "when": {"adapter.rank": 2}},
            },
            "the conditions (`when`) of adapter.rank, towers.z_dim go round in a circle",
        ),
    ],
)
def test_conditions_that_can_never_hold_are_refused(space, message):
    with pytest.raises(ConfigError) as error:
        Space.parse(run_of(space))
    assert message in str(error.value)
