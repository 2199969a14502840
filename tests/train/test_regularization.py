"""R-Drop and adversarial training in the steps of the loop, against a few lines of autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtrec_ray.config import Regularization, Run
from mtrec_ray.data.batch import joined_batches
from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import ConfigError
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.model.dropout import DropoutKey, dropped_elements, feature_uids
from mtrec_ray.search.searchable import idle
from mtrec_ray.search.space import Space
from mtrec_ray.search.stackable import choose_mode
from mtrec_ray.train import regularization
from mtrec_ray.train.checks import check_parts
from mtrec_ray.train.loop import training_steps
from mtrec_ray.train.regularization import check_features, dropouts, redrawn
from tests.batches import Step, make_batch, make_manifest, make_request, make_run, make_steps
from tests.multitask.balancing.training import run_of, train
from tests.training import distance, make_engine, make_objective, make_recipe

R_DROP = "regularization.r_drop.weight=2"
FGM = "regularization.adversarial={method: fgm, epsilon: 0.1, weight: 0.5}"
PGD = "regularization.adversarial={method: pgd, epsilon: 0.1, steps: 2, step_size: 0.08}"
ON_FEATURES = "regularization.adversarial={method: fgm, epsilon: 0.1, on: features}"
WITH_ADAPTERS = "adapter.dropout=0.2"
SWITCHES = {"r_drop": (R_DROP,), "fgm": (FGM,), "pgd": (PGD,), "features": (ON_FEATURES,), "both": (R_DROP, PGD)}


def lively_engine(run: Run) -> Engine:
    """Its first weights are four times as large, so that predictions differ."""
    engine = make_engine(run, with_backbone=True)
    engine.load_parameters({name: 4 * value for name, value in engine.parameters().items()})
    engine.model.train()
    return engine


def sums_of(run: Run, batch: Any, step: int = 0) -> Tensor:
    """Per task what the loop divides by N, of one batch."""
    engine, objective = lively_engine(run), make_objective(run)
    scales = objective.scales(objective.counts(batch))
    return regularization.loss_sums(
        run.regularization, engine, objective, batch, DropoutKey(run.seed, step), scales, None
    ).detach()


def test_r_drop_is_half_of_both_losses_and_of_alpha_times_their_divergence() -> None:
    run, batch = make_run(R_DROP, WITH_ADAPTERS), make_steps(1, tokens=True)[0].batches[0]
    engine, objective = lively_engine(run), make_objective(run)
    with torch.no_grad():
        (one,), (other,) = (engine.forward(b, DropoutKey(run.seed, 0)) for b in (batch, redrawn(batch)))
    observed = (~batch.labels.isnan()).float()
    p, q = (torch.sigmoid(x["like"][:, 0]) for x in (one, other))
    bernoulli = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    bernoulli = (bernoulli + q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()) / 2
    a, b = (functional.log_softmax(x["kind"], 1) for x in (one, other))
    classes = (functional.kl_div(a, b, reduction="none", log_target=True).sum(1) + (a.exp() * (a - b)).sum(1)) / 2
    squares = (one["stars"][:, 0] - other["stars"][:, 0]) ** 2 / 2
    apart = torch.stack([bernoulli, squares, classes], 1) * observed
    expected = (objective.loss_sums([one], batch) + objective.loss_sums([other], batch) + 2 * apart.sum(0)) / 2
    torch.testing.assert_close(sums_of(run, batch), expected, rtol=1e-5, atol=1e-5)
    assert (apart.sum(0) > 0.01).all()


def test_the_second_view_has_masks_of_its_own() -> None:
    batch = make_batch([make_request(n) for n in range(200)])
    masks = [dropped_elements(feature_uids(b.row_ids), 64, 77, 0.5) for b in (batch, redrawn(batch))]
    agree = float((masks[0] == masks[1]).double().mean())
    assert agree == pytest.approx(0.5, abs=4 * 0.5 / masks[0].numel() ** 0.5)


def test_the_adversarial_loss_is_added_with_its_weight() -> None:
    batch = make_steps(1, tokens=True)[0].batches[0]
    clean, one, half = (
        sums_of(make_run(WITH_ADAPTERS, *more), batch)
        for more in ((), (FGM, "regularization.adversarial.weight=1"), (FGM,))
    )
    torch.testing.assert_close(half - clean, (one - clean) / 2)
    objective = make_objective(make_run())
    scales = objective.scales(objective.counts(batch))
    assert float(objective.loss(one - clean, scales)) > float(objective.loss(clean, scales))
    both = sums_of(make_run(WITH_ADAPTERS, R_DROP, FGM), batch)
    torch.testing.assert_close(both - sums_of(make_run(WITH_ADAPTERS, R_DROP), batch), half - clean)


def test_batches_that_are_read_together_are_read_as_each_alone() -> None:
    parts = [make_batch([make_request(n) for n in numbers], tokens=True) for numbers in ((1, 2), (), (3, 4, 5))]
    whole = joined_batches(parts)
    expected = make_batch([make_request(n) for n in (1, 2, 3, 4, 5)], tokens=True)
    for name in vars(expected):
        if name not in ("layout", "event_time"):  # the times are counted from each batch's first event
            torch.testing.assert_close(getattr(whole, name), getattr(expected, name), equal_nan=True)
    for name, values in expected.layout.host.items():
        assert whole.layout.host[name].tolist() == values.tolist()


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_micro_steps_and_packing_do_not_change_a_step(switches: tuple[str, ...]) -> None:
    run = run_of("sum", WITH_ADAPTERS, *switches)
    whole = train(run, make_steps(2, tokens=True))
    parts = train(run, make_steps(2, tokens=True, micro_steps=3))
    assert max(distance(*pair) for pair in zip(parts["gradients"], whole["gradients"], strict=True)) < 1e-4
    engine, separate = make_engine(run, with_backbone=True), make_engine(run, with_backbone=True)
    separate.model.backbone.mode = "separate"  # type: ignore[union-attr]
    for each in (engine, separate):
        list(training_steps(each, make_steps(2, tokens=True), make_recipe(run, 2, each)))
    assert distance(separate.parameters(), engine.parameters()) < 1e-4
    plain = train(run_of("sum", WITH_ADAPTERS), make_steps(2, tokens=True))
    assert distance(whole["gradients"][0], plain["gradients"][0]) > 1e-2


@pytest.mark.parametrize("off", ["regularization.r_drop.weight=0", FGM.replace("0.5", "0")])
def test_a_weight_of_zero_is_off(off: str) -> None:
    data = make_steps(3, tokens=True)
    found, plain = (train(run_of("sum", *more), data) for more in ((off,), ()))
    assert distance(found["parameters"], plain["parameters"]) == 0
    assert make_run(off).regularization.views == Regularization().views == 1


def after_one_step(*overrides: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = train(run_of("sum", WITH_ADAPTERS, *overrides), make_steps(1, tokens=True))["parameters"]
    return found


@pytest.mark.parametrize(
    ("base", "override"),
    [
        (R_DROP, "regularization.r_drop.weight=3"),
        (FGM, "regularization.adversarial.method=pgd"),
        (FGM, "regularization.adversarial.epsilon=0.2"),
        (FGM, "regularization.adversarial.weight=0.6"),
        (FGM, "regularization.adversarial.on=features"),
        (PGD, "regularization.adversarial.steps=3"),
        (PGD, "regularization.adversarial.step_size=0.05"),
    ],
)
def test_each_setting_changes_the_training(base: str, override: str) -> None:
    assert distance(after_one_step(base, override), after_one_step(base)) > 1e-6


def test_without_a_backbone_features_are_moved_by_default() -> None:
    data = make_steps(2)
    found = [
        train(run_of("sum", ON_FEATURES, f"regularization.adversarial.on={on}"), data, with_backbone=False)
        for on in ("auto", "features")
    ]
    assert distance(found[0]["parameters"], found[1]["parameters"]) == 0


@pytest.mark.parametrize("more", ["engine.activation_checkpointing=true", "adapter.kind=full", "adapter.kind=frozen"])
def test_it_trains_with_every_way_of_tuning(more: str) -> None:
    data, drop = make_steps(2, tokens=True), () if more.startswith("adapter") else (WITH_ADAPTERS,)
    found = train(run_of("sum", *drop, R_DROP, PGD, more), data)
    assert all(bool(g.isfinite().all()) for g in found["gradients"][1].values())
    if drop:
        expected = train(run_of("sum", *drop, R_DROP, PGD), data)
        assert distance(found["parameters"], expected["parameters"]) < 1e-6


def test_in_bf16_it_is_about_the_same() -> None:
    data = make_steps(1, tokens=True)
    exact, found = (train(run_of("sum", R_DROP, FGM, *more), data) for more in ((), ("engine.precision=bf16",)))
    assert 1e-5 < distance(found["gradients"][0], exact["gradients"][0]) < 0.1


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_a_micro_step_without_candidates_adds_nothing(switches: tuple[str, ...]) -> None:
    run, data = run_of("sum", *switches), make_steps(1, tokens=True)
    padded = [Step(0, [*data[0].batches, make_batch([], tokens=True)])]
    assert distance(train(run, padded)["parameters"], train(run, data)["parameters"]) < 1e-6


def test_a_run_goes_on_as_if_it_had_never_stopped() -> None:
    run, data = make_run(R_DROP, PGD, WITH_ADAPTERS), make_steps(4, tokens=True)
    whole, first, second = (make_engine(run, with_backbone=True) for _ in range(3))
    recipe = make_recipe(run, 4, whole)
    list(training_steps(whole, data, recipe))
    steps = training_steps(first, data, recipe)
    next(steps), next(steps)
    second.load_parameters(first.parameters())
    second.load_optimizer_state(first.optimizer_state())
    list(training_steps(second, data[2:], recipe, first_step=2))
    assert distance(second.parameters(), whole.parameters()) == 0


def test_a_balance_method_sees_each_tasks_total() -> None:
    """The Gramian at z of both views' gradients, of the tasks' losses with R-Drop."""
    run, (step,) = run_of("mgda", R_DROP), make_steps(1, tokens=True)
    engine, objective, key = make_engine(run, with_backbone=True), make_objective(run), DropoutKey(run.seed, 0)
    model: Any = engine.model.train()
    (batch,) = step.batches
    whole, size = joined_batches([batch, redrawn(batch)]), batch.num_candidates
    z = model.represent(whole, key).detach().requires_grad_()
    with model.context.use(key, feature_uids(whole.row_ids)):
        logits = model.towers(z, whole.domain, objective.tasks)
    one, other = ({t: x[part] for t, x in logits.items()} for part in (slice(size), slice(size, None)))
    sums = objective.loss_sums([one], batch) + objective.loss_sums([other], batch)
    sums = (sums + 2 * objective.divergence_sums([one], [other], batch)) / 2
    losses = sums * objective.scales(objective.counts(batch))
    apart = torch.stack([torch.autograd.grad(x, z, retain_graph=True)[0].flatten() for x in losses]).double()
    found = train(run, [step])
    torch.testing.assert_close(found["gramian"][0], apart @ apart.T, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found["losses"][0], sums.detach() / objective.counts(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("switches", [(R_DROP,), (R_DROP, PGD)], ids=["r_drop", "both"])
def test_a_balance_method_may_look_at_the_whole_step(switches: tuple[str, ...]) -> None:
    data = make_steps(2, tokens=True)
    by_step, by_part = (train(run_of("mgda", *switches, f"balance.scope={s}"), data) for s in ("step", "micro_step"))
    assert distance(by_step["parameters"], by_part["parameters"]) < 1e-5


def test_a_balance_method_that_looks_again_sees_the_same_loss() -> None:
    """Where no weight has moved; the worst inputs are looked for again."""
    run = run_of("famo", R_DROP, PGD, "train.learning_rate={adapters: 0, towers: 0, tables: 0}")
    engine, told = make_engine(run, with_backbone=True), []
    recipe = make_recipe(run, 1, engine)
    recipe.balancer.method.learn = lambda step, seen, again: told.append((seen.losses, again))  # type: ignore[method-assign]
    (result,) = training_steps(engine, make_steps(1, tokens=True), recipe)
    ((before, again),) = told
    torch.testing.assert_close(again, before, rtol=1e-6, atol=0)
    torch.testing.assert_close(before, result.task_loss, rtol=1e-6, atol=0)


def test_micro_steps_have_room_for_all_views() -> None:
    sizes = [
        order_settings(make_run("train.micro_tokens=600", *more), "train", 1).micro_tokens
        for more in ((), (R_DROP,), (R_DROP, FGM))
    ]
    assert sizes == [600, 300, 200]
    assert order_settings(make_run("train.micro_tokens=600", R_DROP), "valid", 1).micro_tokens == 600


SPACE = "tune.space={train.learning_rate.towers: {loguniform: [1e-4, 1e-2]}}"
NANO = "backbone={name: nano, pretrained: false}"


def test_which_trials_can_be_stacked() -> None:
    for switch, name in ((R_DROP, "stacked"), (FGM, "distributed")):
        run = make_run(NANO, SPACE, switch)
        found = choose_mode(run, Space.parse(run))
        assert found.name == name
    assert "regularization.adversarial" in found.reason
    with pytest.raises(ConfigError, match=r"cannot be stacked, since regularization\.adversarial"):
        choose_mode(make_run(NANO, SPACE, FGM, "tune.mode=stacked"), Space.parse(run))


@pytest.mark.parametrize(
    ("path", "overrides", "reason"),
    [
        ("regularization.adversarial.epsilon", (), "method is none"),
        ("regularization.adversarial.steps", (FGM,), "method is fgm"),
        ("regularization.adversarial.on", (FGM.replace("0.5", "0"),), "weight is 0"),
        ("regularization.adversarial.step_size", (PGD,), None),
        ("regularization.r_drop.weight", (), None),
    ],
)
def test_what_a_search_of_it_would_not_change(path: str, overrides: tuple[str, ...], reason: str | None) -> None:
    found = idle(path, [make_run(*overrides)])
    assert found is None if reason is None else reason in str(found)


NO_DROPOUT = ("features.dropout=0", "features.id_dropout=0", "towers.dropout=0")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((R_DROP, *NO_DROPOUT), r"r_drop\.weight is 2, but there is no dropout.*towers\.dropout, features\.dropout, f"),
        ((R_DROP, *NO_DROPOUT, NANO), r"adapter\.dropout"),
        ((R_DROP, *NO_DROPOUT, NANO, "adapter.kind=frozen"), r"features\.id_dropout above 0"),
        ((R_DROP, "features.hidden=[]", *NO_DROPOUT[1:]), "no dropout"),
        (("regularization.adversarial={method: fgm, on: tokens}",), r"adversarial\.on is tokens, but backbone is"),
    ],
)
def test_what_would_do_nothing_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_parts(make_run(*overrides))


def test_any_dropout_is_enough() -> None:
    for more in ("towers.dropout=0.1", "features.dropout=0.1", "features.id_dropout=0.1"):
        check_parts(make_run(R_DROP, *NO_DROPOUT, more))
    check_parts(make_run(R_DROP, *NO_DROPOUT, NANO, WITH_ADAPTERS))
    assert dropouts(make_run("position.method=feature", "position.dropout=0.3"))["position.dropout"] == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{method: fgm, steps: 3}", "steps belongs to `method: pgd`, and method is fgm"),
        ("{step_size: 0.1}", "step_size belongs to `method: pgd`, and method is none"),
        ("{method: fgm, epsilon: 0}", "epsilon"),
        ("{method: fgm, weight: -1}", "weight"),
        ("{method: fgn}", "method"),
        ("{method: fgm, epsilonn: 1}", "unknown key"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_run(f"regularization.adversarial={settings}")


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_a_resolved_config_can_be_read_again(switches: tuple[str, ...]) -> None:
    run = make_run(*switches)
    assert Regularization.model_validate(run.regularization.model_dump(mode="json")) == run.regularization
    assert run.regularization.views == 1 + len(switches)


def test_features_that_are_not_there_cannot_be_moved() -> None:
    bare = manifest_with(numbers=[], categories=[])
    no_ids = ("features.user_dim=0", "features.item_dim=0")
    with pytest.raises(ConfigError, match=r"adversarial\.on is features, but candidates have no side features"):
        check_features(make_run(NANO, ON_FEATURES, *no_ids), bare)
    check_features(make_run(NANO, ON_FEATURES, *no_ids), make_manifest())
    check_features(make_run(NANO, ON_FEATURES), bare)
    check_features(make_run(NANO, FGM, *no_ids), bare)


def manifest_with(**parts: Any) -> Any:
    return make_manifest().model_copy(update=parts)
