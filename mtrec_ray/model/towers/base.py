"""What a tower architecture is: from z, which all tasks share, to the logits of each task.

An architecture that is not built in is a subclass of `Towers`, registered in a module that `plugins` names:

    from mtrec_ray.model.towers import TOWERS, Towers

    @TOWERS.register("mine")
    class Mine(Towers): ...

Its parts may be those of the built-in ones: `tower.Tower`, `experts.Experts`, `gates.Gate`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtrec_ray import config
from mtrec_ray.config import Part
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.towers.gates import GateMeter
from mtrec_ray.params import check_params
from mtrec_ray.registry import Registry, suggest
from mtrec_ray.tasks.kind import TaskKind


class Towers(nn.Module, ABC):
    """z -> logits of tasks. C candidates, K outputs of a task.

    Weights are float32 and made in a fixed order from torch's global generator, which the caller seeds. A candidate's
    logits depend on that candidate alone. What is computed depends on shapes and on `wanted`, never on values, and is
    computed also for no candidates, so that every worker takes part in every exchange. Every weight belongs to a
    module whose `forward` uses it, for ZeRO-3 gathers a module's weights around its `forward`.

    Raises:
        ConfigError: on construction, a parameter that is unknown or out of range, or a setting, task or data with
            which the architecture can do nothing.
    """

    class Params(Part):
        """No parameters."""

    params: Part

    def __init__(self, tasks: Sequence[TaskKind], config: config.Towers, context: DropoutContext, domains: int) -> None:
        """`domains`: how many domains the data tells apart, with the unknown one, which is 0; so at least 1."""
        super().__init__()
        self.params = self.check(config.params)
        self.tasks = [task for task in tasks if task.outputs > 0 and not task.matches]
        """Those that have a tower: not objectives over other tasks' scores, nor matches of user and item"""
        self.place = {task.task.name: index for index, task in enumerate(self.tasks)}
        """Where a task is in `tasks`"""

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> Part:
        """The parameters, typed, with defaults. Raises `ConfigError` with one line per mistake."""
        return check_params(cls.Params, params, "towers.params")

    @property
    def names(self) -> list[str]:
        """The tasks that have logits, in their order."""
        return list(self.place)

    @abstractmethod
    def forward(self, z: Tensor, domain: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """z [C, z_dim], domain int64 [C], 0 = unknown -> logits [C, K] of the `wanted` tasks, in their order.

        No more is computed than they need; one call for all tasks and one for each give the same logits.
        """

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        """Which of its weights are of which task or domain (`model.entries`). An architecture that does not say it can
        start from weights of the same tasks and domains alone (`train.start_from`)."""
        return {}

    def gates(self) -> dict[str, Tensor]:
        """How much each gate used its experts when it was last computed: {task: [experts]}, detached, on the device.

        Sums over the candidates of weights that add up to 1: a gate's entries add up to the number of candidates. So
        micro-steps and ranks are added, and the mean use is `sums / sums.sum()`. Calls for single tasks leave the gates
        of the others as they were. Empty for architectures without gates.
        """
        meters = [module for module in self.modules() if isinstance(module, GateMeter)]
        return {meter.name: meter.sums for meter in meters if meter.sums is not None}


TOWERS: Registry[type[Towers]] = Registry("tower architecture")


def check_towers(towers: config.Towers) -> None:
    """What can be wrong with the architecture's name and parameters; needs no data.

    Raises:
        ConfigError: with one line per mistake.
    """
    if towers.kind not in TOWERS:
        raise ConfigError(f"towers.kind: '{towers.kind}' is unknown.{suggest(towers.kind, TOWERS.names())}")
    TOWERS[towers.kind].check(towers.params)
