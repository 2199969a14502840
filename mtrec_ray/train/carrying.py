"""Weights of one model for another one: what has the same name in both is carried over, entry by entry.

A row of a table belongs to an id or a value, a column of a layer to a feature, a tower to a task (`model.entries`), so
ids, features and tasks may be others in the other model, and in another order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from mtrec_ray.data.fitting.fitted_files import load_vocabularies
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.base import learnable
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.entries import Axis, Named, Rows
from mtrec_ray.model.row_table import row_tables
from mtrec_ray.train.checkpoint import shape_of

Array = np.ndarray[Any, np.dtype[Any]]
Path = tuple[str, ...]
"""The name of a weight, in which members of lists have their own names in place of numbers."""


@dataclass(frozen=True)
class NamedWeight:
    """A weight, and what its entries stand for."""

    name: str
    """As the model has it."""
    part: str
    """Of the model, for people: `ids.user`, `tower of like`."""
    shape: tuple[int, ...]
    axes: tuple[pa.Array | None, ...]
    """Names of the entries along each axis, null being the unknown one; None = by place."""
    is_table: bool


@dataclass(frozen=True)
class Carried:
    """How much of a part of the model was carried over, in rows of a table or in numbers."""

    part: str
    unit: str
    carried: int
    fresh: int
    """Of the new run alone: as they would have begun without the old one."""
    left: int
    """Of the old run alone."""


def vocabularies(prepared: str, manifest: Manifest) -> dict[str, pa.Array]:
    """`Rows.of` -> the names of the rows."""
    found = load_vocabularies(prepared)
    rows = {name: pa.concat_arrays([pa.nulls(1, pa.string()), v.keys[: v.known]]) for name, v in found.items()}
    ids = {"ids.user": rows["user"]} | dict.fromkeys(("ids.item", "ids.history", "ids.matching"), rows["item"])
    categories = {f"category.{entry.name}": rows[f"category {entry.name}"] for entry in manifest.categories}
    return ids | categories | {"domain": pa.array(manifest.domains[1:], pa.string())}


def named_weights(model: nn.Module, tasks: Iterable[str], rows: Mapping[str, pa.Array]) -> dict[Path, NamedWeight]:
    """All that is trained in some stage of the run but the adapters, by path; `rows`: see `vocabularies`."""
    named = _entries(model)
    tables = {name: table.name for name, table in row_tables(model).items()}
    found: dict[Path, NamedWeight] = {}
    for name, value in learnable(model):
        if name.startswith("backbone."):
            continue
        shape, path = shape_of(value), _path(name, named)
        axes = [_names(axis, rows) for axis in named.get(name, ())]
        axes += [None] * (len(shape) - len(axes))
        for axis, size in zip(axes, shape, strict=True):
            if axis is not None and len(axis) != size:
                raise ValueError(f"{name} {shape}: {len(axis)} names for an axis of {size}")
        part = _part(path, set(tasks), tables.get(name))
        found[path] = NamedWeight(name, part, shape, tuple(axes), name in tables)
    return found


class Carrying:
    """From an old model to a new one."""

    def __init__(self, old: Mapping[Path, NamedWeight], new: Mapping[Path, NamedWeight], where: str) -> None:
        """Raises `ConfigError`, opening with `where`: a weight of both has another size along an axis without names."""
        self._old, self._new = old, new
        self._pairs = {path: (old[path], new[path]) for path in new if path in old}
        self._places: dict[Path, list[tuple[Array, Array]]] = {}
        """Of the weights of both, per axis: places in the old and in the new one."""
        for path, (before, now) in self._pairs.items():
            sizes = zip(before.shape, now.shape, before.axes, now.axes, strict=False)
            if len(before.shape) != len(now.shape) or any(a != b for a, b, x, y in sizes if x is None or y is None):
                raise ConfigError(
                    f"{where}: {now.part} has weights {now.name} of shape {list(now.shape)}, and there they have "
                    f"{list(before.shape)}, which fit no other. Use the settings and columns of that run."
                )
            self._places[path] = [
                _places(*axis) for axis in zip(before.axes, now.axes, before.shape, now.shape, strict=True)
            ]

    def carry(self, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`new`, whole weights by name, with what is carried over in the place of their own values."""
        found = dict(new)
        for path, (before, now) in self._pairs.items():
            taken, value = old[before.name], new[now.name].clone()
            places = self._places[path]
            for axis, (source, _) in enumerate(places):
                taken = taken.index_select(axis, torch.from_numpy(source))
            if places:
                value[tuple(torch.from_numpy(at) for at in np.ix_(*(target for _, target in places)))] = taken
            else:
                value = taken.clone()
            found[now.name] = value
        return found

    def parts(self) -> list[Carried]:
        """Tables first, each in the new model's order, those of the old one alone behind."""
        found: dict[tuple[str, str], list[int]] = {}
        for path in dict.fromkeys((*self._new, *self._old)):
            weight = self._new.get(path) or self._old[path]
            sums = found.setdefault((weight.part, "rows" if weight.is_table else "numbers"), [0, 0, 0])
            carried = self._carried(path)
            counts = [_size(of.get(path)) for of in (self._new, self._old)]
            for i, count in enumerate((carried, counts[0] - carried, counts[1] - carried)):
                sums[i] += count
        every = [Carried(part, unit, *sums) for (part, unit), sums in found.items()]
        return sorted(every, key=lambda part: part.unit != "rows")

    def _carried(self, path: Path) -> int:
        if path not in self._places:
            return 0
        lengths = [len(source) for source, _ in self._places[path]]
        return lengths[0] if self._new[path].is_table else int(np.prod(lengths))


def told(path: str, step: int, parts: Sequence[Carried]) -> str:
    """One sentence of what was carried over."""

    def listed(what: str) -> str:
        of = [(part, asdict(part)[what]) for part in parts]
        return ", ".join(f"{part.part} ({count:,} {part.unit})" for part, count in of if count) or "nothing"

    return (
        f"starts from {path}, step {step}, with a fresh optimizer; carried over: {listed('carried')}; began fresh: "
        f"{listed('fresh')}; left: {listed('left')}"
    )


def _entries(model: nn.Module) -> dict[str, Sequence[Axis]]:
    return {
        f"{name}.{below}" if name else below: axes
        for name, module in model.named_modules()
        if isinstance(module, Named)
        for below, axes in module.entries().items()
    }


def _path(name: str, named: Mapping[str, Sequence[Axis]]) -> Path:
    """The weight's name with members of lists by their own names."""
    keys, found = name.split("."), list[str]()
    for i, key in enumerate(keys):
        members = named.get(".".join(keys[:i]), (None,))[0] if i else None
        found.append(members[int(key)] if isinstance(members, Sequence) else key)
    return tuple(found)


def _names(axis: Axis, rows: Mapping[str, pa.Array]) -> pa.Array | None:
    if isinstance(axis, Rows):
        return rows[axis.of]
    return None if axis is None else pa.array(axis, pa.string())


def _part(path: Path, tasks: set[str], table: str | None) -> str:
    task = next((f" of {key}" for key in path if key in tasks), "")
    if table is not None:
        return f"{table}{task}"
    first = path[0]
    if first == "side":
        return path[2] if path[1] == "parts" else "network of side features"
    if first in ("text", "fuse"):
        return "representation z"
    if first == "towers":
        return f"tower{task}" if task else "towers, shared"
    return f"matching{task}" if first == "matcher" else first


def _places(old: pa.Array | None, new: pa.Array | None, old_size: int, new_size: int) -> tuple[Array, Array]:
    """Along one axis: places in the old and in the new weight, of entries that both have."""
    if old is None or new is None:
        return np.arange(old_size), np.arange(new_size)
    at = pc.index_in(new, value_set=old).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    known = np.flatnonzero(at >= 0)
    return at[known], known


def _size(weight: NamedWeight | None) -> int:
    if weight is None:
        return 0
    return weight.shape[0] if weight.is_table else int(np.prod(weight.shape))
