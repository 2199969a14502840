"""Every kind is saved and loaded by names, in another engine."""

import pytest
import torch
from safetensors.torch import load_file

from mtrec_ray.errors import DataError
from mtrec_ray.model.adapters import trained_parts
from mtrec_ray.model.backbone import is_added
from mtrec_ray.train import checkpoint
from tests.batches import make_batch, make_request, make_run, make_steps
from tests.model.adapters.kinds import ADDED
from tests.train.test_checkpoint import STATE
from tests.training import distance, make_engine, make_objective, take_steps

BATCH = make_batch([make_request(n) for n in range(6)], tokens=True)
SETTINGS = {
    "adalora": ("adapter.kind=adalora",),
    "full": ("adapter.kind=full", "adapter.top_layers=1"),
    **{kind: (f"adapter.kind={kind}",) for kind in ADDED if kind != "adalora"},
}


def build(kind: str):
    run = make_run(*SETTINGS[kind], "features.dropout=0", "features.id_dropout=0", "towers.dropout=0")
    return make_engine(run, with_backbone=True)


def score(engine) -> torch.Tensor:
    engine.model.eval()
    with torch.no_grad():
        return engine.model.represent(BATCH)


@pytest.mark.parametrize("kind", SETTINGS)
def test_saved_and_loaded(kind, tmp_path):
    engine = build(kind)
    steps = make_steps(3, tokens=True)
    take_steps(engine, steps[:2], make_objective(make_run()))
    for part in trained_parts(engine.model):
        part.before_step()
        part.after_step(2, 4)
    checkpoint.save(engine, tmp_path / "c", STATE, {})
    names = load_file(tmp_path / "c" / "adapter.safetensors").keys()
    assert names
    assert all(name.startswith("backbone.model.") for name in names)
    assert all(is_added(name) for name in names) or kind == "full"
    other = build(kind)
    before = score(other)
    found = checkpoint.read(tmp_path / "c")
    checkpoint.load_weights(other, found, STATE.backbone_checksum)
    other.load_optimizer_state(found.optimizer)
    assert torch.equal(score(other), score(engine))
    assert not torch.allclose(score(other), before)
    assert [part.ranks() for part in trained_parts(other.model)] == [p.ranks() for p in trained_parts(engine.model)]
    for one in (engine, other):
        take_steps(one, steps[2:], make_objective(make_run()))
    assert distance(other.parameters(), engine.parameters()) == 0


def test_what_adalora_remembers_is_missed(tmp_path):
    engine = build("adalora")
    checkpoint.save(engine, tmp_path / "c", STATE, {})
    found = checkpoint.read(tmp_path / "c")
    lost = next(name for name in found.parameters if name.endswith("lora_importance.kept"))
    del found.parameters[lost]
    with pytest.raises(DataError, match=f"{lost} is missing"):
        checkpoint.load_weights(engine, found, STATE.backbone_checksum)
