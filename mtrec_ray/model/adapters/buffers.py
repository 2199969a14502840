"""What adapters remember beside their trained weights, and a checkpoint has to hold."""

from torch import Tensor, nn

from mtrec_ray.model.backbone import is_added


def added_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers themselves by name. They are the same on all ranks."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if is_added(name) and not isinstance(value, nn.Parameter)}
