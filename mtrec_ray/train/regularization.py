"""The loss of a micro-step with what `regularization` adds to it.

For each task t, with S(view) the sum of its candidates' weighted losses (`Objective.loss_sums`):

    (S(x) + S(x') + alpha D(x, x')) / 2   R-Drop; without it S(x)
    + weight * S(x + r)                   adversarial training

x' is the batch under another draw of all dropouts, r the perturbation of `train.adversary`. The sums are divided by the
same N_t as S alone, and whatever combines the tasks (weights, balance methods, turns) sees each task's total.

R-Drop (Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", arXiv 2106.14448): D is the mean of the
Kullback-Leibler divergences of the two predictions in both directions (Eq. 1), as each kind of task defines it
(`TaskKind.divergence`), and the total is half of Eq. 4, so that it stays a mean over labels and alpha is the paper's.
Gradients go into both views.

All views of a batch are read in one forward pass, one after the other in the row, as the authors of R-Drop do. So each
backward pass has one forward pass, which is what balance points, DeepSpeed and stacked trials count on, and the balance
point sees all of a task's gradient at once. Nothing in the row depends on what else is in it.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from mtrec_ray.config import ADAPTER_FIELDS, Regularization, Run
from mtrec_ray.data.batch import Batch, joined_batches
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.engine.base import Engine
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutKey
from mtrec_ray.model.perturbation import Place, Reading, reading
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.multitask.balancing.point import Point
from mtrec_ray.multitask.losses import Objective, Views
from mtrec_ray.tasks.kind import Logits
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.train.adversary import perturbation


def loss_sums(
    config: Regularization,
    engine: Engine,
    objective: Objective,
    batch: Batch,
    key: DropoutKey,
    scales: Tensor,
    point: Point | None,
) -> Tensor:
    """Per task what is to be divided by its N: [T]. `scales` [T]: see `Objective`; by them r is chosen."""
    if config.views == 1:
        return objective.loss_sums(engine.forward(batch, key, point), batch)
    alpha, adversarial = config.r_drop.weight, config.adversarial
    views = [batch, *([redrawn(batch)] if alpha else []), *([batch] if adversarial.is_on else [])]
    whole = joined_batches(views)
    if adversarial.is_on:
        model = cast(Recommender, engine.model)
        place: Place = "features" if adversarial.on == "features" or model.backbone is None else "tokens"

        def look(found: Reading) -> Tensor:
            with reading(model, batch, place, found):
                return objective.loss(objective.loss_sums(model(batch, key), batch), scales)

        added = perturbation(look, batch, place, adversarial)
        still = added.new_zeros(len(added) * (len(views) - 1), added.shape[1])
        with reading(model, whole, place, Reading(torch.cat([still, added]))):
            read = engine.forward(whole, key, point)
    else:
        read = engine.forward(whole, key, point)
    parts = [_part(read, v, batch.num_candidates) for v in range(len(views))]
    sums = objective.loss_sums(parts[0], batch)
    if alpha:
        apart = objective.divergence_sums(parts[0], parts[1], batch)
        sums = (sums + objective.loss_sums(parts[1], batch) + alpha * apart) / 2
    if adversarial.is_on:
        sums = sums + adversarial.weight * objective.loss_sums(parts[-1], batch)
    return sums


def redrawn(batch: Batch) -> Batch:
    """The same rows under other names, for which all dropouts draw other masks; no row has a negative id."""
    return replace(batch, row_ids=~batch.row_ids, token_uids=~batch.token_uids)


def _part(read: Views, number: int, size: int) -> list[Logits]:
    """The logits of one of the views that were read together, each of `size` candidates."""
    rows = slice(number * size, (number + 1) * size)
    return [{task: logits[rows] for task, logits in one.items()} for one in read]


def check_regularization(run: Run) -> None:
    """What needs no data.

    Raises:
        ConfigError: a regularisation that could do nothing.
    """
    on = run.regularization.adversarial.on
    if run.regularization.adversarial.is_on and on == "tokens" and run.backbone.name == "none":
        raise ConfigError(
            "regularization.adversarial.on is tokens, but backbone is 'none', so that no tokens are read; set it to "
            "features."
        )
    found = dropouts(run)
    if run.regularization.r_drop.weight and not any(found.values()):
        remedy = f"set one of {', '.join(found)} above 0, or the weight to 0" if found else "set the weight to 0"
        raise ConfigError(
            f"regularization.r_drop.weight is {run.regularization.r_drop.weight:g}, but there is no dropout in what "
            f"the tasks read, so that both predictions are the same: {remedy}."
        )


def check_features(run: Run, manifest: Manifest) -> None:
    """Raises `ConfigError` if side features are to be moved and the data has none."""
    adversarial, features = run.regularization.adversarial, run.features
    moves_features = adversarial.on == "features" or (adversarial.on == "auto" and run.backbone.name == "none")
    widths = (features.user_dim, features.item_dim, features.history_dim, run.position.method == "feature")
    read = any(widths) or bool(manifest.numbers) or bool(manifest.vectors)
    read = read or (bool(manifest.categories) and features.category_dim > 0)
    if adversarial.is_on and moves_features and not read:
        raise ConfigError(
            "regularization.adversarial.on is features, but candidates have no side features; set features.item_dim or "
            "features.aggregates, or on: tokens."
        )


def dropouts(run: Run) -> dict[str, float]:
    """All dropouts that the model of this run can have in what its trained tasks read, by dotted path.

    Tasks that match read no side features, and their items' vectors are the same in both predictions.
    """
    features, towers, kind = run.features, run.towers, run.adapter.kind
    found = {}
    if run.backbone.name != "none" and "dropout" in ADAPTER_FIELDS[kind]:
        found["adapter.dropout"] = run.adapter.dropout
    if all(task.weight == 0 or KINDS[task.kind].matches for task in run.tasks.values()):
        return found
    found["towers.dropout"] = towers.dropout if towers.hidden else 0.0
    found["features.dropout"] = features.dropout if features.hidden else 0.0
    if features.user_dim or features.item_dim:
        found["features.id_dropout"] = features.id_dropout
    if run.position.method != "none":
        found["position.dropout"] = run.position.dropout
    return found
