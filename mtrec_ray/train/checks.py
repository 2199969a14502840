"""What can be wrong with the parts that a config names, before any worker is started."""

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.augment.domains import check_domains, check_known_domains
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.position import check_known_positions, check_position
from mtrec_ray.model.towers.base import check_towers
from mtrec_ray.multitask.balancing import METHODS
from mtrec_ray.multitask.strategy.adaptive import check_adaptive, check_validation_labels
from mtrec_ray.registry import import_plugins, suggest
from mtrec_ray.tasks import kinds
from mtrec_ray.train.matching import check_known_items, check_matching
from mtrec_ray.train.regularization import check_features, check_regularization


def check_parts(run: Run) -> None:
    """Kinds of tasks, towers, balance method, and their parameters; imports the run's plugins. Needs no data.

    Raises:
        ConfigError: a name that is unknown, with the nearest, a parameter out of range, or parts that do not fit.
    """
    import_plugins(run.plugins)
    kinds.check_run(run)
    check_towers(run.towers)
    check_position(run)
    name = run.balance.method
    if name not in METHODS:
        raise ConfigError(f"balance.method: '{name}' is unknown.{suggest(name, METHODS.names())}")
    METHODS[name].check(run.balance.params)
    check_matching(run)
    check_domains(run)
    check_regularization(run)
    check_adaptive(run)
    if run.strategy.stages and run.adapter.kind == "adalora":
        raise ConfigError(
            "strategy.stages: adapter.kind 'adalora' spends its ranks over the whole run, so its weights cannot rest "
            "in a stage. Use adapter.kind: lora, or leave out the stages."
        )


def check_data(run: Run, manifest: Manifest) -> None:
    """What the prepared data tells of the parts beside metrics, before anything is trained.

    Raises:
        UserError: `position`, `augment` or `regularization` asks for what no train row has, or `strategy` for labels
            that no validation row has.
    """
    check_known_positions(run, manifest)
    check_known_items(run, manifest)
    check_known_domains(run, manifest)
    check_features(run, manifest)
    check_validation_labels(run, manifest)
