"""The whole model: shared backbone and side features -> z -> towers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mtrec_ray.config import Run, Stage
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, DropoutKey, feature_uids
from mtrec_ray.model.entries import Axis, numbered
from mtrec_ray.model.features import SideFeatures
from mtrec_ray.model.layers import IN_BACKBONE, layers_above
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.model.matching import Matcher
from mtrec_ray.model.position import PositionEffect, PositionFeature
from mtrec_ray.model.row_table import row_tables
from mtrec_ray.model.towers import TOWERS
from mtrec_ray.multitask.balancing.point import Point
from mtrec_ray.tasks.kind import Logits
from mtrec_ray.tasks.kinds import build_kinds


class CandidateReader(Protocol):
    """What is asked of `model.backbone.Backbone`."""

    hidden_size: int

    def __call__(
        self, ids: Tensor, layout: RequestLayout, *, key: DropoutKey | None, token_uids: Tensor | None, history: bool
    ) -> Tensor: ...

    def embed(self, ids: Tensor) -> Tensor: ...


class Recommender(nn.Module):
    """`Batch` -> logits {task: [C, outputs]}: one mapping that all tasks read, or one for each.

    Tasks that match a user with an item have theirs from `matcher`, all others from towers on z; without one of these z
    is neither computed nor trained.

    The first weights depend on `run.seed` alone. With `engine.precision: bf16` the backbone computes in bfloat16 under
    autocast, while all that is trained, and all after the backbone, stays in float32: so the frozen weights need no
    master copy, and no engine has to know of the precision.
    """

    def __init__(
        self, backbone: nn.Module | None, manifest: Manifest, run: Run, catalogue: Catalogue | None = None
    ) -> None:
        """`catalogue`: of the prepared data; needed by tasks that match."""
        super().__init__()
        self.backbone = backbone
        self.bf16 = run.engine.precision == "bf16"
        self.context = DropoutContext()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            of_place = {}
            if run.position.method == "feature":
                feature = PositionFeature(manifest, run.position, run.features.category_dim, self.context)
                of_place = {"position": feature}
            self.side = SideFeatures(manifest, run.features, self.context, of_place)
            width = self.side.out_dim
            if backbone is not None:
                hidden_size = cast(CandidateReader, backbone).hidden_size
                self.text = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, run.towers.z_dim))
                width += run.towers.z_dim
            if width == 0:
                raise ConfigError(
                    "backbone is 'none' and there is no side feature, so a candidate has no input: set a backbone, "
                    "features.item_dim, or features.aggregates"
                )
            self.fuse = nn.Sequential(nn.Linear(width, run.towers.z_dim), nn.ReLU())
            kinds = build_kinds(manifest, run.tasks)
            self.towers = TOWERS[run.towers.kind](kinds, run.towers, self.context, len(manifest.domains))
            self.position = None
            if run.position.method in ("additive", "pal"):
                self.position = PositionEffect(manifest, kinds, run.position, self.context)
            self.matcher = None
            if any(kind.matches for kind in kinds):
                assert catalogue is not None, "prepared data with tasks that match has a catalogue"
                size = None if backbone is None else cast(CandidateReader, backbone).hidden_size
                self.matcher = Matcher(manifest, catalogue, kinds, run.matching, run.features, size, self.context)
        if not self.towers.names:
            for part in (self.side, self.fuse, self.towers, *([] if backbone is None else [self.text])):
                part.requires_grad_(False)
                for table in row_tables(part).values():
                    table.is_trained = False
        self.reads = [kind.reads for kind in kinds]
        tables = [name for name, table in row_tables(self).items() if table.is_trained]
        self.learnable = frozenset(tables + [name for name, p in self.named_parameters() if p.requires_grad])
        """Names of all that is trained in some stage of the run; `train_stage` says in which."""

    def forward(self, batch: Batch, key: DropoutKey | None = None, point: Point | None = None) -> list[Logits]:
        """With a balance point each task reads towers that stand on a copy of z of its own.

        Every tower is computed also for zero candidates, so that every worker takes part in every exchange.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and (point is None or point.trains_below)):
            own, past = self._read(batch, key)
            z = self._fused(batch, key, own) if self.towers.names else None
        with self.context.use(key, feature_uids(batch.row_ids)):
            matched: Logits = {}
            if self.matcher is not None:
                embed = None if self.backbone is None else cast(CandidateReader, self.backbone).embed
                matched = self.matcher(batch, past, embed)
            if z is None:
                return [matched]
            towered = [[name for name in names if name not in matched] for names in self.reads]
            if point is None:
                every = list(dict.fromkeys(name for names in towered for name in names))
                views = [self.towers(z, batch.domain, every) | matched]
            else:
                copies = point.split(z, len(self.reads))
                views = [
                    self.towers(copy, batch.domain, names) if names else matched
                    for copy, names in zip(copies, towered, strict=True)
                ]
            if self.position is None:
                return views
            effects = self.position(batch)
            return [self.position.placed(view, effects) for view in views]

    def represent(self, batch: Batch, key: DropoutKey | None = None) -> Tensor:
        """z [C, z_dim]: what all towers read."""
        return self._fused(batch, key, self._read(batch, key)[0])

    def _read(self, batch: Batch, key: DropoutKey | None) -> tuple[Tensor | None, Tensor | None]:
        """The backbone's states [C, H] of candidates and, for a matcher, of the histories that they see."""
        if self.backbone is None:
            return None, None
        history = self.matcher is not None
        with torch.autocast(batch.ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            hidden = self.backbone(batch.ids, batch.layout, key=key, token_uids=batch.token_uids, history=history)
        hidden = hidden.to(next(self.text.parameters()).dtype)
        own, *past = hidden.chunk(2, dim=1) if history else (hidden,)
        return own, past[0] if past else None

    def _fused(self, batch: Batch, key: DropoutKey | None, own: Tensor | None) -> Tensor:
        with self.context.use(key, feature_uids(batch.row_ids)):
            parts = [self.side(batch)]
        if own is not None:
            parts.append(self.text(own))
        z: Tensor = self.fuse(torch.cat(parts, dim=1))
        return z

    def train_stage(self, stage: Stage) -> "Recommender":
        """Trains only what the stage names of what is learnable; call it before an engine takes the model.

        Raises:
            ConfigError: nothing is left to train.
        """
        group_of = {name: group for group, members in self.parameter_groups().items() for name in members}
        for name, parameter in self.named_parameters():
            if name in self.learnable:
                parameter.requires_grad_(group_of[name] in stage.train and self._is_reached(name, stage.layers))
        tables = {name: table for name, table in row_tables(self).items() if name in self.learnable}
        for table in tables.values():
            table.is_trained = "tables" in stage.train
        if not any(p.requires_grad for p in self.parameters()) and not any(t.is_trained for t in tables.values()):
            raise ConfigError(
                f"strategy.stages: the stage until {stage.until:g} trains {', '.join(stage.train)}, of which this run "
                "has no weights; name another group."
            )
        return self

    def _is_reached(self, name: str, layers: int | None) -> bool:
        """Whether a weight lies in the backbone's top `layers`; weights outside of it always do."""
        if layers is None or self.backbone is None or not name.startswith(IN_BACKBONE):
            return True
        model = cast(Any, self.backbone).model
        return layers > 0 and layers_above(model, name.removeprefix(IN_BACKBONE)) < layers

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        text = [] if self.backbone is None else numbered("text", cast(nn.Linear, self.text[1]).out_features)
        return {"fuse.0.weight": [None, [*self.side.columns(), *text]]}

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trained parameters by name: `adapters` in the backbone, `tables` of places, `towers` the rest, the layers of
        the matcher among them. Tables of ids and categories are no parameters (`model.row_table`)."""
        parts = [part for part in (self.side, self.position, self.matcher) if part is not None]
        tables = {id(m.weight) for part in parts for m in part.modules() if isinstance(m, nn.Embedding)}
        groups: dict[str, dict[str, nn.Parameter]] = {"adapters": {}, "towers": {}, "tables": {}}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            group = "adapters" if name.startswith("backbone.") else "tables" if id(parameter) in tables else "towers"
            groups[group][name] = parameter
        return groups


def frozen_dtype(run: Run) -> str:
    """The precision in which to load the backbone: bfloat16 only if none of its own weights is trained.

    `adapter.kind: full` with `top_layers` loads all in float32, for the file may hold more than bfloat16 has, and then
    stores what stays frozen in bfloat16 (`adapters.full`), before it comes to a GPU.
    """
    return "bfloat16" if run.engine.precision == "bf16" and run.adapter.kind != "full" else "float32"
