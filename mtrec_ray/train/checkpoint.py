"""Our checkpoint: what was trained, by parameter name, without a trace of ranks, engines or partitions.

    adapter.safetensors   trained weights of the backbone, and what adapters remember; absent if nothing is trained
    towers.safetensors    side features (id tables included), fusion, towers
    balance.safetensors   what the balance method, or whatever weighs the tasks instead, has learned; absent if nothing
    optimizer.pt          optimizer state, {parameter name: {"step", "exp_avg", ...}}
    state.json            `State`; written last

So it loads on any number of workers, at any ZeRO stage and in the plain engine. The frozen backbone is a reference
(name and checksum), never a copy.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtrec_ray.data.filesystem import copy_file, open_fs
from mtrec_ray.engine.base import Engine, learnable
from mtrec_ray.errors import BackboneError, DataError
from mtrec_ray.model.adapters.buffers import added_buffers

ADAPTER, TOWERS, OPTIMIZER, STATE = "adapter.safetensors", "towers.safetensors", "optimizer.pt", "state.json"
BALANCE = "balance.safetensors"


class State(BaseModel):
    """Everything of a run that is no tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Optimizer steps done: with the seed it is the position in the data too."""
    num_steps: int
    seed: int
    data_fingerprint: str
    """Of the prepared folder."""
    best: float | None
    best_step: int | None
    waited: int
    """Evaluations since the best one."""
    guarded: dict[str, float] = {}
    """The value of each guarded metric at the best evaluation, in its own unit."""
    guarded_best: dict[str, float] = {}
    """The best value of each so far."""
    backbone: str
    backbone_checksum: str | None
    work: list[float]
    """Candidates, tokens, seconds and waited seconds of training so far."""


@dataclass(frozen=True)
class Checkpoint:
    parameters: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    balance: dict[str, Tensor]
    state: State


def save(engine: Engine, folder: Path, state: State, balance: Mapping[str, Tensor]) -> None:
    """All ranks call it, rank 0 writes; `folder` appears all at once, after its contents were read back."""
    parameters, optimizer = whole_weights(engine), engine.optimizer_state()
    if engine.world_rank != 0:
        return
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    for file, group in _by_file(parameters).items():
        save_file({name: value.contiguous() for name, value in group.items()}, temporary / file)
        _verify(temporary / file, group)
    if balance:
        save_file(dict(balance), temporary / BALANCE)
    torch.save(optimizer, temporary / OPTIMIZER)
    (temporary / STATE).write_text(state.model_dump_json(indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def read(folder: Path) -> Checkpoint:
    """Raises `DataError` if the folder is no complete checkpoint."""
    parameters, state = read_weights(folder)
    optimizer = torch.load(folder / OPTIMIZER, weights_only=True)
    balance = load_file(folder / BALANCE) if (folder / BALANCE).is_file() else {}
    return Checkpoint(parameters, optimizer, balance, state)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], State]:
    """`read` without what only the same run can go on with."""
    if not (folder / STATE).is_file():
        raise DataError(f"{folder} holds no {STATE}, so it is no checkpoint; `mtrec train` writes one.")
    parameters: dict[str, Tensor] = {}
    for file in (ADAPTER, TOWERS):
        if (folder / file).is_file():
            parameters |= load_file(folder / file)
    return parameters, State.model_validate_json((folder / STATE).read_text(encoding="utf-8"))


def load_weights(engine: Engine, checkpoint: Checkpoint, backbone_checksum: str | None) -> None:
    """Puts the checkpoint's weights into the engine's model.

    Raises:
        BackboneError: trained on another backbone.
        DataError: names or shapes are not those of the model.
    """
    if checkpoint.state.backbone_checksum != backbone_checksum:
        raise BackboneError(
            f"the checkpoint was trained on the backbone '{checkpoint.state.backbone}' with weights "
            f"{_short(checkpoint.state.backbone_checksum)}, this run has weights {_short(backbone_checksum)}. "
            "Use the same backbone (and the same pretraining), or another run name."
        )
    buffers = added_buffers(engine.model)
    own = {name: shape_of(value) for name, value in (*learnable(engine.model), *buffers.items())}
    check_names(own, checkpoint.parameters)
    put_weights(engine, checkpoint.parameters)


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """All that training changes in the model: whole learnable parameters and adapters' buffers, on the host."""
    buffers = {name: value.detach().cpu().clone() for name, value in added_buffers(engine.model).items()}
    return engine.parameters() | buffers


def put_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """The inverse of `whole_weights`."""
    engine.load_parameters(weights)
    for name, value in added_buffers(engine.model).items():
        value.copy_(weights[name])


def check_names(own: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    """Raises `DataError` unless `found` has the model's names and shapes."""
    problems = [f"{name} is missing" for name in own.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - own.keys()]
    problems += [
        f"{name} is {list(found[name].shape)}, not {list(shape)}"
        for name, shape in own.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if problems:
        raise DataError(
            f"the checkpoint does not fit this config and data ({len(problems)} differences): "
            f"{'; '.join(sorted(problems)[:3])}. Use the config and prepared data it was trained with."
        )


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The whole shape, also of a parameter of which ZeRO-3 keeps a part here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def publish(folder: Path, destination: str) -> None:
    """Copies a checkpoint to a path or URL; `state.json` goes last, so that its presence means complete."""
    filesystem, root = open_fs(destination)
    filesystem.create_dir(root, recursive=True)
    stale = filesystem.get_file_info(f"{root}/{STATE}")
    if stale.type == pafs.FileType.File:
        filesystem.delete_file(stale.path)
    for name in (ADAPTER, TOWERS, BALANCE, OPTIMIZER, STATE):
        if (folder / name).is_file():
            copy_file(pafs.LocalFileSystem(), str(folder / name), filesystem, f"{root}/{name}")


def fetch(source: str, folder: Path) -> Path:
    """Copies a published checkpoint to a local folder. Raises `DataError` if there is none."""
    filesystem, root = open_fs(source)
    if filesystem.get_file_info(f"{root}/{STATE}").type != pafs.FileType.File:
        raise DataError(f"{source} holds no {STATE}, so it is no checkpoint; `mtrec train` writes one.")
    folder.mkdir(parents=True, exist_ok=True)
    pafs.copy_files(root, str(folder), filesystem, pafs.LocalFileSystem())
    return folder


@contextmanager
def fetched(source: str) -> Iterator[Path]:
    """`fetch` to a folder that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="mtrec-") as parent:
        yield fetch(source, Path(parent) / "checkpoint")


def _by_file(parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    files: dict[str, dict[str, Tensor]] = {}
    for name, value in parameters.items():
        files.setdefault(ADAPTER if name.startswith("backbone.") else TOWERS, {})[name] = value
    return files


def _verify(path: Path, expected: Mapping[str, Tensor]) -> None:
    """ZeRO-3 has saved empty adapters before (peft #2892): look into the file, not at the intention."""
    with safe_open(path, framework="pt") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    empty = [name for name, shape in written.items() if 0 in shape]
    if empty or written != {name: tuple(value.shape) for name, value in expected.items()}:
        raise RuntimeError(f"{path} was not written as it should: {len(written)} tensors, empty ones: {empty[:3]}")


def _short(checksum: str | None) -> str:
    return "none" if checksum is None else checksum[:12]
