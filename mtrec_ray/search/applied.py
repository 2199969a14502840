"""From sampled values to the config of a trial. Free of torch: every trial's process imports it."""

from collections.abc import Mapping
from typing import Any

from mtrec_ray.config import Run
from mtrec_ray.config_file import override, validate
from mtrec_ray.errors import ConfigError


def applied(run: Run, values: Mapping[str, Any], where: str = "tune.space") -> Run:
    """`run` with `values` (dotted path -> value), and without the search itself.

    Raises:
        ConfigError: values that the config does not take; the message opens with `where`.
    """
    tree = run.model_dump(mode="json", exclude={"tune"})
    for path, value in values.items():
        override(tree, path, value)
    try:
        return validate(tree, where, resolved=True)
    except ConfigError as error:
        raise ConfigError(str(error).splitlines()[0] + " Give values that the config takes.") from None


def trial_run(run: Run, values: Mapping[str, Any], name: str) -> Run:
    """The config of a trial, also when it is trained again as a run of its own.

    Its `train.metric` is the first objective, so that the checkpoint it keeps is the one with which it counts.
    """
    own, first = applied(run, values), run.tune.objectives[0]
    train = own.train if first == "auto" else own.train.model_copy(update={"metric": first})
    return own.model_copy(update={"name": name, "train": train})
