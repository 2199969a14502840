"""The optimizer of a run, and the learning rate of each of its parameters.

A parameter's rate is that of its group (`train.learning_rate`) times what `train.lora_plus` and `train.layer_decay`
make of it. torch gets one group for each pair of group and multiple. Row tables (`model.row_table`) are not among them:
`engine.tables` steps these.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrec_ray.config import Run
from mtrec_ray.engine.base import TrainedModel
from mtrec_ray.model.layers import IN_BACKBONE, layers_above

_ADAPTERS = "adapters"
_NOTHING = {"params": [], "lr": 0.0, "initial_lr": 0.0}
"""The group of a stage that trains row tables alone."""
_LORA = ("lora", "dora")
"""Kinds with an A that is random and a B that is 0 at the start; AdaLoRA's factors are singular vectors."""


def build_optimizer(model: nn.Module, run: Run, device: torch.device) -> torch.optim.Optimizer:
    """torch's AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), SGD, or Adafactor (Shazeer & Stern 2018, arXiv
    1804.04235) over `rate_groups`.

    Adafactor is torch's. A matrix has a mean of squared gradients per row and per column in place of AdamW's two
    tensors of its own size, a vector one tensor; there is no first moment. Its step is a share of the weights' own
    size: max(1e-3, RMS(weights)) times min(rate, 1 / sqrt(step)), where the paper has .01 for the rate. So it wants
    larger rates than AdamW, of weights that start at zero above all (the B matrices of LoRA). torch's own eps_1 is the
    precision of a float, 1.2e-7, below which it lets no matrix's mean squared gradient fall: gradients under 3e-4 would
    then make steps that do not get smaller with them. Ours squared is the 1e-30 that the paper adds to squared ones.
    """
    groups = rate_groups(model, run) or [_NOTHING]
    if run.engine.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=run.train.momentum)
    if run.engine.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, eps=(1e-15, 1e-3))
    # On the CPU torch's default is a loop over the parameters, a dozen small operations each; on a GPU it is not.
    return torch.optim.AdamW(groups, fused=True if device.type == "cpu" else None)


def rate_groups(model: nn.Module, run: Run) -> list[dict[str, Any]]:
    """torch's parameter groups: `params`, `lr`, `weight_decay`, the group's `name`, and `initial_lr`, the rate that
    the schedule scales. Groups without parameters are left out.
    """
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameters in cast(TrainedModel, model).parameter_groups().items():
        rate, decay = getattr(run.train.learning_rate, name), getattr(run.train.weight_decay, name)
        for parameter_name, parameter in parameters.items():
            multiple = _multiple(model, parameter_name, run) if name == _ADAPTERS else 1.0
            if (name, multiple) not in groups:
                lr = rate * multiple
                groups[name, multiple] = {"params": [], "lr": lr, "initial_lr": lr, "weight_decay": decay, "name": name}
            groups[name, multiple]["params"].append(parameter)
    return list(groups.values())


def _multiple(model: nn.Module, parameter: str, run: Run) -> float:
    """The learning rate of a weight in the backbone, as a multiple of `train.learning_rate.adapters`.

    LoRA+ (Hayou, Ghosh & Yu 2024, arXiv 2402.12354): eta_B = lambda eta_A, with `train.lora_plus` for lambda. The rate
    in the config is A's, as in the paper; the decay of the weights grows with the rate, as always in AdamW.

    Layer-wise decay (Clark et al. 2020, ELECTRA, arXiv 2003.10555; Bao et al. 2021, BEiT, arXiv 2106.08254):
    eta_l = eta d^(L - l) for layer l of L, the embeddings being layer 0. In these papers the task's head has the
    rate eta and the top layer eta d or less; here heads have rates of their own, so the top layer has eta itself.
    """
    multiple = 1.0
    if run.train.lora_plus is not None and run.adapter.kind in _LORA and ".lora_B." in parameter:
        multiple *= run.train.lora_plus
    if run.train.layer_decay is not None:
        backbone: Any = model.backbone
        multiple *= run.train.layer_decay ** layers_above(backbone.model, parameter.removeprefix(IN_BACKBONE))
    return multiple


def idle_settings(run: Run) -> dict[str, str]:
    """Settings of the optimizer that change nothing in this run, whatever their values, each with the reason."""
    found: dict[str, str] = {}
    if run.engine.optimizer != "sgd":
        found["train.momentum"] = f"engine.optimizer is {run.engine.optimizer}"
    if run.backbone.name == "none":
        return found | dict.fromkeys(("train.lora_plus", "train.layer_decay"), "backbone.name is none")
    if run.adapter.kind not in _LORA:
        found["train.lora_plus"] = f"adapter.kind is {run.adapter.kind}"
    if run.adapter.kind == "frozen":
        found["train.layer_decay"] = "adapter.kind is frozen"
    return found


def ignored(run: Run) -> list[str]:
    """What to tell the user of idle settings that were given a value."""
    given = {path: getattr(run.train, path.removeprefix("train.")) for path in idle_settings(run)}
    return [f"{path} {given[path]:g} changes nothing: {why}" for path, why in idle_settings(run).items() if given[path]]


def scale_learning_rates(optimizer: Any, scale: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale


def first_state(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Tensor]:
    """The state that AdamW or SGD would make for a tensor of any shape in its first step."""
    if isinstance(optimizer, torch.optim.AdamW):
        keys = ("exp_avg", "exp_avg_sq")
        return {"step": torch.tensor(0.0), **{key: torch.zeros_like(flat) for key in keys}}
    return {"momentum_buffer": torch.zeros_like(flat)} if optimizer.defaults["momentum"] else {}


def whole_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Tensor]]:
    """The state of an optimizer that steps whole parameters, by their names, on the host."""
    state = optimizer.state
    return {
        name: {key: value.detach().cpu().clone() for key, value in state[p].items() if torch.is_tensor(value)}
        for name, p in parameters.items()
        if p in state
    }


def load_whole_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """The inverse of `whole_state`, from among the state of all weights."""
    for name, parameter in parameters.items():
        if name in state:
            # torch keeps the step count on the host.
            optimizer.state[parameter] = {
                key: value.clone().to("cpu" if key == "step" else parameter.device)
                for key, value in state[name].items()
            }
