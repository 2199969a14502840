"""How tasks are combined, and what a step trains."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

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


class Strategy(Part):
    """What a step trains: which of the tasks, and which of the weights."""

    tasks: Literal["joint", "round_robin", "proportional", "annealed"] = "joint"
    """`joint`: all of them in each step. Else one a step: in turn, drawn by their numbers of labels, or so that small
    tasks come up more often as time goes on."""
    stages: list[Stage] = []
    """One after the other, as `[{until: 0.3, train: [towers, tables]}, {until: 0.6, layers: 1}, {until: 1}]`."""

    @field_validator("stages")
    @classmethod
    def _ascending(cls, stages: list[Stage]) -> list[Stage]:
        ends = [stage.until for stage in stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError(f"stages must end one after the other and the last one at 1, but `until` is {ends}")
        return stages
