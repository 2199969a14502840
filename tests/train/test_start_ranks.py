"""A run that begins with the weights of another one, on two ranks and at ZeRO 1 and 3, against one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mtrec_ray.engine.base import Engine
from mtrec_ray.evaluate.training_log import read_log
from mtrec_ray.train import worker
from mtrec_ray.train.start import start_weights
from tests.train.starting import NANO, NOW, best, data_of, train
from tests.training import distance, run_ranks
from tests.worlds import LATER

pytestmark = pytest.mark.distributed

SETTINGS = (NANO, "features.history_dim=4")
STEPS = 3
ENGINES = {"plain": ("engine.name=plain",)} | {f"zero-{s}": (f"engine.zero_stage={s}",) for s in (1, 3)}


def begun(place: Path, name: str, *overrides: str) -> dict[str, Any]:
    """The weights before the first step and after the last, and the loss of each step."""
    first: dict[str, torch.Tensor] = {}

    def recorded(engine: Engine, *rest: Any) -> Any:
        found = start_weights(engine, *rest)
        first.update(engine.parameters())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "start_weights", recorded)
        started = ("train.start_from={place}/old", f"train.max_steps={STEPS}", "train.log_every=1")
        fitted = train(place, name, LATER, *SETTINGS, *started, *overrides)
    found = {"first": first, "last": fitted.engine.parameters()}
    fitted.engine.close()
    log = read_log(f"{place}/{name}/metrics.jsonl")
    return found | {"losses": [line["loss"] for line in log.train], "start": log.start}


def on_rank(place: Path) -> dict[str, Any]:
    return {name: begun(place, f"two-{name}", *engine) for name, engine in ENGINES.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `old`, and the prepared data of those that start from it."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder, "old", NOW, *SETTINGS)
    for name in ENGINES:
        data_of(folder, f"two-{name}", LATER)
    return folder


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    return begun(place, "one", *ENGINES["plain"])


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict[str, Any]]:
    return run_ranks(on_rank, 2, place)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_begin_and_go_on_as_one(
    engine: str, place: Path, alone: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    for of_rank in ranks:
        assert distance(of_rank[engine]["first"], alone["first"]) == 0
        assert distance(of_rank[engine]["last"], ranks[0][engine]["last"]) == 0
    found = ranks[0][engine]
    assert len(found["losses"]) == STEPS
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert distance(found["last"], alone["last"]) < 1e-4
    assert found["start"] == alone["start"]


def test_what_they_begin_with_is_that_of_the_other_run(place: Path, alone: dict[str, Any]) -> None:
    """Rows of the tables and adapters, of which a fresh run has others; and each step moves them on."""
    old, first, last = best(place, "old").parameters, alone["first"], alone["last"]
    adapters = [name for name in old if name.startswith("backbone.")]
    assert adapters
    assert all(torch.equal(first[name], old[name]) for name in adapters)
    table = "side.parts.0.table.weight"
    for row, user in enumerate(LATER.users, start=1):
        if user in NOW.users:
            assert torch.equal(first[table][row], old[table][NOW.users.index(user) + 1]), user
    assert not torch.equal(first[table], last[table])
    assert not any(torch.equal(first[name], last[name]) for name in adapters)
