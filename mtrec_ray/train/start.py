"""A run that begins with the weights of an earlier one (`train.start_from`), on other data or other tasks.

What has the same name in both is carried over (`train.carrying`); all else begins as it would have without. That is all
that is taken: the optimizer, the schedule, the balance method and AdaLoRA's allocation of ranks begin afresh. Whoever
goes on from a checkpoint of its own reads nothing of the earlier run again.

Numbers are standardised, and cut into bins, by the data of each run. The weights that read them are carried over as
they are: from one day to the next means, deviations and quantiles hardly move, and on another domain a price two
deviations above its mean says more than the same price does. So on other data the same row is scored a little
differently before the first step; on the same data it is not.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import pyarrow.fs as pafs
import torch
from torch import nn

from mtrec_ray import config_file
from mtrec_ray.config import ADAPTER_FIELDS, Run
from mtrec_ray.data.catalogue import Catalogue, load_catalogue
from mtrec_ray.data.filesystem import is_url, open_fs
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.data.vectors import load_vectors
from mtrec_ray.engine.base import Engine, learnable
from mtrec_ray.errors import BackboneError, ConfigError, DataError
from mtrec_ray.model.backbone import locate
from mtrec_ray.model.recommender import Recommender, frozen_dtype
from mtrec_ray.model.towers import TOWERS, Towers
from mtrec_ray.registry import import_plugins
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.train import checkpoint, pretrained
from mtrec_ray.train.carrying import Carried, Carrying, named_weights, vocabularies
from mtrec_ray.train.checks import check_parts
from mtrec_ray.train.pretrained import NANO, NONE

WHERE = "train.start_from"
CONFIG, SUMMARY = "config.yaml", "training.json"
"""Of a run's folder; the summary is written when training has ended."""
_OF_NANO = ("width", "layers", "heads", "vocab_size", "pretrained")
_OF_TOWERS = ("towers.kind", "towers.z_dim", "towers.hidden", "features.hidden")
_OR_ABSENT = tuple(f"features.{name}_dim" for name in ("user", "item", "category", "number", "history"))
"""0 = the part is not there, and so it may be in one run alone."""
_NOT_WEIGHTS = {"dropout", "orthogonality"}
"""Of an adapter."""


@dataclass(frozen=True)
class Start:
    """A finished run, as another one starts from it."""

    path: str
    run: Run
    prepared: str
    manifest: Manifest

    @classmethod
    def read(cls, path: str) -> Self:
        """The run in a folder, local or a URL. Raises `ConfigError`: it is none, or not all of it is there."""
        filesystem, root = open_fs(path)

        def text(name: str, otherwise: str) -> str:
            if filesystem.get_file_info(f"{root}/{name}").type != pafs.FileType.File:
                raise ConfigError(f"{WHERE}: '{path}' holds no {name}{otherwise}")
            with filesystem.open_input_stream(f"{root}/{name}") as file:
                found: str = file.read().decode()
            return found

        unfinished = ", so its training has not ended; `mtrec train` with its config goes on with it."
        run = config_file.parse(
            text(CONFIG, ", so it is not the folder of a run; give one that `mtrec train` made, as runs/monday."),
            source=f"{path}/{CONFIG}",
        )
        prepared = json.loads(text(SUMMARY, unfinished))["prepared"]
        state = checkpoint.State.model_validate_json(text(f"checkpoint/{checkpoint.STATE}", unfinished))
        try:
            manifest = load_manifest(prepared)
        except DataError as error:
            raise ConfigError(
                f"{WHERE}: '{path}' was trained on {prepared}, which says whose the rows of its tables are, and cannot "
                f"be read: {error} Or start from another run."
            ) from error
        if manifest.fingerprint != state.data_fingerprint:
            raise ConfigError(
                f"{WHERE}: '{path}' was trained on data with the fingerprint {state.data_fingerprint}, and {prepared} "
                f"has {manifest.fingerprint}. Start from another run."
            )
        return cls(path, run, prepared, manifest)

    def language_model(self) -> str:
        """The name, or the folder, that the backbone's weights were loaded from."""
        if self.run.backbone.name == NANO and self.run.backbone.pretrained:
            return pretrained.backbone_folder(self.run, self.prepared)
        return self.run.backbone.name

    def has_nano(self) -> bool:
        """Whether the backbone is the built-in one, which a run that started from another has by its folder."""
        name = self.run.backbone.name
        return name == NANO or (name != NONE and pretrained.is_complete(name))

    def catalogue(self) -> Catalogue | None:
        return load_catalogue(self.prepared, self.manifest, load_vectors(self.prepared, self.manifest))


def follow(run: Run) -> Run:
    """The run with the language model of the one that it starts from, if that is `nano`: tokenizer and weights, so that
    neither is trained anew on the data of this run.

    Raises:
        ConfigError: see `Start.read`; settings that the weights do not fit.
    """
    if run.train.start_from is None:
        return run
    check_parts(run)
    start = Start.read(run.train.start_from)
    check_settings(run, start)
    if run.backbone.name != NANO or start.run.backbone.name == NONE:
        return run
    folder = start.language_model()
    if folder == NANO or is_url(folder):
        found = "is not pretrained, and lies nowhere" if folder == NANO else f"lies at {folder}"
        raise ConfigError(
            f"{WHERE}: the backbone 'nano' of '{start.path}' {found}. Its adapters fit no other: copy it to a folder "
            "that all machines see, and set backbone.name to that; or start from nothing."
        )
    return run.model_copy(update={"backbone": run.backbone.model_copy(update={"name": locate(folder)})})


def check_variants(run: Run, variants: Iterable[tuple[str, Run]]) -> None:
    """Whether other settings of `run` fit the run that it starts from, as far as the configs tell; before any data is
    read. `variants`: what a refusal opens with, and the config, which may start from nothing.

    Raises:
        ConfigError: see `Start.read` and `check_settings`.
    """
    if run.train.start_from is None:
        return
    start = Start.read(run.train.start_from)
    for where, variant in variants:
        if variant.train.start_from is not None:
            try:
                check_settings(variant, start)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None


def check_start(run: Run, prepared: str, manifest: Manifest) -> None:
    """Whether the run that `train.start_from` names, if any, fits this one, before anything is trained.

    Raises:
        ConfigError: a setting, task or column that does not fit, with what was found and what was expected.
    """
    if run.train.start_from is None:
        return
    start = Start.read(run.train.start_from)
    check_settings(run, start)
    if NONE not in (run.backbone.name, start.run.backbone.name):
        _same("backbone.name", locate(run.backbone.name), locate(start.language_model()), start)
    catalogue = load_catalogue(prepared, manifest, load_vectors(prepared, manifest))
    _carrying(start, _shapes(run, manifest, catalogue), run, prepared, manifest)


def check_settings(run: Run, start: Start) -> None:
    """What the two configs can tell. Raises `ConfigError`, opening with the path of the setting that differs."""
    import_plugins([*run.plugins, *start.run.plugins])
    old = start.run
    _check_backbone(run, start)
    for path in _OF_TOWERS:
        _same(path, _value(run, path), _value(old, path), start)
    towers = TOWERS[run.towers.kind]
    own, theirs = (towers.check(one.towers.params).model_dump() for one in (run, old))
    _same("towers.params", own, theirs, start)
    for path in _OR_ABSENT:
        if 0 not in (_value(run, path), _value(old, path)):
            _same(path, _value(run, path), _value(old, path), start)
    matches = all(any(KINDS[task.kind].matches for task in one.tasks.values()) for one in (run, old))
    if matches:
        for name in ("dim", "similarity", "shared"):
            _same(f"matching.{name}", getattr(run.matching, name), getattr(old.matching, name), start)
    tables = [
        name for name in ("user", "item", "history") if all(_value(one, f"features.{name}_dim") for one in (run, old))
    ]
    if tables or matches:
        _same("features.ids", run.features.ids, old.features.ids, start)
    if run.features.ids == old.features.ids == "hashed":
        sizes = {"user_rows": "user" in tables, "item_rows": matches or {"item", "history"} & {*tables}}
        for name in [*(name for name, used in sizes.items() if used), *(["hashes"] if tables or matches else [])]:
            _same(f"features.{name}", getattr(run.features, name), getattr(old.features, name), start)
    if {run.position.method, old.position.method} <= {"additive", "pal"}:
        _same("position.method", run.position.method, old.position.method, start)
    for name in run.tasks.keys() & old.tasks.keys():
        for key in ("kind", "classes"):
            _same(f"tasks.{name}.{key}", getattr(run.tasks[name], key), getattr(old.tasks[name], key), start)
    if towers.entries is Towers.entries:  # it does not say which of its weights are of which task
        _same("tasks", list(run.tasks), list(old.tasks), start)


def start_weights(engine: Engine, run: Run, prepared: str, manifest: Manifest) -> tuple[int, list[Carried]]:
    """Puts the weights of the run that `train.start_from` names into the engine's model, wherever both have a part.

    All ranks call it. Gives that run's step and what was carried over. Raises `ConfigError` and `BackboneError`.
    """
    assert run.train.start_from is not None
    start = Start.read(run.train.start_from)
    check_settings(run, start)
    with checkpoint.fetched(f"{start.path}/checkpoint") as folder:
        old, state = checkpoint.read_weights(folder)
    backbone: Any = engine.model.backbone
    if backbone is not None and state.backbone_checksum not in (None, backbone.checksum()):
        raise BackboneError(
            f"{WHERE}: '{start.path}' was trained on the backbone '{state.backbone}' with other weights than those of "
            f"'{run.backbone.name}' here. Set backbone.name to {start.language_model()}."
        )
    own = engine.parameters()
    carrying = _carrying(start, engine.model, run, prepared, manifest)
    adapters = {name: value for name, value in old.items() if name.startswith("backbone.") and name in own}
    engine.load_parameters(carrying.carry(old, own) | adapters)
    return state.step, [*_adapters(old, dict(learnable(engine.model)), adapters), *carrying.parts()]


def _adapters(old: dict[str, Any], new: dict[str, Any], both: dict[str, Any]) -> list[Carried]:
    carried, fresh, left = (
        sum(torch.Size(checkpoint.shape_of(of[name])).numel() for name in of if name.startswith("backbone."))
        for of in (both, new, old)
    )
    return [Carried("adapters", "numbers", carried, fresh - carried, left - carried)] if fresh or left else []


def _check_backbone(run: Run, start: Start) -> None:
    """Without a language model on one side there is nothing that would have to fit."""
    own, old = run.backbone, start.run.backbone
    if NONE in (own.name, old.name):
        return
    if own.name == NANO and start.has_nano():
        for name in _OF_NANO:
            _same(f"backbone.{name}", getattr(own, name), getattr(old, name), start)
    elif locate(own.name) != locate(start.language_model()):
        _same("backbone.name", own.name, start.language_model(), start)
    _same("backbone.pooling", own.pooling, old.pooling, start)
    if frozen_dtype(run) != frozen_dtype(start.run):
        _same("engine.precision", run.engine.precision, start.run.engine.precision, start)
    _same("adapter.kind", run.adapter.kind, start.run.adapter.kind, start)
    for name in sorted(ADAPTER_FIELDS[run.adapter.kind] - _NOT_WEIGHTS):
        _same(f"adapter.{name}", getattr(run.adapter, name), getattr(start.run.adapter, name), start)


def _same(path: str, found: Any, expected: Any, start: Start) -> None:
    if found != expected:
        raise ConfigError(
            f"{path} is {found!r}, but {expected!r} in '{start.path}', which {WHERE} names, and its weights fit no "
            f"other. Set {path} to that, or start from nothing (without {WHERE})."
        )


def _value(run: Run, path: str) -> Any:
    part, _, name = path.partition(".")
    return getattr(getattr(run, part), name)


def _carrying(start: Start, model: nn.Module, run: Run, prepared: str, manifest: Manifest) -> Carrying:
    """From the weights of that run's checkpoint to those of the run's model. Raises `ConfigError`."""
    if TOWERS[run.towers.kind].entries is Towers.entries:
        _same("data.columns.domain", manifest.domains, start.manifest.domains, start)
    backbone: Any = model.backbone
    width = 1 if backbone is None else backbone.hidden_size  # where both have a language model, it is the same one
    old = _shapes(start.run, start.manifest, start.catalogue(), width)
    before = named_weights(old, start.run.tasks, vocabularies(start.prepared, start.manifest))
    return Carrying(before, named_weights(model, run.tasks, vocabularies(prepared, manifest)), WHERE)


class _Width(nn.Module):
    """In the place of a backbone, of which a model that never runs asks nothing else."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size


def _shapes(run: Run, manifest: Manifest, catalogue: Catalogue | None, width: int = 1) -> Recommender:
    """The run's model without values, and without a language model, which has `width` numbers for each token."""
    backbone = None if run.backbone.name == NONE else _Width(width)
    with torch.device("meta"):
        return Recommender(backbone, manifest, run, catalogue)
