"""The whole model: shared backbone and side features -> z -> one tower per task."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from mtrec_ray.config import Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, DropoutKey, feature_uids
from mtrec_ray.model.features import SideFeatures
from mtrec_ray.model.layout import RequestLayout
from mtrec_ray.model.towers import Tower


class CandidateReader(Protocol):
    """What is asked of `model.backbone.Backbone`."""

    hidden_size: int

    def __call__(
        self, ids: Tensor, layout: RequestLayout, *, key: DropoutKey | None, token_uids: Tensor | None
    ) -> Tensor: ...


class Recommender(nn.Module):
    """`Batch` -> logits {task: [C, outputs]}.

    The first weights depend on `run.seed` alone. With `engine.precision: bf16` the backbone computes in bfloat16 under
    autocast, while all that is trained, and all after the backbone, stays in float32: so the frozen weights need no
    master copy, and no engine has to know of the precision.
    """

    def __init__(self, backbone: nn.Module | None, manifest: Manifest, run: Run) -> None:
        super().__init__()
        self.backbone = backbone
        self.bf16 = run.engine.precision == "bf16"
        self.context = DropoutContext()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.side = SideFeatures(manifest, run.features, self.context)
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
            self.towers = nn.ModuleList(Tower(task, run.towers, self.context) for task in manifest.tasks)
        self.task_names = [task.name for task in manifest.tasks]

    def forward(self, batch: Batch, key: DropoutKey | None = None) -> dict[str, Tensor]:
        """Every tower is computed also for zero candidates, so that every worker takes part in every exchange."""
        z = self.represent(batch, key)
        with self.context.use(key, feature_uids(batch.row_ids)):
            return {name: tower(z) for name, tower in zip(self.task_names, self.towers, strict=True)}

    def represent(self, batch: Batch, key: DropoutKey | None = None) -> Tensor:
        """z [C, z_dim]: what all towers read."""
        with self.context.use(key, feature_uids(batch.row_ids)):
            parts = [self.side(batch)]
        if self.backbone is not None:
            with torch.autocast(batch.ids.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                hidden = self.backbone(batch.ids, batch.layout, key=key, token_uids=batch.token_uids)
            parts.append(self.text(hidden.to(next(self.text.parameters()).dtype)))
        z: Tensor = self.fuse(torch.cat(parts, dim=1))
        return z

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trained parameters by name: `adapters` in the backbone, `tables` of ids and categories, `towers` the rest."""
        tables = {id(module.weight) for module in self.side.modules() if isinstance(module, nn.Embedding)}
        groups: dict[str, dict[str, nn.Parameter]] = {"adapters": {}, "towers": {}, "tables": {}}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            group = "adapters" if name.startswith("backbone.") else "tables" if id(parameter) in tables else "towers"
            groups[group][name] = parameter
        return groups


def frozen_dtype(run: Run) -> str:
    """The precision in which to load the backbone: bfloat16 only for weights that are not trained."""
    return "bfloat16" if run.engine.precision == "bf16" and run.adapter.kind != "full" else "float32"
