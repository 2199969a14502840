"""What is added to the loss of a step so that predictions do not hang on what they should not."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, ValidationInfo, model_validator

from mtrec_ray.config.model import RESOLVED
from mtrec_ray.config.part import Part


class Adversarial(Part):
    """Training on inputs that were moved to where the loss is larger; see `mtrec_ray.train.adversary`."""

    method: Literal["none", "fgm", "pgd"] = "none"
    """`fgm`: one step along the gradient. `pgd`: several, each followed by a projection."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    """How far inputs are moved at most, as a share of their own norm."""
    steps: PositiveInt | None = None
    """`pgd`; 3 by default."""
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """`pgd`: length of a step, as a share like `epsilon`; by default 2 epsilon / steps."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """What the moved inputs' loss counts, beside the loss itself."""
    on: Literal["auto", "tokens", "features"] = "auto"
    """What is moved: the embeddings of a request's tokens, or a candidate's side features. `auto`: tokens, and features
    with `backbone: none`."""

    @model_validator(mode="after")
    def _nothing_idle(self, info: ValidationInfo) -> Self:
        if RESOLVED in (info.context or ()) or self.method == "pgd":
            return self
        idle = [name for name in ("steps", "step_size") if getattr(self, name) is not None]
        if idle:
            raise ValueError(f"{idle[0]} belongs to `method: pgd`, and method is {self.method}; remove it")
        return self

    @property
    def is_on(self) -> bool:
        return self.method != "none" and self.weight > 0

    @property
    def ascent(self) -> tuple[int, float]:
        """How many steps of what length, as a share of the inputs' norm."""
        if self.method == "fgm":
            return 1, self.epsilon
        steps = self.steps or 3
        return steps, self.step_size or 2 * self.epsilon / steps


class RDrop(Part):
    """Agreement of predictions under two draws of all dropouts; see `mtrec_ray.train.regularization`."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The paper's alpha, 1 to 5 there; 0 = off."""


class Regularization(Part):
    """Each part that is on reads every batch once more, in the same forward pass."""

    adversarial: Adversarial = Adversarial()
    r_drop: RDrop = RDrop()

    @property
    def views(self) -> int:
        """How often a forward pass reads each batch."""
        return 1 + (self.r_drop.weight > 0) + self.adversarial.is_on
