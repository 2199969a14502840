"""What a balance method is: from what a unit of training says of its tasks to one weight per task.

A *unit* is what a method looks at before it gives weights: a micro-step of all ranks, or a whole optimizer step.
T tasks, in the order of the manifest. Every tensor here is float64 on the host, apart from the masks.
A method that is not built in is a subclass of `Method`, registered in a module that `plugins` names:

    from mtrec_ray.multitask.balancing.method import METHODS, Method

    @METHODS.register("mine")
    class Mine(Method): ...
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtrec_ray.config import Part
from mtrec_ray.errors import ConfigError
from mtrec_ray.params import check_params
from mtrec_ray.registry import Registry

EPSILON = 1e-8
"""Losses are kept this far from 0 where a logarithm or a quotient is taken of them."""


@dataclass(frozen=True)
class Seen:
    """What a unit says of its T tasks."""

    losses: Tensor
    """[T] task weight times the mean loss over the unit's observed labels; >= 0, and 0 for a task not observed."""
    observed: Tensor
    """bool [T]: the unit has a label of the task, and its weight is not 0."""
    gramian: Tensor | None = None
    """[T, T] inner products of the gradients that arrive at the balance point: of the unit's part of each task's
    weighted loss, which is a mean over the labels of the whole step."""
    shares: Tensor | None = None
    """[T] the unit's part of the step's labels of each task: 1 where the unit is the step. A gradient divided by it is
    that of the unit's mean loss."""

    def part(self, kept: Tensor) -> "Seen":
        """Only the tasks of the mask `kept`, bool [T]."""
        gramian = None if self.gramian is None else self.gramian[kept][:, kept]
        shares = None if self.shares is None else self.shares[kept]
        return Seen(self.losses[kept], self.observed[kept], gramian, shares)


class Method(ABC):
    """Weights per task, on top of the config's task weights; ones are the plain weighted sum.

    `weights` changes nothing: it is a function of the memory, the step, what is seen and the seed. So ranks that call
    it apart agree, however often each of them calls it. Only `learn` and `load_state` change the memory.

    Raises:
        ConfigError: on construction, a parameter that is unknown or out of range.
    """

    class Params(Part):
        """No parameters."""

    reads: ClassVar[Literal["nothing", "losses", "gramian"]] = "nothing"
    """What `weights` has to be told of the unit at hand; `gramian` = that and the losses."""
    place: ClassVar[Literal["loss", "z"]] = "loss"
    """What the weights multiply: the losses, or only the gradients at the balance point, so that everything behind it
    (the towers) learns from the plain sum."""
    learns: ClassVar[Literal["nothing", "losses", "gramian", "losses_again"]] = "nothing"
    """What `learn` has to be told of a step; `losses_again` = also the losses of the same batch after the update."""

    def __init__(self, tasks: Sequence[str], params: Mapping[str, Any], seed: int) -> None:
        self.tasks = tuple(tasks)
        self.params = self.check(params)
        self.seed = seed
        self.memory = self.start()

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> Part:
        """The parameters, typed, with defaults; needs no library but pydantic.

        Raises:
            ConfigError: with one line per mistake.
        """
        return check_params(cls.Params, params, "balance.params")

    def start(self) -> dict[str, Tensor]:
        """The memory of a method that has learned nothing yet; its names and shapes never change."""
        return {}

    @abstractmethod
    def weights(self, step: int, seen: Seen | None) -> Tensor:
        """[T]; `seen` may be None for methods that read nothing."""

    def learn(self, step: int, seen: Seen, again: Tensor | None) -> None:
        """Called once after each optimizer step with the whole step's `seen`.

        `again` [T] holds, for methods that want them, the losses of the same batch after the update.
        """
        return

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold; empty for methods without memory."""
        return {name: value.clone() for name, value in self.memory.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from where `state` was taken.

        Raises:
            ConfigError: the state is another method's, or of another number of tasks.
        """
        expected, found = _shapes(self.memory), _shapes(state)
        if expected != found:
            raise ConfigError(
                f"balance.method: the checkpoint holds the state {found}, but this method with {len(self.tasks)} tasks "
                f"has {expected}. Go on with the method and the tasks of the checkpoint, or start a new run."
            )
        self.memory = {name: value.clone() for name, value in state.items()}

    def ones(self) -> Tensor:
        """The weights of the plain sum, [T]."""
        return torch.ones(len(self.tasks), dtype=torch.float64)


class UnitMethod(Method):
    """A method that looks at the unit at hand, and balances only the tasks that it has.

    A task without labels in the unit (or, for methods that read the Gramian, without gradient) is left out and has
    weight 1, which changes nothing. A task that is alone has weight 1.
    """

    def weights(self, step: int, seen: Seen | None) -> Tensor:
        assert seen is not None, "a method that reads losses or the Gramian was not told them"
        kept = self.kept(seen)
        weights = self.ones()
        if int(kept.sum()) > 1:
            weights[kept] = self.balance(step, seen.part(kept), kept)
        return weights

    @abstractmethod
    def balance(self, step: int, seen: Seen, kept: Tensor) -> Tensor:
        """Weights [n] of the n >= 2 kept tasks, of which alone `seen` tells; `kept` bool [T]."""

    def kept(self, seen: Seen) -> Tensor:
        """The tasks that take part, bool [T].

        A gradient that is not finite takes part in nothing: the loss is not finite either, and the training loop,
        which checks it on all ranks, says so.
        """
        if self.reads != "gramian":
            return seen.observed
        assert seen.gramian is not None, "a method that reads the Gramian was not told it"
        finite = torch.isfinite(seen.gramian).all(dim=1)
        return seen.observed & finite & (seen.gramian.diagonal() > 0)


METHODS: Registry[type[Method]] = Registry("balance method")


def step_generator(seed: int, step: int, purpose: str = "balance") -> torch.Generator:
    """The random choices of one step: the same on every rank and after a resume; no global state is touched.

    Seeded with 64 bits of blake2b, so that neighbouring steps have nothing in common.
    """
    key = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little"))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensors[name].shape) for name in sorted(tensors)}
