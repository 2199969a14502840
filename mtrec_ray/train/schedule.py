"""The learning rate over the run, as a multiple of the configured one: a pure function of the step."""

import math
from typing import Literal

from mtrec_ray.config import Train

Decay = Literal["cosine", "linear", "constant"]


def lr_scale(step: int, num_steps: int, warmup: float, decay: Decay, stage_first: int = 0) -> float:
    """Multiple for optimizer step `step` (from 0) of `num_steps`, of which the share `warmup` rises linearly from zero.

    The first step has a positive rate. Cosine and linear decay end at zero just after the last step. A later stage,
    which begins with step `stage_first`, rises again over equally many steps, to where the decay is.
    """
    warmup_steps = round(warmup * num_steps)
    rise = min(1.0, (step - stage_first + 1) / (warmup_steps + 1))
    return rise * _decayed(max(step, warmup_steps), num_steps, warmup_steps, decay)


def _decayed(step: int, num_steps: int, warmup_steps: int, decay: Decay) -> float:
    if decay == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def planned_steps(train: Train, steps_per_epoch: int) -> int:
    """Optimizer steps of a run that nothing ends early."""
    planned = max(1, math.ceil(train.epochs * steps_per_epoch))
    return min(planned, train.max_steps or planned)


def evaluation_interval(train: Train, steps_per_epoch: int) -> int:
    """Steps between two evaluations; the last step is followed by one too."""
    return max(1, steps_per_epoch // train.evaluations_per_epoch)
