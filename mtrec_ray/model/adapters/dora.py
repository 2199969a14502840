"""DoRA: low-rank updates of the directions of a module's weight rows, and the rows' lengths trained apart (Liu et al.
2024, arXiv 2402.09353).

PEFT puts it in, names it and merges it. The forward pass is ours, for PEFT's reads the frozen weight outside of the
module that owns it, where it is not at ZeRO-3. Ours asks the modules alone. It is cheaper too: the lengths of the rows
of W + s B A are found by r + 1 more inputs to W, where PEFT makes the whole matrix in each pass.
"""

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters.injection import ADAPTER, inject, low_rank_layers, set_dropout, trained_dtype
from mtrec_ray.model.adapters.lora import lora_config
from mtrec_ray.model.adapters.targets import find_targets
from mtrec_ray.model.backbone import Backbone


def add_dora(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """h = m / ||W + s B A|| (W x + s B A dropout(x)), equation 5; m = ||W|| and B = 0 at the start. Norms are of rows.

    The norm is a constant to the gradient (section 4.3). Dropout is LoRA's; PEFT's DoRA drops what W reads too, in the
    difference to the frozen module but not in the frozen module itself.
    """
    model = backbone.model
    inject(model, lora_config(adapter), find_targets(model, adapter.targets, adapter.top_layers), seed)
    for _, found in low_rank_layers(model):
        layer: Any = found
        for factors in (layer.lora_A, layer.lora_B):
            factors[ADAPTER] = Factor(factors[ADAPTER].weight)
        weight = layer.get_base_layer().weight
        with gather_params_ctx(weight, modifier_rank=None):
            squares = weight.detach().to(trained_dtype(model)).square().sum(0 if layer.fan_in_fan_out else 1)
        layer.lora_magnitude_vector[ADAPTER] = Magnitude(squares, weight.dtype, layer.fan_in_fan_out)
        layer.lora_variant[ADAPTER] = Variant()
        layer.register_forward_pre_hook(_measure)
    set_dropout(model, adapter.dropout, backbone.dropout)


class Factor(nn.Linear):
    """A or B, which also tells its weight, without a gradient."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, x: Tensor | None = None) -> Tensor:
        return self.weight.detach().clone() if x is None else super().forward(x)


class Magnitude(DoraLinearLayer):
    """The trained lengths m [out] of a module's rows; `measure` finds the lengths that they take the place of."""

    def __init__(self, squares: Tensor, frozen_dtype: torch.dtype, fan_in_fan_out: bool) -> None:
        """`squares` [out]: of the lengths of the frozen rows."""
        super().__init__(fan_in_fan_out)
        self.weight = nn.Parameter(squares.sqrt())
        self.register_buffer("squares", squares, persistent=False)
        self._frozen_dtype = frozen_dtype
        self._norm, self._bias = squares, squares

    @torch.no_grad()
    def measure(self, base: nn.Module, down: Tensor, up: Tensor, scaling: float) -> None:
        """||W + s B A||^2 = ||W||^2 + 2 s W·BA + s^2 ||BA||^2, by rows; `down` is A [r, in], `up` is B [out, r].

        The input of zeros gives the bias, if there is one.
        """
        inputs = nn.functional.pad(down, (0, 0, 0, 1)).to(self._frozen_dtype)
        through = base(inputs).to(up.dtype)
        self._bias = through[-1]
        cross = (up * (through[:-1] - self._bias).T).sum(1)
        own = ((up @ (down @ down.T)) * up).sum(1)
        self._norm = (self.squares + 2 * scaling * cross + scaling**2 * own).sqrt()

    def forward(self, result: Tensor, update: Tensor) -> Tensor:  # type: ignore[override]
        """The frozen module's output and s B A x -> the output."""
        scale = self.weight / self._norm
        # In this form a scale of one changes no bit.
        return result + ((scale - 1) * (result - self._bias) + scale * update)


class Variant(DoraLinearVariant):
    """What PEFT's linear module does with its frozen output."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        low = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        update = module.lora_B[active_adapter](low) * module.scaling[active_adapter]
        adapted: Tensor = module.lora_magnitude_vector[active_adapter](result, update)
        return adapted


def _measure(layer: Any, _: Any) -> None:
    """Before the frozen module reads the tokens: DeepSpeed counts anew in each forward pass how often a module is to be
    passed backwards, so a pass without gradients that came last would have it hold on to the weight."""
    down, up = layer.lora_A[ADAPTER](), layer.lora_B[ADAPTER]()
    layer.lora_magnitude_vector[ADAPTER].measure(layer.get_base_layer(), down, up, layer.scaling[ADAPTER])
