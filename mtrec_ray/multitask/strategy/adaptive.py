"""Adaptive task weights: what helps the main tasks on validation rows gains weight, what harms them loses it.

A look takes the gradient of the main tasks' weighted loss on validation rows and that of each task on the train rows
of the step, all of the parameters of the last layer that all tasks share (`shared_layer`). v and g_t are their
exponential means over the looks so far, with decay `memory`. Then, for each task t that is not a main one,

    factor_t <- clip(factor_t * exp(rate * cos(v, g_t)), least, most)

and the task's weight in the steps that follow is its own times the factor.

A step along -g_t of length e changes the validation loss by -e <v, g_t> to first order. That is the sign by which Du et
al. 2018, "Adapting Auxiliary Losses Using Gradient Similarity" (arXiv 1812.02224), keep or drop an auxiliary gradient
in a step, and the quantity of which Lin et al. 2019, "Adaptive Auxiliary Task Weighting for Reinforcement Learning"
(NeurIPS), make the gradient of the weights (OL-AUX: a weight moves along <v, g_t>, summed over several steps). Where
we differ:
- v comes from validation rows. The papers take it from the batch that is trained on, on which a main task with few
  labels is soon learned by heart, and then has no gradient that an auxiliary task could agree with.
- The update multiplies (exponentiated gradient, Kivinen & Warmuth 1997), so weights stay above 0 and a task that has
  become useless can come back; and it takes the cosine, so that neither the tasks' scales nor the weights themselves
  set the pace.
- It compares means over looks. The cosine of two gradients that are mostly noise is near 0 whatever their means are: of
  n looks, the products of each with all others count, and not only the n products within a look.
- One layer stands for all that is shared, as in GradNorm (Chen et al. 2018, arXiv 1711.02257): its gradients cost no
  pass through the backbone per task.

The validation rows take part in training by this, so their figures are slightly optimistic; test rows are untouched.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtrec_ray.config import Adaptive, Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.errors import ConfigError
from mtrec_ray.registry import suggest
from mtrec_ray.tasks.kinds import KINDS


class AdaptiveWeights:
    """The factors of T tasks, and the mean gradients by which they move; float64 on the host, equal on all ranks."""

    def __init__(self, tasks: Sequence[str], config: Adaptive) -> None:
        self.main = torch.tensor([name in config.main for name in tasks])
        """bool [T]"""
        self.factors = torch.ones(len(tasks), dtype=torch.float64)
        """[T]"""
        self._means = torch.zeros(1 + len(tasks), 0, dtype=torch.float64)
        """[1 + T, P] v and each g_t, up to their scales; P = 0 until the first look"""
        self._config = config

    def learn(self, wanted: Tensor, gradients: Tensor) -> Tensor:
        """One look: the main tasks' gradient [P] on validation rows, and the tasks' own [T, P], of losses that were
        multiplied with the factors. Gives the cosines [T] of their means.

        A task that has no gradient in this look keeps its factor, and its cosine is NaN; all do where v has none.
        """
        now = torch.cat([wanted[None], gradients / self.factors[:, None]])
        means = self._means if self._means.shape[1] else torch.zeros_like(now)
        there = now.isfinite().all(dim=1) & (now.norm(dim=1) > 0)
        memory = self._config.memory
        self._means = torch.where(there[:, None], memory * means + (1 - memory) * now, means)
        found = torch.where(there[0] & there[1:], cosines(self._means[1:], self._means[0]), torch.nan)
        moves = torch.where(self.main | found.isnan(), 0.0, self._config.rate * found)
        self.factors = (self.factors * moves.exp()).clamp(self._config.least, self._config.most)
        return found

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold."""
        return {"factors": self.factors.clone(), "means": self._means.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from where `state` was taken. Raises `ConfigError` if it is of something else."""
        found = {name: list(value.shape) for name, value in state.items()}
        if found.keys() != {"factors", "means"} or found["factors"] != list(self.factors.shape):
            raise ConfigError(
                f"strategy.adaptive: the checkpoint holds the state {found}, which is not that of adaptive weights of "
                f"{len(self.factors)} tasks. Go on with the checkpoint's settings, or start a new run."
            )
        self.factors, self._means = state["factors"].clone(), state["means"].clone()


def cosines(gradients: Tensor, reference: Tensor) -> Tensor:
    """float64 [T] between each row of `gradients` [T, P] and `reference` [P]; NaN where one of them is zero."""
    gradients, reference = gradients.double(), reference.double()
    lengths = gradients.norm(dim=1) * reference.norm()
    return torch.where(lengths > 0, (gradients @ reference) / lengths, torch.nan)


def check_adaptive(run: Run) -> None:
    """What needs no data.

    Raises:
        ConfigError: a main task that is unknown or has no weight, nothing to steer, or a setting that does the same.
    """
    adaptive = run.strategy.adaptive
    if not adaptive.is_on:
        return
    for name in adaptive.main:
        if name not in run.tasks:
            raise ConfigError(f"strategy.adaptive.main: there is no task '{name}'.{suggest(name, list(run.tasks))}")
        if run.tasks[name].weight == 0:
            raise ConfigError(
                f"strategy.adaptive.main names '{name}', but tasks.{name}.weight is 0, so that it is not trained. Give "
                "it a weight, or name another task."
            )
        if KINDS[run.tasks[name].kind].matches:
            raise ConfigError(
                f"strategy.adaptive.main names '{name}' of kind '{run.tasks[name].kind}', which does not read the "
                "layer at which gradients are compared. Name a task of another kind."
            )
    steered = [name for name, task in run.tasks.items() if task.weight > 0 and not KINDS[task.kind].matches]
    if set(steered) <= set(adaptive.main):
        raise ConfigError(
            "strategy.adaptive.main names all tasks that have a weight and read the layer at which gradients are "
            "compared, so that there is nothing to steer. Name fewer, or leave strategy.adaptive out."
        )
    if run.strategy.tasks != "joint":
        raise ConfigError(
            f"strategy.adaptive compares the tasks' gradients of a step, but strategy.tasks is {run.strategy.tasks}, "
            "which trains one task a step. Set strategy.tasks: joint, or leave strategy.adaptive out."
        )
    if run.balance.method != "sum":
        raise ConfigError(
            f"strategy.adaptive and balance.method '{run.balance.method}' both choose the tasks' weights: one by "
            "validation rows, the other by train rows, and it would undo what the first asks for. Set balance.method: "
            "sum, or leave strategy.adaptive out."
        )


def check_validation_labels(run: Run, manifest: Manifest) -> None:
    """Raises `ConfigError` unless the validation split has labels of each main task."""
    for task in manifest.tasks:
        if task.name in run.strategy.adaptive.main and task.labels != "none" and not task.observed["valid"]:
            raise ConfigError(
                f"strategy.adaptive.main names '{task.name}', which has no observed label in the validation split. "
                "Name another task, or enlarge split.valid."
            )
