"""How tasks are combined, and what a step trains."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from mtrec_ray.config.model import RESOLVED
from mtrec_ray.config.part import Part


class Balance(Part):
    """How the tasks' gradients are combined, beside the tasks' weights; see `mtrec_ray.multitask.balancing`."""

    method: str = "sum"
    params: dict[str, Any] = {}
    """Of the method; see its class."""
    scope: Literal["micro_step", "step"] = "micro_step"
    """What a method looks at to weigh the tasks: each micro-step of all ranks, or the whole step, which makes the
    result independent of how it is cut and costs one more forward pass."""
    conflict: bool = True
    """Whether the cosines between the tasks' gradients are measured, at every logged step."""


class Stage(Part):
    """A part of the run in which only some of the weights are trained."""

    until: Annotated[float, Field(gt=0, le=1)]
    """Share of all steps at which it ends; the last stage ends at 1."""
    train: list[Literal["adapters", "towers", "tables"]] = Field(default=["adapters", "towers", "tables"], min_length=1)
    """Groups of weights, as in `train.learning_rate`."""
    layers: Annotated[int, Field(ge=0)] | None = None
    """Of `adapters`, only those of this many layers from the top; all by default."""

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        if self.layers is not None and "adapters" not in self.train:
            raise ValueError(
                f"layers is {self.layers}, but it says which adapters are trained, and the stage trains "
                f"{', '.join(self.train)}; remove layers, or add adapters to `train`"
            )
        return self


class Adaptive(Part):
    """Task weights that validation rows steer during the run; see `mtrec_ray.multitask.strategy.adaptive`. Tasks that
    match users with items keep theirs."""

    main: list[str] = []
    """The tasks for whose sake the others are trained: these keep their weights. Empty: nothing is steered."""
    every: PositiveInt = 5
    """Steps from one look at validation rows to the next; each looks at `evaluate.batch_requests` requests."""
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """By how much a look changes the logarithm of a weight at most."""
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """What a look keeps of the gradients of those before: means over some 1 / (1 - memory) looks are compared."""
    least: Annotated[float, Field(gt=0, le=1)] = 0.01
    """What a task's weight is multiplied with, at least, and"""
    most: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0
    """at most."""

    @model_validator(mode="after")
    def _nothing_idle(self, info: ValidationInfo) -> Self:
        idle = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if idle and not self.main and RESOLVED not in (info.context or ()):
            raise ValueError(f"{idle[0]} does nothing while `main` names no task; name one, or remove {idle[0]}")
        return self

    @property
    def is_on(self) -> bool:
        return bool(self.main)


class Strategy(Part):
    """What a step trains: which of the tasks, with what weights, and which of the model's weights."""

    tasks: Literal["joint", "round_robin", "proportional", "annealed"] = "joint"
    """`joint`: all of them in each step. Else one a step: in turn, drawn by their numbers of labels, or so that small
    tasks come up more often as time goes on."""
    adaptive: Adaptive = Adaptive()
    """As `{main: [purchase]}`: the other tasks' weights follow how much they help these on validation rows."""
    stages: list[Stage] = []
    """One after the other, as `[{until: 0.3, train: [towers, tables]}, {until: 0.6, layers: 1}, {until: 1}]`."""

    @field_validator("stages")
    @classmethod
    def _ascending(cls, stages: list[Stage]) -> list[Stage]:
        ends = [stage.until for stage in stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError(f"stages must end one after the other and the last one at 1, but `until` is {ends}")
        return stages
