"""Balance methods inside real training steps, and what they must agree with: a few lines of autograd."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.engine.base import Engine
from mtrec_ray.model.dropout import DropoutKey, feature_uids
from mtrec_ray.multitask.balancing.balancer import make_method
from mtrec_ray.multitask.balancing.method import Seen
from mtrec_ray.train.loop import training_steps
from tests.batches import Step, make_run, make_steps
from tests.training import make_engine, make_objective, make_recipe

SGD = (
    "engine.optimizer=sgd",
    "train.clip_norm=null",
    "train.learning_rate={adapters: 0.1, towers: 0.05, tables: 0.1}",
    "train.warmup=0",
    "train.decay=constant",
)


def run_of(method: str, *overrides: str, **params: Any) -> Run:
    return make_run(*SGD, f"balance.method={method}", f"balance.params={params}", *overrides)


def train(
    run: Run,
    data: Sequence[Step],
    with_backbone: bool = True,
    start: Callable[[str, Tensor], Tensor] = lambda name, value: value,
) -> dict[str, Any]:
    """Gradients, weights and Gramians of each step of the loop; `start`: (name, weight) -> weight to start from."""
    engine = make_engine(run, with_backbone)
    engine.load_parameters({name: start(name, value) for name, value in engine.parameters().items()})
    gradients: list[dict[str, Tensor]] = []
    take = engine.step

    def recorded(scale: float) -> Tensor:
        gradients.append(engine.gradients())
        return take(scale)

    engine.step = recorded  # type: ignore[method-assign]
    recipe = make_recipe(run, len(data), engine)
    results = list(training_steps(engine, data, recipe))
    found = {
        "gradients": gradients,
        "balance": [result.balance for result in results],
        "gramian": [result.gramian for result in results],
        "losses": [result.task_loss for result in results],
        "memory": recipe.balancer.method.state(),
        "parameters": engine.parameters(),
    }
    engine.close()
    return found


def by_hand(run: Run, units: Sequence[Step]) -> list[dict[str, Tensor]]:
    """Gradients of each step, one batch a step, with a backward pass per task: for methods without memory."""
    engine = make_engine(run, with_backbone=True)
    gradients = []
    for step in units:
        gradients.append(_step_by_hand(engine, run, step))
        engine.step(1.0)
    return gradients


def _step_by_hand(engine: Engine, run: Run, step: Step) -> dict[str, Tensor]:
    (batch,), key = step.batches, DropoutKey(run.seed, step.plan)
    objective, method, model = make_objective(run), make_method(run), engine.model
    model.train()
    scales = objective.scales(objective.counts(batch))
    z = model.represent(batch, key)  # type: ignore[operator]
    leaf = z.detach().requires_grad_()
    losses = objective.loss_sums([_towers(model, leaf, batch, key)], batch) * scales
    apart = [torch.autograd.grad(loss, leaf, retain_graph=True)[0].flatten() for loss in losses]
    per_task = torch.stack(apart).double()
    gramian = per_task @ per_task.T
    observed = objective.counts(batch) > 0
    means = losses.detach().double()
    weights = method.weights(step.plan, Seen(means, observed, gramian, torch.ones_like(means)))
    towers_weights = weights if method.place == "loss" else torch.ones_like(weights)
    (losses * towers_weights).sum().backward()
    at_z = (weights[:, None] * per_task).sum(0).view_as(z).to(z.dtype)
    engine.backward((z * at_z).sum(), last=True)
    return engine.gradients()


def _towers(model: Any, z: Tensor, batch: Any, key: DropoutKey) -> dict[str, Tensor]:
    with model.context.use(key, feature_uids(batch.row_ids)):
        found: dict[str, Tensor] = model.towers(z, batch.domain, [name for names in model.reads for name in names])
    return found


def whole_steps(count: int) -> list[Step]:
    return make_steps(count, tokens=True)
