import pytest
import torch
from torch import Tensor

from mtrec_ray.errors import ConfigError
from mtrec_ray.model.towers import Towers
from mtrec_ray.tasks.kinds import KINDS
from tests.model.towers.architectures import (
    Fitted,
    all_logits,
    candidates,
    chain,
    check_by_hand,
    double,
    layers_by_hand,
    make,
    three_tasks,
    trained,
)


def branches() -> list:
    """show -> click -> buy, click -> share, and `rest` alone; children may come before their parents."""
    show, click, buy = chain("show", "click", "buy")
    share, rest = KINDS["binary"](Fitted("share"), 3, {}, click), KINDS["binary"](Fitted("rest"), 4, {})
    return [buy, rest, show, share, click]


PARENTS = {"buy": "click", "share": "click", "click": "show"}


def by_hand(towers: Towers, z: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits, and the attention [C, 2] of the tasks with a parent."""
    weights, place = dict(towers.named_parameters()), {name: t for t, name in enumerate(towers.names)}
    states: dict[str, Tensor] = {}
    attention = {}
    for name in ("show", "rest", "click", "buy", "share"):
        q = layers_by_hand(towers, f"hidden.{place[name]}", z)
        if name in PARENTS:
            at = f"transfers.{place[name]}"
            p = layers_by_hand(towers, f"{at}.project", states[PARENTS[name]])
            h1, h2, h3 = (weights[f"{at}.{part}.weight"] for part in ("value", "query", "key"))
            fits = [((u @ h2.T) * (u @ h3.T)).sum(1) / 5**0.5 for u in (p, q)]
            total = fits[0].exp() + fits[1].exp()
            w_p, w_q = fits[0].exp() / total, fits[1].exp() / total
            q = w_p[:, None] * (p @ h1.T) + w_q[:, None] * (q @ h1.T)
            attention[name] = torch.stack([w_p, w_q], dim=1)
        states[name] = q
    ends = {n: states[n] @ weights[f"outs.{t}.weight"].T + weights[f"outs.{t}.bias"] for n, t in place.items()}
    return ends, attention


def test_equals_the_equations_of_the_paper_also_where_a_parent_has_several_children() -> None:
    towers, z, domain = double(make("aitm", tasks=branches()))
    expected, attention = by_hand(towers, z)
    check_by_hand(towers, z, domain, expected)
    found = towers.gates()
    assert found.keys() == attention.keys()
    for name, weights in attention.items():
        torch.testing.assert_close(found[name], weights.sum(0))


@pytest.mark.parametrize(
    ("wanted", "ancestry"),
    [("show", {"show"}), ("buy", {"show", "click", "buy"}), ("share", {"show", "click", "share"}), ("rest", {"rest"})],
)
def test_a_task_computes_its_ancestors_and_nothing_else(wanted: str, ancestry: set[str]) -> None:
    towers = make("aitm", tasks=branches())
    towers(*candidates(), [wanted])[wanted].sum().backward()
    touched = {name for name, parameter in towers.named_parameters() if parameter.grad is not None}
    place = {name: str(t) for t, name in enumerate(towers.names)}
    parts = {(path.split(".")[0], path.split(".")[1]) for path in touched}
    assert {t for part, t in parts if part == "hidden"} == {place[name] for name in ancestry}
    assert {t for part, t in parts if part == "transfers"} == {place[name] for name in ancestry & PARENTS.keys()}
    assert {t for part, t in parts if part == "outs"} == {place[wanted]}


def test_a_parents_tower_tells_its_child() -> None:
    towers, (z, domain) = trained(make("aitm")), candidates()
    before = towers(z, domain, ["mood", "buy"])
    with torch.no_grad():
        dict(towers.named_parameters())["hidden.0.0.weight"].add_(0.5)
    after = towers(z, domain, ["mood", "buy"])
    assert not torch.equal(before["buy"], after["buy"])
    assert torch.equal(before["mood"], after["mood"])


def test_without_hidden_layers_z_is_what_is_passed_on() -> None:
    assert all_logits(make("aitm", hidden=[]), *candidates()).shape == (7, 5)


def test_without_any_parent_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'aitm' passes on .* no task has one: name one, as in tasks\.purchase"):
        make("aitm", tasks=three_tasks()[:2])
