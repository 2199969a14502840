"""The names that a config may choose from: registered parts, metrics and checks, each with what its docstring says.

Importing this imports the parts themselves, and so torch.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from mtrec_ray.check.checks import ORDER
from mtrec_ray.check.finding import CHECKS
from mtrec_ray.config import Part
from mtrec_ray.evaluate.judged import base_name
from mtrec_ray.evaluate.metrics import DIRECTION
from mtrec_ray.evaluate.tables import METRICS as MEASURES
from mtrec_ray.model.towers import TOWERS
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.kinds import KINDS

_BETTER = {1: "higher is better", -1: "lower is better", 0: "neither higher nor lower is better"}


@dataclass(frozen=True)
class Named:
    """One name: all that is said of it, and its parameters."""

    doc: str
    params: type[Part] | None = None


@dataclass(frozen=True)
class Family:
    """Names that stand at one place of a config."""

    title: str
    """Of one of them, as `task kind`."""
    where: str
    """The key that takes the name; of what no config names, the command."""
    members: Mapping[str, Named]
    params: str | None = None
    """The key that takes the parameters."""


def families() -> list[Family]:
    """All of them, in the order in which a newcomer needs them."""
    return [
        Family(
            "task kind",
            "tasks.<name>.kind",
            {name: Named(_of_kind(KINDS[name]), KINDS[name].Params) for name in KINDS.names()},
            "tasks.<name>.params",
        ),
        Family(
            "tower architecture",
            "towers.kind",
            {name: Named(inspect.getdoc(TOWERS[name]) or "", TOWERS[name].Params) for name in TOWERS.names()},
            "towers.params",
        ),
        Family(
            "balance method",
            "balance.method",
            {name: Named(inspect.getdoc(METHODS[name]) or "", METHODS[name].Params) for name in METHODS.names()},
            "balance.params",
        ),
        Family("metric", "train.metric", {name: Named(_of_metric(name)) for name in MEASURES}),
        Family("check", "mtrec check", {name: Named(inspect.getdoc(CHECKS[name]) or "") for name in ORDER}),
    ]


def _of_kind(kind: type[TaskKind]) -> str:
    main, *others = kind.metrics
    measured = f"Metrics: {', '.join([f'{main} (the main one)', *others])}."
    return f"{inspect.getdoc(kind) or ''}\n\n{measured}"


def _of_metric(name: str) -> str:
    title, meaning = MEASURES[name]
    kinds = [kind for kind in KINDS.names() if name in map(base_name, (*KINDS[kind].metrics, *KINDS[kind].reported))]
    return f"{title}: {meaning}.\n\n{_BETTER[DIRECTION.get(name, 0)].capitalize()}. Reported for {', '.join(kinds)}."
