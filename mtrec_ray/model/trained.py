"""What parts of a model may ask of the training loop, beside gradients."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Trained(Protocol):
    """A module of the model that takes part in the steps. All ranks call all methods alike, in this order."""

    def extra_loss(self) -> Tensor | None:
        """To be added to the loss of a whole step, over all ranks and micro-steps: each of them adds its share.

        It is in the graph of the trained weights; None = nothing.
        """
        ...

    def before_step(self) -> None:
        """After the last backward pass of the step: the gradients in `.grad` are whole, and not yet clipped."""
        ...

    def after_step(self, step: int, num_steps: int) -> None:
        """After the optimizer's step, the `step`th of the run's `num_steps`; may change trained weights in place."""
        ...


def trained_parts(model: nn.Module) -> list[Trained]:
    """Those of all parts of the model. To be called once: walking through a deep model takes milliseconds."""
    return [module for module in model.modules() if isinstance(module, Trained)]
