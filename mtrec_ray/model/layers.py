"""The layers of a backbone: where a model keeps them, and how far below the top a weight lies."""

from typing import TYPE_CHECKING

from torch import nn

from mtrec_ray.errors import BackboneError

if TYPE_CHECKING:  # importing it takes a second, which runs without a backbone need not spend
    from transformers import PreTrainedModel


IN_BACKBONE = "backbone.model."
"""How names of the recommender's parameters open that belong to the language model."""


def layer_stack(model: "PreTrainedModel") -> str:
    """Name of the list of the model's layers, as `layers` or `encoder.layer`."""
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name
    raise BackboneError(
        f"no list of {depth} layers found in {type(model).__name__}, which adapters and train.layer_decay need; "
        "choose another backbone.name"
    )


def layers_above(model: "PreTrainedModel", parameter: str) -> int:
    """How many of the model's layers lie above the parameter of that name, which may be an adapter's.

    0 for the top layer and for what follows it, as a last norm; all of them for the embeddings and what belongs to
    them. A part of the model beside the layers belongs to the embeddings if it holds one or is named after one
    (`embeddings.LayerNorm`, `word_embeddings_layernorm`). The order in which a model registers its parts does not tell:
    OPT has its last norm before its layers.
    """
    stack, path = layer_stack(model).split("."), parameter.split(".")
    depth = len(model.get_submodule(".".join(stack)))  # type: ignore[arg-type]
    if path[: len(stack)] == stack:
        return depth - 1 - int(path[len(stack)])
    branch = next(i for i, name in enumerate(path) if name != stack[i])
    part = ".".join(path[: branch + 1])
    embeddings = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    below = "embed" in path[branch] or any(f"{name}.".startswith(f"{part}.") for name in embeddings)
    return depth if below else 0
