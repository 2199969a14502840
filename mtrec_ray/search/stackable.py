"""Which way trials are run: stacked on one backbone copy, or as training jobs of their own; and which field decides."""

from dataclasses import dataclass
from typing import Literal

from mtrec_ray.config import Run
from mtrec_ray.errors import ConfigError
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.search.space import Space
from mtrec_ray.train.pretrained import NONE


@dataclass(frozen=True)
class Mode:
    name: Literal["stacked", "distributed"]
    reason: str
    """With the field that decided"""


def choose_mode(run: Run, space: Space) -> Mode:
    """`tune.mode`, with `auto` resolved.

    Raises:
        ConfigError: `stacked` where trials cannot share a backbone copy.
    """
    obstacle = _obstacle(run, space)
    if run.tune.mode == "distributed":
        return Mode("distributed", "tune.mode asks for it")
    if run.tune.mode == "stacked":
        if obstacle is not None:
            raise ConfigError(f"tune.mode: trials cannot be stacked, since {obstacle}. Set tune.mode: distributed.")
        return Mode("stacked", f"tune.mode asks for it; up to {run.tune.stack} on one copy of the backbone")
    if obstacle is not None:
        return Mode("distributed", f"they cannot share a copy of the backbone, since {obstacle}")
    return Mode(
        "stacked", f"nothing in the config keeps them from sharing a backbone, up to tune.stack {run.tune.stack}"
    )


def _obstacle(run: Run, space: Space) -> str | None:
    """Why trials cannot be stacked."""
    runs = [run, *(probe for _, probe in space.probes(run))]
    if run.cluster.workers > 1:
        return f"cluster.workers is {run.cluster.workers}: a stack is one process"
    if run.engine.zero_stage == 3:
        return "engine.zero_stage is 3: a stack holds the whole backbone"
    if run.engine.offload != "none":
        return f"engine.offload is {run.engine.offload}"
    if run.backbone.packing == "off" and run.backbone.name != NONE:
        return "backbone.packing is off"
    unstacked = next((one.adapter.kind for one in runs if one.adapter.kind not in ("lora", "frozen")), None)
    if unstacked == "full":
        return "adapter.kind full trains the backbone's own weights"
    if unstacked is not None:
        return f"adapter.kind {unstacked} is not computed for several trials in one row, as lora and frozen are"
    for one in runs:
        obstacle = _step_obstacle(one)
        if obstacle is not None:
            return obstacle
    moved = [f"{part}.{key}" for part in ("backbone", "engine") for key in _moved(runs, part)]
    if moved:
        return f"{moved[0]} is searched, and it belongs to all trials of a stack"
    return None


def _step_obstacle(run: Run) -> str | None:
    """A stack computes one forward pass for each backward pass."""
    if run.balance.scope == "step" and METHODS[run.balance.method].reads != "nothing":
        return "balance.scope is step, which looks at each batch twice"
    if METHODS[run.balance.method].learns == "losses_again":
        return f"balance.method is {run.balance.method}, which looks at each batch twice"
    if run.regularization.adversarial.is_on:
        return "regularization.adversarial looks for the worst inputs first, and so reads each batch more than once"
    if run.strategy.adaptive.is_on:
        return "strategy.adaptive reads validation rows between the train rows"
    if run.strategy.stages:
        return "strategy.stages change what is trained, and with it a trial's place in the stack"
    return None


def _moved(runs: list[Run], part: str) -> list[str]:
    """Fields of a part that differ between runs; the optimizer is each trial's own."""
    fields = getattr(runs[0], part).model_dump()
    others = [getattr(run, part).model_dump() for run in runs[1:]]
    return [key for key in fields if key != "optimizer" and any(other[key] != fields[key] for other in others)]
