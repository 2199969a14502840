"""Which paths of a config can be searched, and why others cannot.

All trials of a search share the prepared data and the backbone's starting weights, are judged by the same metric on
the same rows, and differ in what is learned. What would break one of these is refused.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from mtrec_ray.config import ADAPTER_FIELDS, Run
from mtrec_ray.data.preparing.fingerprint import settings
from mtrec_ray.engine.optimizer import idle_settings
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.towers import TOWERS
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.tasks.kinds import KINDS
from mtrec_ray.train.pretrained import NANO, NONE, backbone_folder

LOGS = "what the logs say is prepared once, before the first trial"
RULER = "trials are compared by it"
SPEED = "it changes how fast a step is, not what is learned"
LENGTH = "trials must have equally many evaluations to be compared on the way"
FIXED = {
    "name": "each trial has its own name",
    "seed": "a seed that wins is luck and carries over to no other data",
    "plugins": "they are imported once",
    "data": LOGS,
    "split": LOGS,
    "augment.item_text": "its texts are read once, before the first trial",
    "position.reference": "it says where candidates are scored, not what is learned",
    "pretrain": "the backbone is pretrained once, before the first trial",
    "evaluate": "it is used after the search",
    "cluster": "it says what the search may use",
    "tune": "it is the search itself",
    "compare": "it is for `mtrec compare`",
    "train.metric": RULER,
    "train.guards": "they say which evaluation of a trial counts, in all trials alike",
    "train.evaluations_per_epoch": LENGTH,
    "train.start_from": "all trials start from the same weights",
    "train.micro_tokens": SPEED,
    "train.log_every": "it changes nothing that is learned",
    "backbone.packing": SPEED,
    "engine.name": SPEED,
    "engine.zero_stage": SPEED,
    "engine.offload": SPEED,
    "engine.activation_checkpointing": SPEED,
}
"""Paths, or the parts they belong to, with the reason why they are not searched."""
LENGTHS = ("train.epochs", "train.max_steps")
SEARCHED = (
    "train.learning_rate.*, train.weight_decay.*, train.batch_requests and the like; tasks.<name>.weight and params.*; "
    "adapter.*; towers.*; matching.*; balance.*; strategy.*; features.*_dim, features.hidden and dropout; "
    "augment.*; regularization.*; position.*; engine.optimizer"
)


def leaves(part: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted path of a config with its value; names of tasks are parts of paths."""
    for name in type(part).model_fields:
        value, path = getattr(part, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{path}.")
        elif isinstance(value, dict) and value and all(isinstance(entry, BaseModel) for entry in value.values()):
            for key, entry in value.items():
                yield from leaves(entry, f"{path}.{key}.")
        else:
            yield path, value


def all_values(run: Run) -> dict[str, Any]:
    """Every dotted path that a run has a value for: its config's, and the parameters of the parts that it names, as
    `tasks.like.params.gamma`, with their defaults.
    """
    found = dict(leaves(run))
    parts = {f"tasks.{name}.params": KINDS[task.kind].check(name, task.params) for name, task in run.tasks.items()}
    parts["towers.params"] = TOWERS[run.towers.kind].check(run.towers.params)
    parts["balance.params"] = METHODS[run.balance.method].check(run.balance.params)
    for path, part in parts.items():
        found |= leaves(part, f"{path}.")
    return found


def check_path(where: str, path: str, run: Run) -> None:
    """Raises `ConfigError`, opening with `where`, if `path` is no value of the config, or one that is not searched."""
    known = list(all_values(run))
    if path not in known:
        inside = [name for name in known if name.startswith(f"{path}.")]
        if inside:
            raise ConfigError(
                f"{where}: '{path}' is a part of the config, not a value; choose from {', '.join(inside)}."
            )
        near = difflib.get_close_matches(path, [name for name in known if _reason(name, run) is None], n=1)
        hint = f"did you mean '{near[0]}'?" if near else "write it as train.learning_rate.towers or tasks.like.weight."
        raise ConfigError(f"{where}: the config has no value '{path}'; {hint}")
    reason = _reason(path, run)
    if reason is not None:
        raise ConfigError(f"{where} is not searched: {reason}. Searched can be {SEARCHED}.")


def _reason(path: str, run: Run) -> str | None:
    parts = path.split(".")
    opening = [".".join(parts[: i + 1]) for i in range(len(parts))]
    if path in LENGTHS and run.tune.scheduler != "none":
        return f"{LENGTH}; with tune.scheduler: none it can be"
    if path.endswith(".params.exclude_seen"):
        return RULER
    return next((FIXED[part] for part in opening if part in FIXED), None)


def check_shared(where: str, run: Run, other: Run) -> None:
    """Raises `ConfigError` if `other`, a trial of the search of `run`, could not share with it what is made once."""
    if settings(run) != settings(other):
        raise ConfigError(
            f"{where} changes the prepared data, which all trials share: run a search per value with --set. Searched "
            f"can be {SEARCHED}."
        )
    if _start(other) not in (None, _start(run)):
        raise ConfigError(
            f"{where} changes the pretrained backbone, from which all trials start: run a search per value with --set, "
            "or search it with backbone.pretrained: false."
        )


def _start(run: Run) -> str | None:
    """Which weights have to be there before the first step."""
    return backbone_folder(run, "") if run.backbone.name == NANO and run.backbone.pretrained else None


def idle(path: str, runs: Iterable[Run]) -> str | None:
    """Why `path` would change nothing in any of `runs`; None if it does in one."""
    reasons = {_idle(path, run) for run in runs}
    return None if None in reasons else next(iter(reasons))


def _idle(path: str, run: Run) -> str | None:
    if path in (rates := idle_settings(run)):
        return rates[path]
    part, _, field = path.partition(".")
    data = run.data
    of_adapters = part == "adapter" or path in ("train.learning_rate.adapters", "train.weight_decay.adapters")
    if run.backbone.name == NONE and (of_adapters or (part == "backbone" and field != "name")):
        return "backbone.name is none"
    if part == "adapter" and field != "kind" and field not in ADAPTER_FIELDS[run.adapter.kind]:
        return f"adapter.kind is {run.adapter.kind}"
    if of_adapters and part == "train" and run.adapter.kind == "frozen":
        return "adapter.kind is frozen"
    matches = any(KINDS[task.kind].matches for task in run.tasks.values())
    if part == "matching" and not matches:
        return "no task is of kind retrieval or interest_match"
    if path == "features.id_dropout" and not (run.features.user_dim or run.features.item_dim or matches):
        return "features.user_dim and features.item_dim are 0"
    if path == "features.vector_dim" and not any(part and part.vectors for part in (data, data.items, data.users)):
        return "no vectors are declared"
    if path in ("features.user_rows", "features.item_rows", "features.hashes") and run.features.ids == "exact":
        return "features.ids is exact"
    if path == "features.history_gaps" and not run.features.history_dim:
        return "features.history_dim is 0"
    if part == "position" and (reason := _idle_position(field, run)):
        return reason
    if path.startswith("strategy.adaptive.") and field != "adaptive.main" and not run.strategy.adaptive.is_on:
        return "strategy.adaptive.main is empty"
    if part == "regularization" and (reason := _idle_regularization(field, run)):
        return reason
    if part == "augment" and (reason := _idle_augmentation(field, run, matches)):
        return reason
    if (
        path in ("backbone.width", "backbone.layers", "backbone.heads", "backbone.vocab_size")
        and run.backbone.name != NANO
    ):
        return f"backbone.name is {run.backbone.name}"
    return None


def _idle_position(field: str, run: Run) -> str | None:
    method, weighted = run.position.method, run.position.inverse_propensity
    if field == "dropout" and method == "none":
        return f"position.method is {method}"
    if field == "clip" and not weighted:
        return "position.inverse_propensity is false"
    if field == "tasks" and method in ("none", "feature") and not weighted:
        return f"position.method is {method} and position.inverse_propensity is false"
    return None


def _idle_regularization(field: str, run: Run) -> str | None:
    adversarial, field = run.regularization.adversarial, field.removeprefix("adversarial.")
    if field in ("epsilon", "steps", "step_size", "on", "weight") and adversarial.method == "none":
        return "regularization.adversarial.method is none"
    if field in ("epsilon", "steps", "step_size", "on", "method") and adversarial.weight == 0:
        return "regularization.adversarial.weight is 0"
    if field in ("steps", "step_size") and adversarial.method != "pgd":
        return f"regularization.adversarial.method is {adversarial.method}"
    return None


def _idle_augmentation(field: str, run: Run, matches: bool) -> str | None:
    if run.backbone.name == NONE and field in ("token_noise", "history_reorder"):
        return "backbone.name is none"
    if field.startswith("history_") and not run.history.max_events:
        return "history.max_events is 0"
    reads_history = run.backbone.name != NONE or run.features.history_dim > 0 or matches
    if field.startswith("history_") and not reads_history:
        return "backbone.name is none and features.history_dim is 0, so that nothing reads the history"
    return None
