"""What every architecture promises, whatever it computes."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mtrec_ray import config
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, DropoutKey, StatelessDropout
from mtrec_ray.model.towers import TOWERS, check_towers
from mtrec_ray.model.towers.experts import BatchedLinear, Experts
from mtrec_ray.registry import import_plugins
from tests.model.towers.architectures import (
    GATED,
    KEY,
    NAMES,
    Fitted,
    all_logits,
    candidates,
    chain,
    double,
    make,
    three_tasks,
    trained,
)

TASKS = ["click", "mood", "buy"]
IDLE: dict[str, tuple[str, ...]] = {
    "shared_bottom": ("towers.{}.",),
    "mmoe": ("towers.{}.", "mixtures.{}."),
    "cgc": ("towers.{}.", "levels.0.own.{}.", "levels.0.mixtures.{}."),
    "ple": ("towers.{}.", "levels.2.own.{}.", "levels.2.mixtures.{}.", "levels.1.mixtures.{}."),
    "cross_stitch": ("outs.{}.",),
    "star": ("towers.{}.", "auxiliaries.{}."),
    "mtl_lora": ("outs.{}.",),
}
"""Parameters of another task (by its place) that have no part in a task's logits; `aitm` has a test of its own."""
SLICED = {"cross_stitch": ("stitches.1.weight",), "mtl_lora": (".transforms", ".choices")}
"""Parameters that hold a slice for each task."""
CHANGED = [
    ("mmoe", "experts", 4),
    ("mmoe", "expert_hidden", [5]),
    ("cgc", "experts", 1),
    ("cgc", "shared_experts", 2),
    ("cgc", "expert_hidden", [5]),
    ("ple", "experts", 1),
    ("ple", "shared_experts", 2),
    ("ple", "expert_hidden", [5]),
    ("ple", "levels", 2),
    ("cross_stitch", "own", 0.6),
    ("star", "auxiliary", []),
    ("star", "domain_dim", 2),
    ("mtl_lora", "rank", 2),
    ("mtl_lora", "alpha", 3.0),
    ("mtl_lora", "up_projections", 3),
    ("mtl_lora", "temperature", 0.2),
]
GUEST = """
from mtrec_ray.config import Part
from mtrec_ray.model.towers import TOWERS, Towers
from mtrec_ray.model.towers.tower import output_layer
from torch import nn


@TOWERS.register("linear_guest")
class LinearGuest(Towers):
    class Params(Part):
        factor: float = 1.0

    def __init__(self, tasks, config, context, domains):
        super().__init__(tasks, config, context, domains)
        self.outs = nn.ModuleList(output_layer(config.z_dim, task) for task in self.tasks)

    def forward(self, z, domain, wanted):
        return {name: self.outs[self.place[name]](self.params.factor * z) for name in wanted}
"""


def test_all_architectures_of_the_design_are_there() -> None:
    assert set(TOWERS.names()) == set(NAMES)
    assert {kind for kind, _, _ in CHANGED} == {kind for kind in NAMES if TOWERS[kind].Params.model_fields}
    assert {(k, p) for k, p, _ in CHANGED} == {(k, p) for k in NAMES for p in TOWERS[k].Params.model_fields}


@pytest.mark.parametrize("kind", NAMES)
def test_logits_have_the_shapes_of_their_tasks_in_the_order_asked_for(kind: str) -> None:
    towers = make(kind)
    assert towers.names == TASKS
    found = towers(*candidates(), ["buy", "mood", "click"])
    assert [(name, tuple(logits.shape)) for name, logits in found.items()] == [
        ("buy", (7, 1)),
        ("mood", (7, 3)),
        ("click", (7, 1)),
    ]
    assert all(p.dtype == torch.float32 for p in towers.parameters())
    assert all(logits.dtype == torch.float32 for logits in found.values())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", NAMES)
def test_one_call_for_all_tasks_and_one_for_each_give_identical_logits(kind: str, training: bool) -> None:
    context = DropoutContext()
    towers = trained(make(kind, dropout=0.4, context=context)).train(training)
    z, domain = candidates(70)
    with context.use(KEY, torch.arange(70)):
        together = towers(z, domain, TASKS)
        for wanted in (["click"], ["mood"], ["buy"], ["buy", "click"]):
            alone = towers(z, domain, wanted)
            assert list(alone) == wanted
            for name in wanted:
                assert torch.equal(alone[name], together[name]), (wanted, name)


@pytest.mark.parametrize("kind", NAMES)
def test_gradients_of_one_call_for_each_task_add_up_to_those_of_one_call(kind: str) -> None:
    towers, z, domain = double(make(kind))
    sources = [z, *towers.parameters()]
    together = torch.autograd.grad(all_logits(towers, z, domain).square().sum(), sources)
    apart = sum(towers(z, domain, [name])[name].square().sum() for name in TASKS)
    for one, other in zip(together, torch.autograd.grad(apart, sources), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", sorted(IDLE))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_other_tasks_own_weights_are_not_computed_with(kind: str, place: int) -> None:
    towers, name = trained(make(kind)), TASKS[place]
    towers(*candidates(), [name])[name].square().sum().backward()
    idle = {name for name, parameter in towers.named_parameters() if parameter.grad is None}
    others = tuple(prefix.format(other) for prefix in IDLE[kind] for other in range(3) if other != place)
    assert idle == {name for name, _ in towers.named_parameters() if name.startswith(others)}
    sliced = [p.grad for n, p in towers.named_parameters() if n.endswith(SLICED.get(kind, ("nothing",)))]
    assert bool(sliced) == (kind in SLICED)
    for gradient in sliced:
        assert [bool(part.any()) for part in gradient] == [task == place for task in range(3)]


@pytest.mark.parametrize("wanted", [["click"], ["mood"], ["buy"], ["buy", "mood"], TASKS])
@pytest.mark.parametrize("kind", NAMES)
def test_nothing_is_computed_that_the_wanted_tasks_do_not_need(kind: str, wanted: list[str]) -> None:
    towers = trained(make(kind))
    computed: set[str] = set()
    for name, module in towers.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: computed.add(name))
    logits = towers(*candidates(), wanted)
    torch.cat(list(logits.values()), dim=1).square().sum().backward()
    needed = {name.rpartition(".")[0] for name, p in towers.named_parameters() if p.grad is not None}
    assert computed == needed


@pytest.mark.parametrize("kind", NAMES)
def test_without_candidates_every_parameter_gets_a_gradient_of_zero(kind: str) -> None:
    context = DropoutContext()
    towers = make(kind, dropout=0.4, context=context).train()
    z, domain = candidates(0)
    with context.use(KEY, domain):
        logits = all_logits(towers, z, domain)
    assert logits.shape == (0, 5)
    logits.sum().backward()
    for name, parameter in towers.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", NAMES)
def test_a_candidate_is_scored_alike_in_any_batch(kind: str, training: bool) -> None:
    context = DropoutContext()
    towers = trained(make(kind, dropout=0.4, context=context).double()).train(training)
    z, domain = candidates(dtype=torch.float64)
    uids = torch.arange(7) * 31

    def logits(rows: slice) -> torch.Tensor:
        with context.use(KEY, uids[rows]):
            return all_logits(towers, z[rows], domain[rows])

    parts = [logits(slice(0, 1)), logits(slice(1, 5)), logits(slice(5, 7))]
    torch.testing.assert_close(torch.cat(parts), logits(slice(0, 7)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NAMES)
def test_dropout_acts_in_training_and_follows_its_key(kind: str) -> None:
    context = DropoutContext()
    towers = trained(make(kind, dropout=0.4, context=context)).eval()
    z, domain = candidates()

    def logits(key: DropoutKey | None) -> torch.Tensor:
        with context.use(key, torch.arange(7)):
            return all_logits(towers, z, domain)

    still = logits(None)
    towers.train()
    once = logits(KEY)
    assert torch.equal(logits(KEY), once)
    assert not torch.isclose(once, still, atol=1e-5).all(0).any()  # it changes every output
    assert not torch.equal(logits(DropoutKey(0, 4)), once)


@pytest.mark.parametrize("kind", NAMES)
def test_no_two_dropouts_share_a_name(kind: str) -> None:
    towers = make(kind, tasks=chain("show", "click", "buy"), dropout=0.4)
    names = [module.name for module in towers.modules() if isinstance(module, StatelessDropout)]
    assert names
    assert len(set(names)) == len(names)


def test_experts_start_as_linear_layers_do() -> None:
    layer = BatchedLinear(3, 25, 40)
    for parameter in layer.parameters():
        assert 0.19 < parameter.abs().max() <= 0.2  # uniform between ±1 / √25
        assert parameter.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.1)


def test_experts_drop_different_elements() -> None:
    context = DropoutContext()
    experts = Experts(2, 8, [32], 0.5, "e", context).train()
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.fill_(0.1)
    with context.use(KEY, torch.arange(5)):
        kept = experts(torch.ones(5, 8)) > 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(kept[:, 0], kept[:, 1])


@pytest.mark.parametrize("kind", NAMES)
def test_the_seed_decides_the_first_weights(kind: str) -> None:
    first, same, other = (all_logits(make(kind, seed=seed), *candidates()) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.isclose(first, other).all(0).any()


@pytest.mark.parametrize("hidden", [[6, 5], [64]])
@pytest.mark.parametrize("kind", NAMES)
def test_untrained_towers_predict_the_base_rates_nearly(kind: str, hidden: list[int]) -> None:
    z, domain = candidates(210)
    logits = make(kind, hidden=hidden)(z, domain, TASKS)
    for task in three_tasks():
        expected = torch.tensor(task.initial_bias())
        found = logits[task.task.name]
        torch.testing.assert_close(found.mean(0), expected, rtol=0, atol=0.15)
        assert (found - expected).abs().max() < 0.4
        assert found.std(0).min() > 0, "it says the same of all candidates"


@pytest.mark.parametrize("kind", ["shared_bottom", "mmoe", "cgc", "ple", "aitm", "star"])
def test_towers_may_be_without_hidden_layers(kind: str) -> None:
    assert all_logits(make(kind, hidden=[]), *candidates()).shape == (7, 5)


@pytest.mark.parametrize(("kind", "name", "value"), CHANGED)
def test_each_parameter_changes_the_outcome(kind: str, name: str, value: object) -> None:
    usual, changed = (all_logits(trained(make(kind, params=params)), *candidates()) for params in ({}, {name: value}))
    assert not torch.isclose(usual, changed).all(0).any()


@pytest.mark.parametrize("kind", NAMES)
def test_gates_are_sums_over_candidates_that_add_up(kind: str) -> None:
    towers = trained(make(kind))
    assert towers.gates() == {}
    z, domain = candidates(14)
    all_logits(towers, z, domain)
    whole = towers.gates()
    assert bool(whole) == (kind in GATED)
    for sums in whole.values():
        assert not sums.requires_grad
        assert (sums > 0).all()
        assert sums.sum().item() == pytest.approx(14, rel=1e-6)
    parts = []
    for rows in (slice(0, 3), slice(3, 14), slice(14, 14)):
        all_logits(towers, z[rows], domain[rows])
        parts.append(towers.gates())
    for name, sums in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), sums)


@pytest.mark.parametrize("kind", GATED)
def test_one_call_for_each_task_leaves_the_gates_of_all(kind: str) -> None:
    towers = trained(make(kind))
    z, domain = candidates()
    all_logits(towers, z, domain)
    together = towers.gates()
    fresh = trained(make(kind))
    for name in TASKS:
        fresh(z, domain, [name])
    found = fresh.gates()
    assert found.keys() == together.keys()
    assert all(torch.equal(sums, together[name]) for name, sums in found.items())


def test_gates_are_named_after_their_tasks() -> None:
    expected = {
        "mmoe": dict.fromkeys(TASKS, 3),
        "cgc": dict.fromkeys(TASKS, 5),
        "ple": dict.fromkeys(TASKS, 5)
        | {f"level{level}/{name}": 5 for level in (1, 2) for name in TASKS}
        | {"level1": 9, "level2": 9},
        "aitm": {"buy": 2},
    }
    for kind, lengths in expected.items():
        towers = make(kind)
        all_logits(towers, *candidates())
        assert {name: len(sums) for name, sums in towers.gates().items()} == lengths


@pytest.mark.parametrize("kind", NAMES)
def test_an_objective_over_other_tasks_has_no_tower(kind: str) -> None:
    class Objective(type(three_tasks()[0])):  # type: ignore[misc]
        outputs = 0

    tasks = three_tasks()
    towers = make(kind, tasks=[tasks[0], Objective(Fitted("spread"), 1, {}), *tasks[1:]])
    assert towers.names == TASKS
    assert torch.equal(all_logits(towers, *candidates()), all_logits(make(kind), *candidates()))


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("mmoe", {"expert": 4}, r"unknown key 'towers\.params\.expert'\. Did you mean 'experts'\?"),
        ("mmoe", {"experts": 1}, r"'towers\.params\.experts' is 1: input should be greater than or equal to 2"),
        ("mmoe", {"expert_hidden": []}, r"'towers\.params\.expert_hidden' is \[\]: list should have at least 1"),
        ("cgc", {"levels": 2}, r"unknown key 'towers\.params\.levels'.* Known: expert_hidden, experts"),
        ("ple", {"levels": 0}, r"'towers\.params\.levels' is 0: input should be greater than 0"),
        ("ple", {"shared_experts": 0}, r"'towers\.params\.shared_experts' is 0"),
        ("cross_stitch", {"own": 1.5}, r"'towers\.params\.own' is 1\.5: input should be less than or equal to 1"),
        ("star", {"auxiliary": [0]}, r"'towers\.params\.auxiliary\.0' is 0: input should be greater than 0"),
        ("mtl_lora", {"temperature": 0}, r"'towers\.params\.temperature' is 0"),
        ("shared_bottom", {"experts": 2}, r"unknown key 'towers\.params\.experts'\. There are no parameters here\."),
        ("aitm", {"x": 2}, r"unknown key 'towers\.params\.x'\. There are no parameters here\."),
        ("mmo", {}, r"towers\.kind: 'mmo' is unknown\. Did you mean 'mmoe'\?"),
    ],
)
def test_mistakes_in_the_config_are_named(kind: str, params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_towers(config.Towers(kind=kind, params=params))


def test_parameters_are_checked_on_construction_too() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'experts'"):
        make("mmoe", params={"expert": 4})


def test_an_architecture_from_a_plugin_is_built_and_checked_as_the_built_in_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linear_towers.py").write_text(GUEST)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import_plugins(["linear_towers"])
        one, two = (make("linear_guest", params={"factor": factor}) for factor in (1.0, 2.0))
        z, domain = candidates()
        torch.testing.assert_close(all_logits(one, 2 * z, domain), all_logits(two, z, domain))
        assert isinstance(one, nn.Module)
        with pytest.raises(ConfigError, match=r"'towers\.params\.factr'\. Did you mean 'factor'"):
            check_towers(config.Towers(kind="linear_guest", params={"factr": 1}))
    finally:
        sys.modules.pop("linear_towers", None)
        TOWERS._parts.pop("linear_guest", None)
