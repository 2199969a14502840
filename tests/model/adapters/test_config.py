"""Fields of `adapter` belong to kinds; one that would change nothing is refused, and not written out."""

import pytest
import yaml

from mtrec_ray.config import ADAPTER_FIELDS, Adapter
from mtrec_ray.config_file import dump, parse
from mtrec_ray.errors import ConfigError
from mtrec_ray.search.applied import applied

CONFIG = """
name: t
data: {logs: x.csv, columns: {user: u, item: i, time: t}}
tasks: {like: {label: like}}
engine: {zero_stage: 0}
"""
VALUES = {
    "rank": 3,
    "alpha": 3.0,
    "dropout": 0.2,
    "orthogonality": 0.4,
    "prefix_tokens": 2,
    "bottleneck_width": 2,
    "targets": ["q_proj"],
    "top_layers": 1,
}


@pytest.mark.parametrize("kind", ADAPTER_FIELDS)
@pytest.mark.parametrize("field", VALUES)
def test_a_field_is_taken_or_refused(kind, field):
    setting = f"adapter={{kind: {kind}, {field}: {VALUES[field]}}}"
    if field in ADAPTER_FIELDS[kind]:
        assert getattr(parse(CONFIG, [setting]).adapter, field) == VALUES[field]
    else:
        with pytest.raises(ConfigError, match=rf"adapter: kind {kind} has no {field}; remove it, or take a kind"):
            parse(CONFIG, [setting])


def test_every_field_belongs_to_a_kind_and_every_kind_is_known():
    assert set(Adapter.model_fields) - {"kind"} == set(VALUES) == set.union(*map(set, ADAPTER_FIELDS.values()))
    assert set(ADAPTER_FIELDS) == set(Adapter.model_fields["kind"].annotation.__args__)


def test_a_default_that_is_given_is_refused_too_with_the_kinds_that_have_it():
    with pytest.raises(ConfigError, match=r"kind frozen has no alpha, rank; .* has it \(lora, dora, adalora\)"):
        parse(CONFIG, ["adapter={kind: frozen, rank: 8, alpha: 16.0}"])


@pytest.mark.parametrize("setting", ["prefix_tokens: 0", "bottleneck_width: 0", "orthogonality: -1", "kind: lorra"])
def test_values_out_of_range(setting):
    kinds = {"prefix_tokens": "prefix", "bottleneck_width": "bottleneck", "orthogonality": "adalora"}
    kind = kinds.get(setting.partition(":")[0])
    with pytest.raises(ConfigError, match=f"'adapter.{setting.partition(':')[0]}' is"):
        parse(CONFIG, [f"adapter={{{setting}{f', kind: {kind}' if kind else ''}}}"])


@pytest.mark.parametrize("kind", ADAPTER_FIELDS)
def test_what_is_written_out_is_read_again(kind):
    run = parse(CONFIG, [f"adapter.kind={kind}"])
    assert parse(dump(run)) == run
    assert set(yaml.safe_load(dump(run))["adapter"]) == {"kind"} | ADAPTER_FIELDS[kind]


def test_values_of_a_search_may_be_idle_in_some_trials():
    run = parse(CONFIG, ["adapter={kind: lora, rank: 4}"])
    trial = applied(run, {"adapter.kind": "frozen", "adapter.rank": 2})
    assert trial.adapter.kind == "frozen"
    assert parse(dump(trial)).adapter == Adapter(kind="frozen")
    assert applied(run, {"adapter.kind": "dora"}).adapter.rank == 4
