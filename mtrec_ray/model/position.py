"""The place on the page: what it does to a label is learned beside what the candidate does, and read at one place for
all when candidates are scored.

In training mode the effects are those of the places at which the rows were shown; an unknown place has one of its own,
and places beyond the largest of the train rows share that one's. In evaluation mode, so also for the validation during
a training, all candidates are at `position.reference`: the score is what would have come of the candidate there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.config import Position, Run
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.model.dropout import DropoutContext, dropped_elements
from mtrec_ray.model.entries import Axis
from mtrec_ray.registry import suggest
from mtrec_ray.tasks.kind import KINDS, Logits, TaskKind

LOOKED_AT = 2.0
"""Logit of the probability that a place is looked at (.88), before anything is learned."""


class Places(nn.Module):
    """`Batch` -> int64 [C], row of a table of places: 0 = unknown, k + 1 = place k."""

    def __init__(self, manifest: Manifest, config: Position, context: DropoutContext) -> None:
        super().__init__()
        self.column = manifest.context.index("position")
        self.last = manifest.positions[1]
        self.reference, self.dropout, self.context = config.reference, config.dropout, context

    @property
    def rows(self) -> int:
        return self.last + 2

    def names(self) -> list[str]:
        """Of the rows."""
        return ["unknown", *(str(place) for place in range(self.last + 1))]

    def forward(self, batch: Batch) -> Tensor:
        if not self.training:
            return torch.full_like(batch.row_ids, self.reference + 1)
        position = batch.context[:, self.column]
        known = ~torch.isnan(position)
        if self.dropout:
            key, uids = self.context.key, self.context.uids
            if key is None or uids is None:
                raise ValueError("dropout of the position needs a DropoutKey in training")
            known &= ~dropped_elements(uids, 1, key.salt("position"), self.dropout)[:, 0]
        return torch.where(known, position.nan_to_num(0.0).long().clamp(max=self.last) + 1, 0)


class PositionEffect(nn.Module):
    """A number for each place and task, which changes the task's logit: its first output.

    `additive`: s + b_k, the shallow tower of Zhao et al. 2019, "Recommending What Video to Watch Next: A Multitask
    Ranking System" (RecSys 2019, doi 10.1145/3298689.3346997; the section "Modeling and Removing Position and Selection
    Biases"). Where we differ: there the position is missing when candidates are scored, so a tenth of the positions
    is dropped in training for the model to know what missing means. Dropped rows teach the candidate's logit what their
    place did, and at a reference, which has rows of its own, nothing is missing; so `position.dropout` is 0 by default.

    `pal`: p = sigmoid(b_k) sigmoid(s), the probability that the place is looked at times that of the label for what is
    looked at (Guo et al. 2019, "PAL: A Position-bias Aware Learning Framework for CTR Prediction in Live Recommender
    Systems", RecSys 2019, doi 10.1145/3298689.3347033). It is handed on as the logit of p, so that every kind with
    labels 0 and 1 takes it. Where we differ: the paper scores with sigmoid(s) alone. The data determine both factors
    but for a constant that goes from one to the other; their product at a reference place is determined. The order is
    the same.

    A step after another task (kind `conversion`) has effects of its own beside those of its parent, unless
    `position.tasks` leaves it out.
    """

    def __init__(
        self, manifest: Manifest, kinds: Sequence[TaskKind], config: Position, context: DropoutContext
    ) -> None:
        super().__init__()
        self.is_product = config.method == "pal"
        chosen = placed_tasks(kinds, config)
        self.place_of = {name: i for i, name in enumerate(chosen)}
        self.places = Places(manifest, config, context)
        self.table = nn.Embedding(self.places.rows, len(chosen))
        nn.init.constant_(self.table.weight, LOOKED_AT if self.is_product else 0.0)

    def forward(self, batch: Batch) -> Tensor:
        """[C, tasks that have effects]"""
        effects: Tensor = self.table(self.places(batch))
        return effects

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"table.weight": [self.places.names(), list(self.place_of)]}

    def placed(self, logits: Logits, effects: Tensor) -> dict[str, Tensor]:
        """Logits of any tasks, at the places of `effects`."""
        return {name: self._placed(name, own, effects) for name, own in logits.items()}

    def _placed(self, name: str, own: Tensor, effects: Tensor) -> Tensor:
        if name not in self.place_of:
            return own
        effect = effects[:, self.place_of[name], None]
        first = logit_of_product(own[:, :1], effect) if self.is_product else own[:, :1] + effect
        return torch.cat([first, own[:, 1:]], dim=1)


class PositionFeature(nn.Module):
    """The place as a category among the side features: `Batch` -> [C, out_dim]."""

    def __init__(self, manifest: Manifest, config: Position, dim: int, context: DropoutContext) -> None:
        super().__init__()
        if dim == 0:
            raise ConfigError(
                "position.method: feature reads the place as a category, but features.category_dim is 0; set it above 0"
            )
        self.places = Places(manifest, config, context)
        self.table = nn.Embedding(self.places.rows, dim)
        nn.init.normal_(self.table.weight, std=0.05)
        self.out_dim = dim

    def forward(self, batch: Batch) -> Tensor:
        vectors: Tensor = self.table(self.places(batch))
        return vectors

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"table.weight": [self.places.names()]}


def logit_of_product(first: Tensor, second: Tensor) -> Tensor:
    """The logit of sigmoid(first) * sigmoid(second), finite for all finite logits, and so are its gradients.

    With a and b the two probabilities, log(1 - ab) = log((1 - a) + a (1 - b)): a sum in which nothing cancels.
    """
    yes = functional.logsigmoid(first)
    missed = torch.logaddexp(functional.logsigmoid(-first), yes + functional.logsigmoid(-second))
    return yes + functional.logsigmoid(second) - missed


def placed_tasks(kinds: Sequence[TaskKind], config: Position) -> list[str]:
    """The tasks of `position.tasks`, by default all whose labels are 0 and 1."""
    return [kind.task.name for kind in kinds if kind.placed and kind.task.name in (config.tasks or [kind.task.name])]


def check_position(run: Run) -> None:
    """What can be wrong with `position` before any data is read; plugins have been imported.

    Raises:
        ConfigError: a column that is needed and not named, a place that is a feature beside, or tasks that are unknown
            or have other labels.
    """
    config, columns = run.position, run.data.columns
    needs: Mapping[str, bool] = {"position": config.method != "none", "propensity": config.inverse_propensity}
    for column, needed in needs.items():
        if needed and getattr(columns, column) is None:
            what = f"method: {config.method}" if column == "position" else "inverse_propensity"
            raise ConfigError(
                f"position.{what} needs data.columns.{column}, which is not set; name the log's column there."
            )
    if config.method == "none" and not config.inverse_propensity:
        return
    for part, declared in (("numbers", run.data.numbers), ("categories", run.data.categories)):
        if config.method != "none" and columns.position in [feature.column for feature in declared]:
            raise ConfigError(
                f"position.method: {config.method} scores all candidates as if shown at one place, but data.{part} "
                f"also gives the model the place itself, by column '{columns.position}'. Remove it from data.{part}."
            )
    labelled = [name for name, task in run.tasks.items() if _may_be_placed(KINDS[task.kind])]
    for name in config.tasks or []:
        if name not in labelled:
            what = f"kind '{run.tasks[name].kind}' has other labels" if name in run.tasks else "there is no such task"
            if name in run.tasks and KINDS[run.tasks[name].kind].matches:
                what = f"kind '{run.tasks[name].kind}' matches users with items wherever these were shown"
            raise ConfigError(
                f"position.tasks: '{name}' must be a task with labels 0 and 1, but {what}.{suggest(name, labelled)}"
            )
    if not labelled:
        raise ConfigError(
            "position: no task has labels 0 and 1, so there is nothing that it could act on; leave it out."
        )


def _may_be_placed(kind: type[TaskKind]) -> bool:
    return kind.labels == "binary" and not kind.matches


def check_known_positions(run: Run, manifest: Manifest) -> None:
    """What the data alone can tell of `position`.

    Raises:
        DataError: no position, or no propensity, is known of any train row.
        ConfigError: a reference at which no train row can have been shown.
    """
    config, columns = run.position, run.data.columns
    if config.inverse_propensity and not manifest.propensities:
        raise DataError(_all_unknown("inverse_propensity", "propensity", columns))
    if config.method == "none":
        return
    if not manifest.positions:
        raise DataError(_all_unknown(f"method: {config.method}", "position", columns))
    first, last = manifest.positions
    if not first <= config.reference <= last:
        raise ConfigError(
            f"position.reference: {config.reference} is no position of train rows, which are {first} to {last}, so "
            f"nothing is learned of it. Set it to {first}, if that is the top."
        )


def _all_unknown(what: str, column: str, columns: Any) -> str:
    return (
        f"position.{what}: column '{getattr(columns, column)}' (data.columns.{column}) is empty in all train rows. "
        f"Fill it in when writing the log, or leave out position.{what.partition(':')[0]}."
    )
