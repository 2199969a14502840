"""Alternating training: one task a step, in turn or drawn; a pure function of seed and step."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtrec_ray.multitask.balancing.method import step_generator

Turns = Literal["joint", "round_robin", "proportional", "annealed"]

_FLATTENED = 0.8
"""By how much `annealed` lowers the exponent until the end of training; the value of the paper."""


def task_factors(
    turns: Turns, weights: Tensor, labels: Sequence[int], seed: int, step: int, num_steps: int
) -> Tensor | None:
    """What the tasks' weights [T] are multiplied with in optimizer step `step` (from 0): 1 for the task whose turn it
    is, 0 for the others; None for joint training.

    `round_robin`: the tasks of a weight above 0, one after the other. `proportional`: drawn with probabilities in
    proportion to their observed train `labels` [T]. `annealed`: in proportion to labels^a, a falling from 1 to 0.2 over
    the run, so that small tasks come up more and more often (Stickland & Murray 2019, "BERT and PALs", arXiv
    1902.02671, section 4.1; there once an epoch, here in each step).
    """
    if turns == "joint":
        return None
    taking = [t for t in range(len(weights)) if float(weights[t]) > 0 and labels[t] > 0]
    if turns == "round_robin":
        chosen = taking[step % len(taking)]
    else:
        exponent = 1.0 if turns == "proportional" else 1 - _FLATTENED * step / max(1, num_steps - 1)
        shares = torch.tensor([labels[t] for t in taking], dtype=torch.float64) ** exponent
        place = torch.multinomial(shares, 1, generator=step_generator(seed, step, "turn"))
        chosen = taking[int(place)]
    factors = torch.zeros(len(weights), dtype=torch.float64)
    factors[chosen] = 1
    return factors
