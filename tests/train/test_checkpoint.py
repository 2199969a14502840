import pytest
import torch
from safetensors.torch import load_file, save_file

from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import BackboneError, DataError
from mtrec_ray.train import checkpoint
from tests.batches import make_run, make_steps
from tests.training import distance, make_engine, make_objective, take_steps

STATE = checkpoint.State(
    step=3,
    num_steps=9,
    seed=0,
    data_fingerprint="f",
    best=0.5,
    best_step=3,
    waited=0,
    backbone="nano",
    backbone_checksum="c" * 64,
    work=[1.0, 2.0, 3.0, 4.0],
)


@pytest.fixture
def engine() -> Engine:
    made = make_engine(make_run(), with_backbone=True)
    take_steps(made, make_steps(3, tokens=True), make_objective(make_run()))
    return made


def test_it_comes_back_as_it_was(engine: Engine, tmp_path) -> None:
    checkpoint.save(engine, tmp_path / "c", STATE, {})
    found = checkpoint.read(tmp_path / "c")
    assert found.state == STATE
    assert distance(found.parameters, engine.parameters()) == 0
    for name, state in engine.optimizer_state().items():
        assert found.optimizer[name].keys() == state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(found.optimizer[name][key], value) for key, value in state.items())


def test_adapter_and_towers_are_apart_and_the_frozen_backbone_is_in_neither(engine: Engine, tmp_path) -> None:
    checkpoint.save(engine, tmp_path / "c", STATE, {})
    adapter = load_file(tmp_path / "c" / "adapter.safetensors")
    towers = load_file(tmp_path / "c" / "towers.safetensors")
    assert all("lora_" in name for name in adapter)
    assert adapter.keys() | towers.keys() == engine.parameters().keys()
    assert not any(name.startswith("backbone.") for name in towers)


def test_without_a_backbone_there_is_no_adapter_file(tmp_path) -> None:
    checkpoint.save(make_engine(make_run()), tmp_path / "c", STATE, {})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "optimizer.pt",
        "state.json",
        "towers.safetensors",
    ]


def test_saving_again_replaces_and_leaves_nothing_behind(engine: Engine, tmp_path) -> None:
    checkpoint.save(engine, tmp_path / "c", STATE, {})
    checkpoint.save(engine, tmp_path / "c", STATE.model_copy(update={"step": 4}), {})
    assert checkpoint.read(tmp_path / "c").state.step == 4
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_empty_weights_are_noticed(engine: Engine, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.parameters()
    monkeypatch.setattr(engine, "parameters", lambda: {name: torch.empty(0) for name in whole})
    with pytest.raises(RuntimeError, match="empty ones"):
        checkpoint.save(engine, tmp_path / "c", STATE, {})
    assert not (tmp_path / "c").exists()


def test_a_folder_that_is_no_checkpoint(tmp_path) -> None:
    for read in (checkpoint.read, lambda path: checkpoint.fetch(str(path), tmp_path / "to")):
        with pytest.raises(DataError, match=r"no state\.json.*mtrec train"):
            read(tmp_path)


def test_another_backbone_is_refused(engine: Engine, tmp_path) -> None:
    checkpoint.save(engine, tmp_path / "c", STATE, {})
    with pytest.raises(BackboneError, match="cccccccccccc, this run has weights dddddddddddd"):
        checkpoint.load_weights(engine, checkpoint.read(tmp_path / "c"), "d" * 64)


def test_other_names_and_shapes_are_refused(engine: Engine, tmp_path) -> None:
    checkpoint.save(engine, tmp_path / "c", STATE, {})
    path = tmp_path / "c" / "towers.safetensors"
    weights = load_file(path)
    weights["unknown"] = weights.pop("towers.towers.0.out.bias")
    weights["fuse.0.bias"] = torch.zeros(3)
    save_file(weights, path)
    before = engine.parameters()
    with pytest.raises(DataError, match=r"3 differences.*fuse\.0\.bias is \[3\], not \[8\].*is missing.*is unknown"):
        checkpoint.load_weights(engine, checkpoint.read(tmp_path / "c"), STATE.backbone_checksum)
    assert distance(engine.parameters(), before) == 0


def test_published_and_fetched(engine: Engine, tmp_path) -> None:
    learned = torch.tensor([0.5, 2.0])
    checkpoint.save(engine, tmp_path / "c", STATE, {"weights": learned})
    address = (tmp_path / "store").as_uri()
    checkpoint.publish(tmp_path / "c", address)
    checkpoint.publish(tmp_path / "c", address)
    found = checkpoint.read(checkpoint.fetch(address, tmp_path / "local"))
    assert distance(found.parameters, engine.parameters()) == 0
    assert torch.equal(found.balance["weights"], learned), "a trial that goes on needs what its balance method knows"
