"""AdaLoRA: low-rank updates that compete for ranks (Zhang et al. 2023, arXiv 2303.10512).

PEFT has the updates, P Lambda Q in the place of LoRA's B A, and they are used. Its allocation of ranks is not: it keeps
what it has learned outside of the model, so that a resumed run starts from nothing, and it reads gradients after the
optimizer's step, when engines have let go of them. `tests/model/adapters/test_adalora.py` compares both.

Gradients and weights must be whole where they are read: in the plain engine and at ZeRO stage 0. They are then the same
on all ranks to the last bit, and so are the ranks that follow from them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor, nn

from mtrec_ray.config import Adapter
from mtrec_ray.model.adapters.injection import ADAPTER, inject, low_rank_layers, set_dropout, trained_dtype
from mtrec_ray.model.adapters.targets import find_targets
from mtrec_ray.model.backbone import Backbone

WARM_UP, FINAL = 1 / 8, 1 / 2
"""Shares of all steps before ranks are taken away and after the last one is: about those of the authors' GLUE scripts,
of 8000 and 50000 of 86000 steps for MNLI, 2000 and 8000 of 16400 for QNLI."""
FIRST_RANK = 1.5
"""Times the rank in the end: as in section 3.3."""
SMOOTHING = 0.85
"""beta_1 and beta_2 of equations 9 and 10, as in the authors' experiments and PEFT."""


def add_adalora(backbone: Backbone, adapter: Adapter, seed: int) -> None:
    """h = W x + (alpha / r) P Lambda Q dropout(x), equation 3, with Lambda = 0 and r = 1.5 `rank` at the start.

    PEFT calls P, Lambda and Q B, E and A. Its own schedule, which wants to know the number of steps now, is not used.
    """
    model, first_rank = backbone.model, math.ceil(FIRST_RANK * adapter.rank)
    config = AdaLoraConfig(init_r=first_rank, target_r=adapter.rank, lora_dropout=0.0, bias="none", total_step=1)
    config.lora_alpha = adapter.alpha  # type: ignore[assignment]
    inject(model, config, find_targets(model, adapter.targets, adapter.top_layers), seed)
    layers: list[Any] = [layer for _, layer in low_rank_layers(model)]
    for layer in layers:
        layer.ranknum.to(trained_dtype(model)).requires_grad_(False)  # a constant, which PEFT trains in bfloat16
        layer.lora_importance = Importance(layer)
    set_dropout(model, adapter.dropout, backbone.dropout)
    backbone.rank_allocation = RankAllocation(layers, adapter.rank, adapter.orthogonality)


class Importance(nn.Module):
    """What is remembered of one module's triplets, a triplet being a singular value and its two vectors."""

    kept: Tensor

    def __init__(self, layer: AdaLoraLayer) -> None:
        super().__init__()
        for name, weight in triplets(layer).items():
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(weight))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(weight))
        values = layer.lora_E[ADAPTER]
        self.register_buffer("kept", torch.ones(len(values), dtype=torch.bool, device=values.device))

    def update(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Equations 8 to 10: the sensitivity |w dL/dw|, smoothed, and how far it is from that, smoothed."""
        sensitivity, uncertainty = self._of(name)
        now = (weight * gradient).abs()
        sensitivity.lerp_(now, 1 - SMOOTHING)
        uncertainty.lerp_((now - sensitivity).abs(), 1 - SMOOTHING)

    def scores(self) -> Tensor:
        """[rank], equations 7 and 11: of the value, and the means over its vectors."""
        value, right, left = (torch.mul(*self._of(name)) for name in "EAB")
        return value[:, 0] + right.mean(1) + left.mean(0)

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"sensitivity_{name}"), self.get_buffer(f"uncertainty_{name}")


class RankAllocation(nn.Module):
    """Gives each adapted module its share of the ranks, by `model.adapters.trained.Trained`.

    It has no tensors of its own: what it knows is in the modules' `Importance`, which checkpoints hold.
    """

    def __init__(self, layers: Sequence[AdaLoraLayer], rank: int, orthogonality: float) -> None:
        """`rank`: the mean over the modules in the end."""
        super().__init__()
        self._layers: tuple[Any, ...] = tuple(layers)
        self._rank, self._orthogonality = rank, orthogonality
        self._gradients: list[dict[str, Tensor]] = []

    def extra_loss(self) -> Tensor | None:
        """`orthogonality` times the mean of ||P^T P - I|| and ||Q Q^T - I|| over modules, in the Frobenius norm.

        Equation 4 has the sum of the squares; the authors' own code, and PEFT, the mean of the norms, for which their
        weights of 0.1 to 0.5 are.
        """
        if self._orthogonality == 0:
            return None
        distances = []
        for layer in self._layers:
            for vectors in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].T):
                gram = vectors @ vectors.T
                distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return self._orthogonality * torch.stack(distances).mean()

    def before_step(self) -> None:
        self._gradients = [
            {name: _gradient(weight) for name, weight in triplets(layer).items()} for layer in self._layers
        ]

    @torch.no_grad()
    def after_step(self, step: int, num_steps: int) -> None:
        """Algorithm 1, with a new allocation after each step between the first and the last one.

        As in the authors' code the weights are those after the step, or a value that is 0 would stay unimportant.
        """
        first, last = round(WARM_UP * num_steps), num_steps - round(FINAL * num_steps)
        if step <= last:
            for layer, gradients in zip(self._layers, self._gradients, strict=True):
                for name, weight in triplets(layer).items():
                    layer.lora_importance.update(name, weight, gradients[name])
        if first < step <= last:
            self._allocate(self._budget((step - first) / (last - first)))
        if step > first:
            for layer in self._layers:
                layer.lora_E[ADAPTER].masked_fill_(~layer.lora_importance.kept[:, None], 0.0)
        self._gradients = []

    def ranks(self) -> list[int]:
        """Of each module, in the model's order."""
        return [int(layer.lora_importance.kept.sum()) for layer in self._layers]

    def _budget(self, done: float) -> int:
        """Ranks of all modules together when a share `done` of the schedule is over.

        Equation 12 as in the authors' code; as printed, with t - t_i - t_f, it jumps at its ends.
        """
        start = sum(len(layer.lora_importance.kept) for layer in self._layers)
        end = self._rank * len(self._layers)
        return int(end + (start - end) * (1 - done) ** 3)

    def _allocate(self, budget: int) -> None:
        """The `budget` best triplets of all modules are kept; of equal ones those that come first."""
        scores = torch.cat([layer.lora_importance.scores() for layer in self._layers])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.argsort(descending=True, stable=True)[:budget]] = True
        sizes = [len(layer.lora_importance.kept) for layer in self._layers]
        for layer, own in zip(self._layers, kept.split(sizes), strict=True):
            layer.lora_importance.kept.copy_(own)


def triplets(layer: AdaLoraLayer) -> dict[str, nn.Parameter]:
    """E [rank, 1] of singular values, A [rank, in] and B [out, rank] of the vectors."""
    return {"E": layer.lora_E[ADAPTER], "A": layer.lora_A[ADAPTER], "B": layer.lora_B[ADAPTER]}


def _gradient(weight: nn.Parameter) -> Tensor:
    """A copy, for engines let go of gradients in their step, or clip them there."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()
